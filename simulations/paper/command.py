"""`gliorn-simulate paper`: trains the cells of the table on phantoms and shows them beside the published figures."""

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from common.errors import ConfigError, GliornError
from common.study import Study
from server.record import RESEARCH_USE_ONLY
from server.report.page import Fact
from server.report.reading import Record, read_record
from server.report.wording import count
from server.run_folder import RunFolder, write_atomically, write_json
from simulations.display import progress_bar
from simulations.paper.budget import Budget, parts_of_arm, time_steps, work_of
from simulations.paper.cells import ARM_NAMES, HOSPITALS_OF_ARM, SEQUENCES_OF, Arm, Cell, cells_of, study_of
from simulations.paper.hospitals import patients_by_hospital, write_sites
from simulations.paper.page import page_of, render
from simulations.paper.published import MODEL_NAMES, MRESNET_REMARK, SEQUENCE_NAMES, SOURCE, SequenceSet
from simulations.paper.table import WHAT_IT_IS_NOT, json_rows, table_rows, terminal_table, tested_by
from simulations.phantom.federation import num_patients_to_draw, write_hospitals
from simulations.phantom.spec import PhantomOptions
from simulations.phantom_sites import DATA_FOLDER, positive, separation_of
from simulations.processors import default_workers
from simulations.side_by_side import PlannedRun, carry_side_by_side
from simulations.single_machine import prepare_sites, read_sites
from simulations.studies import read_study, refuse_options

STUDY = "paper_study.yaml"
WITHOUT_MEANING = ("site", "sites", "fedprox_mu", "engine", "resume", "fault", "initial_weights")
"""Options of the plain command that the table has no use for."""

NameT = TypeVar("NameT", bound=str)


class StoppedError(GliornError):
    """The command was interrupted."""

    code = "stopped"


@dataclass(frozen=True)
class Plan:
    """What a command asks for, checked.

    Attributes:
        out: Folder of the table.
        data: Folder of the phantoms.
        studies: The study of every cell.
        counts: Patients of every hospital.
        options: Of the phantoms.
        workers: Cells side by side.
    """

    out: Path
    data: Path
    studies: Mapping[Cell, Study]
    counts: Mapping[str, int]
    options: PhantomOptions
    workers: int

    @property
    def cells(self) -> list[Cell]:
        """All cells."""
        return list(self.studies)

    @property
    def arms(self) -> list[Arm]:
        """Where they train."""
        return [arm for arm in ARM_NAMES if any(cell.arm == arm for cell in self.cells)]

    @property
    def phantoms_file(self) -> Path:
        """Says which phantoms a table is of."""
        return self.out / "phantoms.json"

    def require_same_phantoms(self) -> None:
        """Refuse a folder whose table is of other phantoms, before anything is computed; raises ConfigError."""
        if not self.phantoms_file.exists():
            return
        known = json.loads(self.phantoms_file.read_text(encoding="utf-8"))["folder"]
        if known != str(self.data):
            raise ConfigError(
                f"--out {self.out}: holds a table of the phantoms in {known}, asked for are those in {self.data}; "
                "give the same --patients, --separation, --seed and --data as at first, or another --out"
            )

    def run_of(self, cell: Cell) -> PlannedRun:
        """The run of a cell."""
        homes = self.sites_folder(cell.arm, cell.seed)
        names = [f"hospital-{letter.lower()}" for letter in HOSPITALS_OF_ARM[cell.arm]]
        sites = tuple(homes / name / "site.yaml" for name in names)
        return PlannedRun(self.out / "cells" / cell.name, self.studies[cell], sites)

    def sites_folder(self, arm: Arm, seed: int) -> Path:
        """Where an arm's sites have their tables; only the split of the one hospital follows the seed."""
        return self.out / "sites" / (f"one-seed-{seed}" if arm == "one" else "five")


def paper_command(arguments: argparse.Namespace, console: Console) -> int:
    """Train what is not there yet and show the table; returns 0, or 2 where a cell has no result."""
    plan = plan_of(arguments)
    plan.require_same_phantoms()
    runs = {cell: plan.run_of(cell) for cell in plan.cells}
    records = {cell: record for cell, run in runs.items() if (record := _record(run)) is not None}
    left = {cell: run for cell, run in runs.items() if cell not in records}
    budget = budget_of(plan, left)
    console.print(budget.line())
    console.print(f"{WHAT_IT_IS_NOT}\nFolder of the table: {plan.out}")
    if arguments.dry_run:
        return 0
    failures: dict[Cell, str] = {}
    try:
        if left:
            _make_sites(plan, console)
            _prepare(plan, left, console)
            failures = _run(plan, left, records, console)
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped with {len(records)} of {len(plan.cells)} cells finished; the same command goes on from there"
        ) from None
    return _sum_up(plan, records, failures, console, as_json=arguments.json)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What the command asks for.

    Raises:
        ConfigError: If an option cannot be used.
    """
    refuse_options(arguments, WITHOUT_MEANING, place="the paper's table")
    models = _chosen("--models", arguments.models, tuple(MODEL_NAMES))
    sequences = _chosen("--sequences", arguments.sequences, tuple(SEQUENCE_NAMES))
    arms: list[Arm] = ["one", "five"] if arguments.federated else ["one"]
    num_seeds = positive("--seeds", arguments.seeds) or 1
    first = 0 if arguments.seed is None else arguments.seed
    base = read_study(arguments.study, default=STUDY)
    cells = cells_of(arms=arms, models=models, sequences=sequences, seeds=range(first, first + num_seeds))
    studies = {cell: study_of(cell, base, rounds=arguments.rounds, width=arguments.width) for cell in cells}
    spacing_mm = min(base.preprocessing.spacing_mm)
    options = PhantomOptions(separation=separation_of(arguments), seed=first, spacing_mm=spacing_mm)
    counts = patients_by_hospital(arms, arguments.patients)
    size = "full" if arguments.patients is None else str(arguments.patients)
    folder = f"paper-separation-{options.separation:g}-seed-{first}-{spacing_mm:g}mm-{size}"
    return Plan(
        out=(arguments.out or Path("runs") / "paper").resolve(),
        data=(arguments.data or DATA_FOLDER).resolve() / folder,
        studies=studies,
        counts=counts,
        options=options,
        workers=positive("--workers", arguments.workers) or default_workers(),
    )


def _chosen(option: str, text: str | None, known: Sequence[NameT]) -> list[NameT]:
    """Names out of a list with commas, in the paper's order; all where none was given."""
    if text is None:
        return list(known)
    asked = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ConfigError(f"{option} {text}: expected names out of {', '.join(known)}, with commas between them")
    return [name for name in known if name in asked]


def _record(run: PlannedRun) -> Record | None:
    """The record of a cell's run that has ended with a result."""
    return None if run.record() is None else read_record(RunFolder(run.path))


def budget_of(plan: Plan, left: Collection[Cell]) -> Budget:
    """Count the batches of the cells that are left, and time one of each model."""
    some_study = next(iter(plan.studies.values()))
    parts = {arm: parts_of_arm(arm, some_study, plan.counts, plan.options) for arm in plan.arms}
    times = time_steps({cell: plan.studies[cell] for cell in left})
    works = [(cell, work_of(plan.studies[cell], parts[cell.arm])) for cell in left]
    seconds = sum(work.seconds(times[cell.model]) for cell, work in works)
    side_by_side = max(1, min(plan.workers, default_workers(), len(left)))
    return Budget(
        num_cells=len(plan.cells),
        num_finished=len(plan.cells) - len(left),
        patients={arm: sum(plan.counts[letter] for letter in HOSPITALS_OF_ARM[arm]) for arm in plan.arms},
        num_steps=sum(work.num_steps for _, work in works),
        minutes=seconds / 60 / side_by_side,
        workers=side_by_side,
    )


def _make_sites(plan: Plan, console: Console) -> None:
    """Draw the phantoms that are not there, and write the tables of the sites."""
    plan.out.mkdir(parents=True, exist_ok=True)
    write_json(plan.phantoms_file, {"folder": str(plan.data)})
    names = list(plan.counts)
    with progress_bar(
        console, "phantom patients to draw", num_patients_to_draw(plan.data, names, plan.options, plan.counts)
    ) as bar:
        paths = write_hospitals(
            plan.data, names, plan.options, num_patients=plan.counts, workers=plan.workers, on_patient=bar.advance
        )
    phantoms = dict(zip(names, paths, strict=True))
    for arm, seed in dict.fromkeys((cell.arm, cell.seed) for cell in plan.cells):
        validation_share = next(iter(plan.studies.values())).split.validation
        write_sites(plan.sites_folder(arm, seed), phantoms, arm, validation_share=validation_share, seed=seed)


def _prepare(plan: Plan, left: Mapping[Cell, PlannedRun], console: Console) -> None:
    """Prepare the exams of each arm once for each set of sequences, which models and seeds share."""
    wanted: dict[tuple[Arm, SequenceSet], PlannedRun] = {}
    for cell, run in left.items():
        wanted.setdefault((cell.arm, cell.sequences), run)
    total = sum(_num_patients(run) for run in wanted.values())
    with progress_bar(console, "exams to prepare", total) as bar:
        for run in wanted.values():
            done: dict[str, int] = {}

            def on_exam(site: str, number: int, _: int, done: dict[str, int] = done) -> None:
                bar.advance(number - done.get(site, 0))
                done[site] = number

            prepare_sites(run.study, read_sites(run.sites), workers=plan.workers, on_exam=on_exam)


def _num_patients(run: PlannedRun) -> int:
    """Rows of the sites' tables."""
    return sum(len((path.parent / "table.tsv").read_text(encoding="utf-8").splitlines()) - 1 for path in run.sites)


def _run(plan: Plan, left: Mapping[Cell, PlannedRun], records: dict[Cell, Record], console: Console) -> dict[Cell, str]:
    """Run the cells that are left and show a line of each; returns those without a result, and why."""
    failures: dict[Cell, str] = {}
    cells = {run.name: cell for cell, run in left.items()}
    with progress_bar(console, "cells to train", len(left)) as bar:

        def on_end(run: PlannedRun, reason: str | None) -> None:
            cell = cells[run.name]
            record = _record(run) if reason is None else None
            if record is None:
                failures[cell] = reason or "its run left no record"
                console.print(f"{run.name}: no result: {failures[cell]}")
            else:
                records[cell] = record
                console.print(f"{run.name}: test AUC {tested_by(record).figures['auc']}")
            bar.advance()

        carry_side_by_side(list(left.values()), workers=plan.workers, on_end=on_end)
    return failures


def _sum_up(
    plan: Plan,
    records: Mapping[Cell, Record],
    failures: Mapping[Cell, str],
    console: Console,
    *,
    as_json: bool,
) -> int:
    rows = table_rows(plan.cells, records)
    problems = [f"{cell.name}: {reason}" for cell, reason in failures.items()]
    num_seeds = len({cell.seed for cell in plan.cells})
    values: dict[str, Any] = {
        "schema": 1,
        "notice": RESEARCH_USE_ONLY,
        "warning": WHAT_IT_IS_NOT,
        "source": SOURCE,
        "mresnet": MRESNET_REMARK,
        "phantoms": asdict(plan.options) | {"num_patients": dict(plan.counts)},
        "seeds": sorted({cell.seed for cell in plan.cells}),
        "rows": json_rows(rows),
        "problems": problems,
        "cells": {
            cell.name: {
                "study_digest": plan.studies[cell].digest,
                "num_groups": plan.studies[cell].model.num_groups,
                "sequences": SEQUENCES_OF[cell.sequences],
                "outcome": records[cell].outcome if cell in records else "INVALID",
                "best_round": None if cell not in records else _best_round(records[cell]),
            }
            for cell in plan.cells
        },
        "versions": next((record.versions for record in records.values()), {}),
    }
    write_json(plan.out / "paper.json", values)
    page = page_of(rows, facts=_facts(plan, records), problems=problems, num_seeds=num_seeds, version=version("gliorn"))
    write_atomically(plan.out / "paper.html", render(page).encode())
    console.print()
    console.print(terminal_table(rows))
    for row in rows:
        if row.published is not None and row.published.remark is not None:
            console.print(f"{row.name}: {row.published.remark.text}")
    if any(row.model == "mresnet" for row in rows):
        console.print(MRESNET_REMARK)
    console.print(f"Published: {SOURCE}; figures by sequence as reported second-hand.")
    console.print(f"{WHAT_IT_IS_NOT}\n{RESEARCH_USE_ONLY}\nPage: {plan.out / 'paper.html'}")
    if as_json:
        print(json.dumps(values, indent=1))  # noqa: T201 - what --json is for
    if failures:
        console.print(f"{count(len(failures), 'cell')} without a result; the same command tries again.")
    return 2 if failures else 0


def _best_round(record: Record) -> int | None:
    return None if record.selection is None else record.selection.best.round


def _facts(plan: Plan, records: Mapping[Cell, Record]) -> list[Fact]:
    """What the table was made of, for the page."""
    studies = list(plan.studies.values())
    seeds = sorted({cell.seed for cell in plan.cells})
    study = studies[0]
    facts = [Fact("Cells", f"{len(records)} of {len(plan.cells)} with a result")]
    for arm in plan.arms:
        patients = sum(plan.counts[letter] for letter in HOSPITALS_OF_ARM[arm])
        facts.append(Fact(ARM_NAMES[arm][0].upper() + ARM_NAMES[arm][1:], count(patients, "phantom")))
    size = " × ".join(str(voxels) for voxels in study.preprocessing.size_voxels)
    spacing = " × ".join(f"{mm:g}" for mm in study.preprocessing.spacing_mm)
    return [
        *facts,
        Fact("Separation of the classes", f"{plan.options.separation:g}"),
        Fact("Seeds", ", ".join(str(seed) for seed in seeds)),
        Fact("Rounds", str(study.rounds)),
        Fact("Width of the models", f"{study.model.width:g}"),
        Fact("Crop", f"{size} voxels of {spacing} mm"),
    ]
