"""`gliorn-client check`: whether everything that will matter in a round is as it must be."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from client.config import SiteConfig, read_site_config
from client.kit import Kit, kit_of
from client.private_files import write_atomically
from client.rehearsal.findings import Finding, count_levels
from client.working_hours import parse_working_hours
from common.errors import ConfigError, DataError
from common.study import Study, parse_study

if TYPE_CHECKING:
    from client.preflight.run import OnExam, Preflight
    from common.tasks import SiteManifest

CHECK = """\
Tries everything that will matter before the first round: the files of the membership, the way to the coordinator, its
certificate, the clocks, whether the key is admitted, consent, the data, the disks, memory, and real training steps on
this device, with the time a round will take. Nothing about a single patient leaves this terminal."""


_MARGIN = " " * 10
"""Where what was found begins, under the level."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    site = argparse.ArgumentParser(add_help=False)
    site.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    check = commands.add_parser(
        "check", parents=[site], help="rehearse everything that will matter in a round", description=CHECK
    )
    check.add_argument(
        "--study", type=Path, metavar="FILE", help="a study.yaml; by default what the coordinator offers"
    )
    check.add_argument("--json", action="store_true", help="print all findings as JSON")
    check.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the data's findings and a picture of every exam"
    )
    check.add_argument("--data-only", action="store_true", help="check the data alone; needs no study and no network")
    check.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="a model of the federation (.safetensors), to see whether the labels are the wrong way round",
    )
    check.set_defaults(command=_check)
    check.add_argument(
        "--workers", type=int, metavar="N", help="exams worked on side by side (all cores to read them, 1 to prepare)"
    )


class _Telling:
    """Findings as they come in: kept for the end and, unless they are to be JSON, printed at once."""

    def __init__(self, *, as_json: bool) -> None:
        self.findings: list[Finding] = []
        self.manifests: list[SiteManifest] = []
        self.preflights: dict[str, Preflight] = {}
        self._as_json = as_json
        self._heading = ""

    def tell(self, findings: Iterable[Finding]) -> None:
        """Take some findings."""
        for finding in findings:
            self.findings.append(finding)
            if not self._as_json:
                self._print(finding)

    def _print(self, finding: Finding) -> None:
        of_study = finding.part in ("data", "computing")
        heading = f"{finding.part}, study {finding.study}" if of_study and finding.study else finding.part
        if heading != self._heading:
            print(f"{heading}:")
            self._heading = heading
        found = finding.found.replace("\n", "\n" + _MARGIN)
        print(f"  {finding.level:<8}{finding.name}: {found}", flush=True)
        if finding.advice:
            print(f"{_MARGIN}-> {finding.advice}", flush=True)

    def tell_manifest(self, manifest: "SiteManifest", study: Study) -> None:
        """Take what the coordinator would be told."""
        self.manifests.append(manifest)
        if self._as_json:
            return
        self._heading = ""
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

    def end(self, arguments: argparse.Namespace, *, joins: bool) -> int:
        """Print the sum and the next step, or all as JSON. `joins`: whether site.yaml names a coordinator."""
        counts = count_levels(self.findings)
        if self._as_json:
            values = {
                "counts": counts,
                "findings": [asdict(finding) for finding in self.findings],
                "manifests": [asdict(manifest) for manifest in self.manifests],
                "preflight": {study: _cases(preflight) for study, preflight in self.preflights.items()},
            }
            print(json.dumps(values, indent=1))
        else:
            print(f"{counts['ok']} ok, {_count(counts['warning'], 'warning')}, {_count(counts['FAIL'], 'failure')}")
            study = f" --study {arguments.study}" if arguments.study else ""
            if any(preflight.fixable for preflight in self.preflights.values()):
                print(f"Some of it is mended by: gliorn-client fix --site {arguments.site} --out DIR")
            if counts["FAIL"]:
                study += " --data-only" if arguments.data_only else ""
                again = f"gliorn-client check --site {arguments.site}{study}"
                print(f"Next: do what stands behind -> under each FAIL, then {again}")
            elif joins:
                print(f"Next: gliorn-client --site {arguments.site}")
            else:
                print(
                    f"Next: ask the coordinator for an invite; gliorn-client enroll --invite … --site {arguments.site}"
                )
        return 2 if counts["FAIL"] else 0


def _check(arguments: argparse.Namespace) -> int:
    """Rehearse part after part; a later one is rehearsed although an earlier one failed, where that makes sense."""
    config = read_site_config(arguments.site)
    named = None if arguments.study is None else _read_study(arguments.study)
    _require_workers(1 if arguments.workers is None else arguments.workers)
    _require_place_of_page(arguments)
    if arguments.data_only:
        telling = _Telling(as_json=arguments.json)
        _rehearse_files(telling, config, named, arguments)
        return telling.end(arguments, joins=config.server is not None)
    if named is None and config.server is None:
        raise ConfigError(
            f"--study FILE is missing: {arguments.site} has no server section, so no coordinator can be asked for its "
            "study; name a study.yaml, or join a federation with `gliorn-client enroll`"
        )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request; the findings say more
    telling = _Telling(as_json=arguments.json)
    kit: Kit | None = None
    studies: tuple[Study, ...] = () if named is None else (named,)
    if config.server is not None:
        try:
            kit = kit_of(config, origin=arguments.site)
        except ConfigError as error:
            found, _, advice = str(error).partition("; ")
            telling.tell([Finding("kit", "server", "FAIL", found, advice)])
    telling.tell(_working_hours(config))
    if kit is not None:
        studies = _rehearse_membership(telling, config, kit, named, arguments.site)
    for study in studies:
        _rehearse_study(telling, config, kit, study, arguments)
    return telling.end(arguments, joins=config.server is not None)


def _working_hours(config: SiteConfig) -> list[Finding]:
    """Whether the site takes part now, where it has hours at all."""
    if config.working_hours is None:
        return []
    hours, now = parse_working_hours(config.working_hours), datetime.now(UTC)
    change = hours.next_change(now)
    found = "open now" if hours.is_open(now) else "closed now"
    if change is not None:
        found += f", {'closes' if hours.is_open(now) else 'opens'} {change:%A %H:%M}"
    return [Finding("kit", "working hours", "ok", f"{found}, by this machine's local time")]


def _rehearse_membership(
    telling: _Telling, config: SiteConfig, kit: Kit, named: Study | None, site_file: Path
) -> tuple[Study, ...]:
    """Kit, connection and consent; the studies to go on with."""
    from client.rehearsal.connection import rehearse_connection
    from client.rehearsal.studies import studies_to_rehearse

    connection = rehearse_connection(config, kit, environment=os.environ, clock=lambda: datetime.now(UTC))
    telling.tell(connection.findings)
    chosen = studies_to_rehearse(config, kit, reply=connection.reply, named=named, site_file=str(site_file))
    telling.tell(chosen.findings)
    return chosen.studies


def _rehearse_study(
    telling: _Telling, config: SiteConfig, kit: Kit | None, study: Study, arguments: argparse.Namespace
) -> None:
    """Disks, files, preparation, and a round's work."""
    from client.cohort import load_cohort
    from client.rehearsal.computing import rehearse_computing
    from client.rehearsal.data import rehearse_data
    from client.rehearsal.resources import check_disks, model_size

    size = model_size(study)
    try:
        num_exams = len(load_cohort(config, study).exams)
    except (ConfigError, DataError):
        num_exams = 0  # what is wrong is told with the data
    disks = check_disks(config, study, num_exams=num_exams, size=size, kit=kit)
    telling.tell(disks)
    preflight = _rehearse_files(telling, config, study, arguments)
    if any(finding.level == "FAIL" for finding in disks):
        found = "not tried: preparing the exams would fill the disk"
        telling.tell([Finding("data", "exams", "warning", found, "make room and run this again", study.name)])
        return
    if preflight.blocked:
        found = "not tried: what blocks the data keeps exams from being prepared"
        telling.tell([Finding("computing", "step", "warning", found, "mend the data and run this again", study.name)])
        return
    data = rehearse_data(config, study, workers=arguments.workers or 1, on_exam=_show_progress)
    telling.tell(data.findings)
    if data.manifest is not None:
        telling.tell_manifest(data.manifest, study)
    if arguments.model is not None and data.prepared:
        from client.rehearsal.direction import rehearse_direction

        telling.tell([rehearse_direction(config, study, arguments.model)])
    if not data.prepared:
        found = "not tried: a step needs prepared patients"
        telling.tell([Finding("computing", "step", "warning", found, "mend the data and run this again", study.name)])
    elif not any(finding.name == "device" and finding.level == "FAIL" for finding in data.findings):
        telling.tell(rehearse_computing(config, arguments.site, study, size=size))


def _rehearse_files(
    telling: _Telling, config: SiteConfig, study: Study | None, arguments: argparse.Namespace
) -> "Preflight":
    """The preflight; a second study's looks at the first one's files."""
    from client.preflight.examine import Drawing
    from client.preflight.page import crop_of, render_page
    from client.preflight.run import run_preflight
    from client.preflight.workers import num_workers
    from client.rehearsal.fitness import fitness_findings

    known = next(iter(telling.preflights.values()), None)
    drawing = None if arguments.html is None or known is not None else Drawing(crop_of(study))
    with exam_progress("exams checked") as on_exam:
        preflight = run_preflight(
            config,
            study,
            workers=num_workers(arguments.workers),
            drawing=drawing,
            known=known,
            on_exam=None if known is not None else on_exam,
        )
    telling.tell(fitness_findings(preflight, study))
    telling.preflights["" if study is None else study.digest] = preflight
    if drawing is not None:
        made_at = datetime.now().astimezone()
        page = render_page(preflight, site=config.name, study=study, made_at=made_at)
        write_atomically(arguments.html, page.encode())
        if not arguments.json:
            print(f"{arguments.html}: findings and a picture of every exam; it names patients, so it stays here")
    return preflight


def _cases(preflight: "Preflight") -> list[dict[str, object]]:
    """What a script at the site may want to know of every case."""
    return [
        {
            "check": finding.check,
            "severity": finding.severity,
            "cases": list(finding.cases),
            "found": [{"case": hit.case, "detail": hit.detail} for hit in finding.hits],
            "remedy": finding.remedy,
        }
        for finding in preflight.findings
    ]


def _require_place_of_page(arguments: argparse.Namespace) -> None:
    """Before an hour is spent on what cannot be written."""
    if arguments.html is not None and (not arguments.html.parent.is_dir() or arguments.html.is_dir()):
        raise ConfigError(f"--html {arguments.html}: expected a file in a folder that exists")


@contextmanager
def exam_progress(what: str) -> "Iterator[OnExam]":
    """A bar with the time left on a terminal; nothing in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)

        def on_exam(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield on_exam


def _require_workers(workers: int) -> None:
    if workers < 1:
        raise ConfigError(f"--workers {workers}: expected a whole number of at least 1")


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        print(f"\r{done} of {total} exams", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _read_study(path: Path) -> Study:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {path}: cannot be read ({error}); name a study.yaml in UTF-8") from None
    return parse_study(text, origin=str(path))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
