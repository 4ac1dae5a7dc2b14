"""`gliorn-client cohort`: shows a site its own cohort, and writes it in another form."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from client.config import SiteConfig, read_site_config
from common.errors import ConfigError
from common.study import CLASS_NAMES, Study, parse_study

if TYPE_CHECKING:
    from client.cohort import Cohort
    from client.cohort_summary import CohortSummary, SequenceSummary
    from client.flow import Stage

COHORT = """\
Reads the source that site.yaml names and shows what it holds: patients, exams, classes, splits, sequences, voxels,
scanners, and how many exams were excluded and why. It can write the same cohort as a BIDS derivative or as a datalist;
the source is never changed. Nothing leaves this machine."""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "cohort", help="show this site's cohort, or write it in another form", description=COHORT
    )
    parser.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    parser.add_argument(
        "--study", type=Path, metavar="FILE", help="a study.yaml, which draws splits and needs sequences"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--write-bids", type=Path, metavar="DIR", help="write copies with fresh headers in BIDS' layout"
    )
    parser.add_argument("--write-datalist", type=Path, metavar="FILE", help="write a datalist of the files as they lie")
    parser.set_defaults(command=_cohort)


def _cohort(arguments: argparse.Namespace) -> int:
    from client.cohort_summary import summarize
    from client.sources.writing import DESC, require_new, write_bids, write_datalist

    config = read_site_config(arguments.site)
    study = None if arguments.study is None else _read_study(arguments.study)
    if arguments.write_bids is not None:
        require_new(arguments.write_bids)  # before the source is read, which takes longer
    cohort = _load(config, study)
    summary = summarize(cohort)
    if arguments.json:
        print(json.dumps(asdict(summary), indent=1))
    else:
        _show(summary)
    steps = []
    if arguments.write_bids is not None:
        num_images = write_bids(cohort, arguments.write_bids)
        steps.append(
            f"{arguments.write_bids}: {num_images} images written; in a site.yaml: data: {{bids: "
            f"{arguments.write_bids}, desc: {DESC}}}, label_map: {{necrosis: 1, recurrence: 0}}"
        )
    if arguments.write_datalist is not None:
        write_datalist(cohort, arguments.write_datalist, study.sequences if study else ("t1", "t2", "t1ce"))
        steps.append(
            f"{arguments.write_datalist}: {len(cohort.exams)} entries written; in a site.yaml: data: {{datalist: "
            f"{arguments.write_datalist}}}, label_map: {{'1': 1, '0': 0}}"
        )
    if not arguments.json:
        for step in steps:
            print(step)
        print(f"Next: gliorn-client check --site {arguments.site}")
    return 0


def _load(config: SiteConfig, study: Study | None) -> "Cohort":
    """The cohort; without a study it needs no sequences, and patients whose split is drawn are in none."""
    from client.cohort import Cohort, load_cohort
    from client.sources.reading import read_source

    if study is not None:
        return load_cohort(config, study)
    reading = read_source(config, None)
    reading.raise_if_faulty()
    named = {exam.patient_id: exam.split for exam in reading.exams if exam.split is not None}
    return Cohort(config.name, reading.exams, named, "table" if named else "drawn", reading.excluded)


def _show(summary: "CohortSummary") -> None:
    print(f"{summary.site}: {_classes(summary.num_patients)}, {summary.num_exams} exams")
    print("flow:")
    print(f"  screened: {_stage(summary.flow.screened)}")
    for reason, stage in summary.flow.excluded:
        print(f"  excluded, {reason}: {_stage(stage)}")
    print(f"  included: {_stage(summary.flow.included)}")
    if summary.splits is None:
        print("splits: drawn by the study's seed; --study FILE shows them")
    else:
        print(f"splits, {'drawn by the study' if summary.split_source == 'drawn' else 'as the source names them'}:")
        for split, counts in summary.splits.items():
            print(f"  {split}: {_classes(counts)}")
    print("sequences:")
    for sequence, facts in summary.sequences.items():
        print(f"  {sequence}: {_sequence(facts)}")
    print("scanners, by exams:")
    for scanner, count in summary.scanners.items():
        print(f"  {scanner}: {count}")


def _sequence(facts: "SequenceSummary") -> str:
    text = f"{facts.num_exams} exams, {facts.num_lacking} lack it"
    if facts.spacing_mm is not None:
        least, middle, most = (" x ".join(f"{mm:g}" for mm in spacing) for spacing in facts.spacing_mm)
        text += f"; voxels {middle} mm (median)"
        text += "" if least == most else f", {least} to {most} mm"
    return text + (f"; {facts.num_unreadable} files cannot be read" if facts.num_unreadable else "")


def _stage(stage: "Stage") -> str:
    return f"{stage.patients} patients, {stage.exams} exams"


def _classes(counts: tuple[int, int]) -> str:
    return " + ".join(f"{count} {name}" for count, name in zip(counts, CLASS_NAMES, strict=True)) + " patients"


def _read_study(path: Path) -> Study:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {path}: cannot be read ({error}); name a study.yaml in UTF-8") from None
    return parse_study(text, origin=str(path))
