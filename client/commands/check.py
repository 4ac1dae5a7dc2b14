"""`gliorn-client check` and `prepare`: whether the hospital's data are fit for a study."""

import argparse
import sys
from pathlib import Path

from client.config import SiteConfig, read_site_config
from common.errors import ConfigError
from common.study import Study, parse_study


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe both commands."""
    site = argparse.ArgumentParser(add_help=False)
    site.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    study = argparse.ArgumentParser(add_help=False)
    study.add_argument("--study", type=Path, required=True, metavar="FILE", help="the federation's study.yaml")
    check = commands.add_parser("check", parents=[site, study], help="say whether the data are fit for a study")
    check.set_defaults(command=_check)
    prepare = commands.add_parser("prepare", parents=[site, study], help="prepare all exams now, not in round 1")
    prepare.set_defaults(command=_prepare)
    for command in (check, prepare):
        command.add_argument("--workers", type=int, default=1, metavar="N", help="exams worked on side by side (1)")


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
