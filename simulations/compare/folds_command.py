"""`gliorn-simulate folds`: federated repeated k-fold, so that every patient is tested once by a model new to him."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import ConfigError
from common.metrics.pooled import Figures
from common.study import Study
from server.method_studies import fold_name, require_methods, study_of_fold, study_of_method
from server.out_of_fold import OutOfFold, fold_run, lines_of, out_of_fold
from server.record import RESEARCH_USE_ONLY
from server.run_folder import write_json
from simulations.compare.allowed import withheld_folds
from simulations.compare.budget import timed_step_s
from simulations.compare.command import allowed_base, base_study, phantoms_of, prepare_exams
from simulations.phantom_sites import positive
from simulations.processors import default_workers
from simulations.side_by_side import PlannedRun, carry_side_by_side
from simulations.single_machine import read_sites

DEFAULT_OUT = Path("runs") / "folds"


@dataclass(frozen=True)
class FoldPlan:
    """What is wanted.

    Attributes:
        base: The study of every fold but for the fold.
        method: What trains it.
        num_folds: Parts of the patients.
        repeats: Divisions into parts.
        out: Folder of the cross-validation.
        workers: Runs side by side.
    """

    base: Study
    method: str
    num_folds: int
    repeats: int
    out: Path
    workers: int

    def runs(self, sites: Sequence[Path]) -> list[PlannedRun]:
        """All folds, those of the first repeat first."""
        return [
            PlannedRun(
                self.out / "runs" / fold_name(self.method, fold=fold, repeat=repeat).replace("_", "-"),
                study_of_fold(self.base, self.num_folds, fold, repeat),
                tuple(sites),
            )
            for repeat in range(self.repeats)
            for fold in range(self.num_folds)
        ]


def folds_command(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out a cross-validation, or go on with it. Returns 0, or 2 where a fold has no result."""
    plan = plan_of(arguments)
    step_s = timed_step_s(plan.base)
    if arguments.dry_run:
        _tell_budget(plan, plan.runs([]), step_s, console)
        console.print("Next: the same command without --dry-run.")
        return 0
    sites = read_sites(arguments.site or phantoms_of(arguments, plan.base, plan.workers, console))
    plan = replace(plan, base=allowed_base(plan.base, sites, arguments, console))
    runs = plan.runs([path for path, _ in sites.values()])
    for line in withheld_folds(runs, {name: config for name, (_, config) in sites.items()}):
        console.print(f"Warning: {line}", style="yellow")
    prepare_exams(plan.base, sites, plan.workers, console)
    left = [run for run in runs if run.record() is None]
    _tell_budget(plan, left, step_s, console)
    failed: dict[str, str] = {}

    def on_end(run: PlannedRun, reason: str | None) -> None:
        console.print(f"{run.name} {'done' if reason is None else f'has no result: {reason}'}")
        if reason is not None:
            failed[run.name] = reason

    carry_side_by_side(left, workers=plan.workers, on_end=on_end)
    if failed:
        console.print("Next: the same command again; folds that are done are not repeated.")
        return 2
    records = [record for run in runs if (record := run.record()) is not None]
    found = out_of_fold([fold_run(record) for record in records])
    for line in lines_of(found):
        console.print(line)
    values = json_values(plan, found)
    write_json(plan.out / "folds.json", values)
    console.print(f"{RESEARCH_USE_ONLY}\nFigures: {plan.out / 'folds.json'}")
    if arguments.json:
        print(json.dumps(values, indent=1))  # noqa: T201 - what --json is for
    return 0


def plan_of(arguments: argparse.Namespace) -> FoldPlan:
    """What a command line asks for.

    Raises:
        ConfigError: If it cannot be.
    """
    methods = require_methods(arguments.method, option="--method")
    if len(methods) != 1 or methods == ["local"]:
        raise ConfigError(f"--method {arguments.method!r}: expected one federated method, such as fedavg")
    if not 2 <= arguments.folds <= 20:
        raise ConfigError(f"--folds {arguments.folds}: expected 2 to 20")
    return FoldPlan(
        base=study_of_method(base_study(arguments), methods[0]),
        method=methods[0],
        num_folds=arguments.folds,
        repeats=positive("--repeats", arguments.repeats) or 1,
        out=(arguments.out or DEFAULT_OUT).resolve(),
        workers=positive("--workers", arguments.workers) or default_workers(),
    )


def _tell_budget(plan: FoldPlan, left: Sequence[PlannedRun], step_s: float, console: Console) -> None:
    training = plan.base.training
    length = f"{training.local_steps} steps" if training.local_steps else f"{training.local_epochs} epochs"
    console.print(
        f"Budget: {plan.num_folds} folds x {plan.repeats} repeats, {len(left)} runs left, each {plan.base.rounds} "
        f"rounds of {length} at every site; a step takes {step_s:.3f} s on one thread, {plan.workers} side by side."
    )


def json_values(plan: FoldPlan, found: OutOfFold) -> dict[str, Any]:
    """`folds.json`."""
    return {
        "notice": RESEARCH_USE_ONLY,
        "study": plan.base.model_dump(mode="json"),
        "num_folds": plan.num_folds,
        "repeats": [
            {
                "repeat": each.repeat,
                "fold_aucs": list(each.fold_aucs),
                "folds_without_threshold": list(each.without_threshold),
                **_figures(each.figures),
            }
            for each in found.repeats
        ],
        "mean_auc": found.mean_auc,
        "sd_of_auc_over_repeats": found.spread,
        "mean_auc_of_folds": found.mean_fold_auc,
        "sd_of_auc_of_folds": found.fold_spread,
    }


def _figures(figures: Figures) -> dict[str, Any]:
    at = figures.at_threshold
    estimates = {"auc": figures.auc.estimate}
    if at is not None:
        estimates |= {"sensitivity": at.sensitivity, "specificity": at.specificity}
    return {"num_recurrence": figures.num_recurrence, "num_necrosis": figures.num_necrosis} | {
        name: {"value": each.value, "low": each.low, "high": each.high, "reason": each.reason}
        for name, each in estimates.items()
    }
