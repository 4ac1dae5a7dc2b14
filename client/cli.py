"""`gliorn-client`: what a hospital types: check and prepare its data, and join a federation."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from client.config import SiteConfig, read_site_config
from common.errors import ConfigError, GliornError
from common.study import Study, parse_study

DESCRIPTION = """\
A hospital's side of a federation. Images, the table and the site configuration stay on this machine. What leaves it:
the site's name, counts, keyed digests of the lists of cases, model states, losses and timings, the kind of device and
its threads, program versions and codes of errors; docs/site.md lists them all. Without a command: joins the federation
that the site configuration names and stays until it is stopped. Research use only."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when it is done; 1 for a fault of this program; 2 for what the user has to mend.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        return int(arguments.command(arguments))
    except GliornError as error:
        print(f"gliorn-client: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "gliorn-client: stopped; what is in the cache stays, and the next start goes on from there", file=sys.stderr
        )
        return 2
    except OSError as error:
        if error.filename is None:
            traceback.print_exc()
            return 1
        reason = error.strerror or type(error).__name__
        print(f"gliorn-client: {error.filename}: {reason}; look at the file and its rights", file=sys.stderr)
        return 2
    except Exception:  # noqa: BLE001 - the outermost border: our own fault is shown whole
        traceback.print_exc()
        return 1


def _parser() -> argparse.ArgumentParser:
    site = argparse.ArgumentParser(add_help=False)
    site.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    study = argparse.ArgumentParser(add_help=False)
    study.add_argument("--study", type=Path, required=True, metavar="FILE", help="the federation's study.yaml")
    parser = argparse.ArgumentParser(prog="gliorn-client", description=DESCRIPTION)
    parser.add_argument("--site", type=Path, metavar="FILE", help="this hospital's site.yaml")
    parser.set_defaults(command=_join)
    commands = parser.add_subparsers(title="commands", metavar="")
    check = commands.add_parser("check", parents=[site, study], help="say whether the data are fit for a study")
    check.set_defaults(command=_check)
    prepare = commands.add_parser("prepare", parents=[site, study], help="prepare all exams now, not in round 1")
    prepare.set_defaults(command=_prepare)
    for command in (check, prepare):
        command.add_argument("--workers", type=int, default=1, metavar="N", help="exams worked on side by side (1)")
    return parser


def _check(arguments: argparse.Namespace) -> int:
    """Everything a site does before its first round, without a coordinator."""
    from client.site import Site

    _prepared(arguments)
    config, study = _read(arguments)
    site = Site.open(config, study)
    manifest = site.describe()
    print(f"{manifest.site}: fit for study {study.name} ({study.digest[:12]}) on {manifest.device}")
    print("This, and nothing about a single patient, is what the coordinator is told:")
    for split, (recurrence, necrosis) in manifest.num_patients.items():
        print(f"  {split}: {recurrence} recurrence + {necrosis} necrosis, {manifest.num_exams[split]} exams")
    print("  exams that lack a sequence: " + _counts(manifest.missing_sequences))
    print("  crop centres found by: " + _counts(manifest.crop_centers))
    print(f"  device: {manifest.device}, torch threads: {manifest.torch_threads}")
    for split, digest in manifest.cohort_digests.items():
        print(f"  keyed digest of the {split} cases: {digest}")
    print(f"  versions: {', '.join(f'{name} {value}' for name, value in manifest.versions.items())}")
    print(f"Next: gliorn-client --site {arguments.site}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    cached, total = _prepared(arguments)
    print(f"{total} exams prepared, {cached} of them were in the cache already")
    print(f"Next: gliorn-client check --site {arguments.site} --study {arguments.study}")
    return 0


def _prepared(arguments: argparse.Namespace) -> tuple[int, int]:
    from client.prepare import prepare_site

    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: expected a whole number of at least 1")
    config, study = _read(arguments)

    def on_exam(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        if sys.stderr.isatty() or done == total:
            print(f"\r{done} of {total} exams", end=end, file=sys.stderr, flush=True)

    prepared = prepare_site(config, study, workers=arguments.workers, on_exam=on_exam)
    return prepared.num_from_cache, sum(split.num_exams for split in prepared.splits.values())


def _read(arguments: argparse.Namespace) -> tuple[SiteConfig, Study]:
    try:
        text = arguments.study.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {arguments.study}: cannot be read ({error}); name a study.yaml in UTF-8") from None
    return read_site_config(arguments.site), parse_study(text, origin=str(arguments.study))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _join(arguments: argparse.Namespace) -> int:
    from client.join import free_port, run_until_stopped, start_supernode

    if arguments.site is None:
        raise ConfigError("--site FILE is missing; name this hospital's site.yaml")
    config = read_site_config(arguments.site)
    if config.server is not None:
        print(f"{config.name}: joining the federation at {config.server.address}; Ctrl-C leaves", flush=True)
    status = run_until_stopped(
        lambda: start_supernode(config, arguments.site, port=free_port(), environment=os.environ)
    )
    if status is None:
        print(f"{config.name}: left the federation")
        return 0
    raise ConfigError(
        f"Flower's SuperNode ended with status {status}; its last lines above say why. Frequent reasons: the "
        "coordinator has not registered this site's key, or another process runs with the same key"
    )
