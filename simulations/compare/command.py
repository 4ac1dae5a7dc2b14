"""`gliorn-simulate compare`: trains every arm over several seeds and shows what training together brings."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client.cohort import load_cohort
from client.config import SiteConfig, read_site_config
from common.errors import ConfigError
from common.metrics.confusion import Confusion
from common.study import Study
from server.method_studies import require_methods, study_text
from server.record import RESEARCH_USE_ONLY
from server.report.comparison_page import ArmRow, ComparisonContents, DifferenceRow, GainRow, render_comparison
from server.run_folder import write_atomically, write_json
from simulations.compare.allowed import finest_allowed
from simulations.compare.arms import FIXED_ARMS, ArmRun, require_arms, runs_of_arms, with_equal_steps
from simulations.compare.budget import Budget, budget_of, timed_step_s
from simulations.compare.figures import ABROAD, LOCAL, ArmSeed, abroad_row, arm_row, difference_row, gain_rows
from simulations.compare.pooled_site import share_cache, write_pooled_site
from simulations.compare.scores import Scores, scores_abroad, scores_of_run
from simulations.display import progress_bar
from simulations.phantom_sites import hospital_names, phantom_sites, positive
from simulations.processors import default_workers
from simulations.run_command import DEMO_SPACING_MM
from simulations.side_by_side import PlannedRun, carry_side_by_side
from simulations.single_machine import prepare_sites, read_sites
from simulations.studies import refuse_options, study_of_command, with_changes

DEFAULT_OUT = Path("runs") / "compare"
WITHOUT_MEANING = ("fedprox_mu", "engine", "resume", "fault", "initial_weights")
"""Options of the plain command that a comparison and a cross-validation have no use for."""

OWN_MODELS = ("ditto", "fine_tune")
POOLED_ARMS = ("pooled", "pooled_long")
NORMS_OF_SITES = ("fedbn", "silobn")

Sites = dict[str, tuple[Path, SiteConfig]]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is wanted.

    Attributes:
        base: The study that all arms have in common.
        arms: Their names.
        seeds: Of the studies: splits, initial weights, order.
        out: The comparison's folder.
        workers: Runs side by side.
    """

    base: Study
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    workers: int


def compare_command(arguments: argparse.Namespace, console: Console) -> int:
    """Carry out a comparison, or go on with it. Returns 0, or 2 where runs have no result."""
    plan = plan_of(arguments)
    if arguments.dry_run:
        names = _site_names(arguments)
        if plan.base.training.local_steps is None:
            raise ConfigError("--dry-run: the study counts epochs, whose steps follow from the sites; set local_steps")
        runs = _runs(plan, {name: Path(name) for name in names}, dict.fromkeys(plan.seeds, Path()))
        for line in _budget(plan, runs, num_sites=len(names)).lines():
            console.print(line)
        console.print("Next: the same command without --dry-run.")
        return 0
    sites = read_sites(arguments.site or phantoms_of(arguments, plan.base, plan.workers, console))
    plan = replace(plan, base=allowed_base(plan.base, sites, arguments, console))
    plan = _with_steps(plan, sites)
    prepare_exams(plan.base, sites, plan.workers, console)
    pooled = _pooled_sites(plan, sites)
    runs = _runs(plan, {name: path for name, (path, _) in sites.items()}, pooled)
    for line in _budget(plan, runs, num_sites=len(sites)).lines():
        console.print(line)
    write_atomically(_made(plan.out) / "study.yaml", study_text(plan.base).encode())
    failed = _carry(plan, runs, console)
    contents, measured = sum_up(plan, runs, sites, {seed: read_site_config(path) for seed, path in pooled.items()})
    page = plan.out / "comparison.html"
    write_atomically(page, render_comparison(contents).encode())
    values = json_values(plan, contents, measured, failed)
    write_json(plan.out / "comparison.json", values)
    _show(contents, measured, console)
    for name, reason in failed.items():
        console.print(f"{name} has no result: {reason}", style="bold red")
    console.print(f"{RESEARCH_USE_ONLY}\nFigures: {plan.out / 'comparison.json'}\nPage: {page}")
    if arguments.json:
        print(json.dumps(values, indent=1))  # noqa: T201 - what --json is for
    return 2 if failed else 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What a command line asks for.

    Raises:
        ConfigError: If it cannot be.
    """
    base = base_study(arguments)
    methods = [method for method in require_methods(arguments.methods, option="--methods") if method != "local"]
    fixed = [name.strip() for name in arguments.arms.split(",") if name.strip()]
    if strange := [name for name in fixed if name not in FIXED_ARMS]:
        raise ConfigError(f"--arms {', '.join(strange)}: expected some of {', '.join(FIXED_ARMS)}")
    num_seeds = positive("--seeds", arguments.seeds) or 1
    return Plan(
        base=base,
        arms=tuple(require_arms([*fixed, *methods])),
        seeds=tuple(range(base.seed, base.seed + num_seeds)),
        out=(arguments.out or DEFAULT_OUT).resolve(),
        workers=positive("--workers", arguments.workers) or default_workers(),
    )


def base_study(arguments: argparse.Namespace) -> Study:
    """The study that a command line names, or the comparison's own, with the command's changes.

    Raises:
        ConfigError: If it cannot be read, or options contradict each other.
    """
    refuse_options(arguments, WITHOUT_MEANING, place="a comparison")
    base = study_of_command(arguments, default="compare_study.yaml")
    if base.participation.held_out:
        raise ConfigError(
            "participation.held_out has no place in a comparison's study; the arm leave_one_out leaves each site out "
            "in turn"
        )
    return base


def _site_names(arguments: argparse.Namespace) -> list[str]:
    if arguments.site:
        return list(read_sites(arguments.site))
    return [f"hospital-{letter.lower()}" for letter in hospital_names(arguments)]


def phantoms_of(arguments: argparse.Namespace, base: Study, workers: int, console: Console) -> list[Path]:
    """The phantom hospitals that a command line asks for, drawn where they are not there yet."""
    return phantom_sites(arguments, console, seed=base.seed, spacing_mm=DEMO_SPACING_MM, workers=workers)


def allowed_base(base: Study, sites: Sites, arguments: argparse.Namespace, console: Console) -> Study:
    """The study with the bins that all sites show, which is said where they are fewer; see `finest_allowed`."""
    configs = {name: config for name, (_, config) in sites.items()}
    allowed = finest_allowed(base, configs, is_own=arguments.study is None)
    if allowed != base:
        console.print(f"Scores are counted in {allowed.evaluation.num_bins} bins, the most that every site shows.")
    return allowed


def _with_steps(plan: Plan, sites: Sites) -> Plan:
    counts = {name: len(load_cohort(config, plan.base).exams_of("train")) for name, (_, config) in sites.items()}
    return Plan(with_equal_steps(plan.base, counts), plan.arms, plan.seeds, plan.out, plan.workers)


def prepare_exams(base: Study, sites: Sites, workers: int, console: Console) -> None:
    """Prepare the exams of all sites, with a bar."""
    total = sum(len(load_cohort(config, base).exams) for _, config in sites.values())
    done: dict[str, int] = {}
    with progress_bar(console, "exams to prepare", total) as bar:

        def on_exam(site: str, count: int, _: int) -> None:
            bar.advance(count - done.get(site, 0))
            done[site] = count

        prepare_sites(base, sites, workers=workers, on_exam=on_exam)


def _pooled_sites(plan: Plan, sites: Sites) -> dict[int, Path]:
    """The pooled site of each seed, since each seed splits the patients anew; none where no arm needs it."""
    if not set(plan.arms) & set(POOLED_ARMS):
        return {}
    configs = {name: config for name, (_, config) in sites.items()}
    share_cache(plan.out / "pooled" / "cache", configs)
    return {
        seed: write_pooled_site(plan.out / "pooled" / f"seed-{seed}", configs, _seeded(plan.base, seed))
        for seed in plan.seeds
    }


def _seeded(study: Study, seed: int) -> Study:
    return with_changes(study, seed=seed)


def _runs(plan: Plan, sites: Mapping[str, Path], pooled: Mapping[int, Path]) -> list[ArmRun]:
    return runs_of_arms(plan.base, plan.arms, seeds=plan.seeds, sites=sites, pooled=pooled, out=plan.out)


def _budget(plan: Plan, runs: Sequence[ArmRun], *, num_sites: int) -> Budget:
    left = [run for run in runs if run.planned.record() is None]
    step_s = timed_step_s(plan.base)
    return budget_of(runs, left, plan.base, num_sites=num_sites, workers=plan.workers, step_s=step_s)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _carry(plan: Plan, runs: Sequence[ArmRun], console: Console) -> dict[str, str]:
    """Carry what is left; returns the reason for each run that has no result."""
    left = [run.planned for run in runs if run.planned.record() is None]
    failed: dict[str, str] = {}
    done = len(runs) - len(left)

    def on_end(run: PlannedRun, reason: str | None) -> None:
        nonlocal done
        done += 1
        if reason is not None:
            failed[run.name] = reason
        console.print(f"{done} of {len(runs)}: {run.name} {'done' if reason is None else 'has no result'}")

    carry_side_by_side(left, workers=plan.workers, on_end=on_end)
    return failed


# --- what came out ----------------------------------------------------------------------------------------------------


def sum_up(
    plan: Plan, runs: Sequence[ArmRun], sites: Sites, pooled: Mapping[int, SiteConfig]
) -> tuple[ComparisonContents, dict[str, Any]]:
    """All figures of the arms whose every run has a result, and what the questions of a comparison come to."""
    configs = {name: config for name, (_, config) in sites.items()}
    tested: dict[str, list[ArmSeed]] = {}
    abroad: list[Scores] = []
    confidence = plan.base.evaluation.confidence
    for arm in plan.arms:
        seeds = []
        for seed in plan.seeds:
            own = [(run, run.planned.record()) for run in runs if (run.arm, run.seed) == (arm, seed)]
            finished = [(run, record) for run, record in own if record is not None]
            if len(finished) == len(own):
                seeds.append(_tested(arm, finished, configs, pooled.get(seed)))
            if arm == LOCAL and len(finished) == len(own):
                abroad += [scores_abroad(run, record, configs) for run, record in finished]
        if len(seeds) == len(plan.seeds):
            tested[_shown(arm)] = seeds
    arms = [arm_row(name, seeds, confidence=confidence) for name, seeds in tested.items()]
    if LOCAL in tested:
        arms.insert([row.name for row in arms].index(LOCAL) + 1, abroad_row(abroad, confidence=confidence))
    differences, gains = _differences(tested, confidence)
    contents = ComparisonContents(
        title=f"{plan.base.name}, {len(plan.seeds)} seeds, {len(sites)} hospitals",
        confidence=confidence,
        arms=arms,
        differences=differences,
        gains=gains,
        remarks=_remarks(plan, len(sites)),
    )
    return contents, _measured(arms, differences, gains)


def _shown(arm: str) -> str:
    return f"{arm} (own models)" if arm in OWN_MODELS else arm


def _tested(
    arm: str, runs: Sequence[tuple[ArmRun, Record]], sites: Mapping[str, SiteConfig], pooled: SiteConfig | None
) -> ArmSeed:
    personal = arm in OWN_MODELS
    scores: Scores = reduce(
        lambda found, more: {**found, **more},
        (scores_of_run(run, record, sites, pooled=pooled, personal=personal) for run, record in runs),
        {},
    )
    counts = [_confusion(run, record, personal=personal) for run, record in runs]
    known = [each for each in counts if each is not None]
    return ArmSeed(scores, reduce(add, known) if len(known) == len(counts) else None)


def _confusion(run: ArmRun, record: Record, *, personal: bool) -> Confusion | None:
    """Counts at the run's frozen threshold; of a run that leaves a site out, that site's alone."""
    part = record["figures"].get("personal_test" if personal else "test")
    if part is None or part["figures"] is None:
        return None
    figures = part["figures"]
    row = figures["per_site"].get(run.site) if run.arm == "leave_one_out" else figures["pooled"]
    at = None if row is None else row["at_threshold"]
    return None if at is None else Confusion(**at["counts"])


def _differences(
    tested: Mapping[str, Sequence[ArmSeed]], confidence: float
) -> tuple[list[DifferenceRow], list[GainRow]]:
    """Every other arm against FedAvg, and every arm against the hospitals by themselves; gains of the latter."""
    differences, gains = [], []
    for first, own in tested.items():
        for second in ("fedavg", LOCAL):
            other = tested.get(second)
            if other is None or first in (second, LOCAL):
                continue
            pairs = list(zip(own, other, strict=True))
            differences.append(difference_row(first, second, pairs, confidence=confidence))
            gains += gain_rows(first, second, pairs, confidence=confidence)
    return differences, gains


def _remarks(plan: Plan, num_sites: int) -> list[str]:
    base, steps = plan.base, plan.base.training.local_steps
    return [
        f"Every model: {base.rounds} rounds of {steps} steps ({base.training.optimizer}, learning rate "
        f"{base.training.learning_rate:g}, batches of {base.training.batch_size}); pooled: batches of "
        f"{base.training.batch_size * num_sites}; pooled_long: {steps} × {num_sites} steps a round. Nothing was tuned "
        "for any arm.",
        "Each run chose its round and its threshold on validation patients of its own arm; test patients took no part.",
        "Seeds share the hospitals and split, initialise and shuffle anew. Intervals are for other test patients; the "
        "standard deviation is between seeds.",
        "The pooled arms and the models on other hospitals' patients exist on one machine alone: in a real federation "
        "nobody has them.",
        *_remarks_on_methods(plan),
    ]


def _remarks_on_methods(plan: Plan) -> list[str]:
    """Where an arm differs from the others in more than its method, or does more work."""
    remarks, personalization = [], plan.base.personalization
    if "ditto" in plan.arms:
        remarks.append(
            "ditto trains twice as many batches as the other federated arms: each hospital's own model beside the "
            "global one."
        )
    if "fine_tune" in plan.arms:
        remarks.append(
            f"fine_tune trains more than the other arms: {personalization.fine_tune_epochs} epochs of the last block "
            "at each hospital after the rounds, which the budget does not count."
        )
    own_norms = [arm for arm in NORMS_OF_SITES if arm in plan.arms]
    if own_norms:
        remarks.append(
            f"{' and '.join(own_norms)}: each hospital scores with normalisation layers of its own in the shared "
            "model, and the pooled AUC compares such scores across hospitals all the same."
        )
    if own_norms and plan.base.model.norm == "group":
        remarks.append(
            f"{' and '.join(own_norms)}: batch norm in place of the base study's group norm, so the difference from "
            "the other arms is that of the normalisation as well; the method batch_norm tells the two apart."
        )
    return remarks


def _measured(arms: Sequence[ArmRow], differences: Sequence[DifferenceRow], gains: Sequence[GainRow]) -> dict[str, Any]:
    """What the three questions of a comparison come to; a question whose arms are absent is left out."""
    row = {arm.name: arm for arm in arms}
    found: dict[str, Any] = {}
    for pooled in POOLED_ARMS:
        difference = next((d for d in differences if (d.first, d.second) == (pooled, "fedavg")), None)
        if difference is not None and difference.pooled is not None and difference.pooled.value is not None:
            found[f"fedavg_minus_{pooled}"] = -difference.pooled.value
    within = next((d.within_site for d in differences if (d.first, d.second) == ("fedavg", LOCAL)), None)
    if within is not None:
        found["fedavg_minus_local_within_sites"] = within.value
    if "fedavg" in row and ABROAD in row:
        ours, theirs = row["fedavg"].auc, row[ABROAD].auc
        if ours is not None and theirs is not None and ours.value is not None and theirs.value is not None:
            found["fedavg_minus_local_on_all_patients"] = ours.value - theirs.value
    by_method: dict[str, dict[str, float]] = {}
    for gain in gains:
        if gain.second == "fedavg" and gain.first_auc is not None and gain.second_auc is not None:
            by_method.setdefault(gain.first, {})[gain.site] = gain.first_auc
            by_method.setdefault("fedavg", {})[gain.site] = gain.second_auc
    found["auc_at_worst_site"] = {name: min(aucs.values()) for name, aucs in by_method.items()}
    return found


def json_values(
    plan: Plan, contents: ComparisonContents, measured: Mapping[str, Any], failed: Mapping[str, str]
) -> dict[str, Any]:
    """`comparison.json`."""
    return {
        "notice": RESEARCH_USE_ONLY,
        "study": plan.base.model_dump(mode="json"),
        "seeds": list(plan.seeds),
        "arms": [asdict(arm) for arm in contents.arms],
        "differences": [asdict(row) for row in contents.differences],
        "gains": [asdict(row) for row in contents.gains],
        "measured": dict(measured),
        "without_result": dict(failed),
        "remarks": list(contents.remarks),
    }


def _show(contents: ComparisonContents, measured: Mapping[str, Any], console: Console) -> None:
    table = Table(title=f"{contents.title}, {100 * contents.confidence:g} % intervals")
    for heading in ("arm", "pooled AUC", "within-site AUC", "sensitivity", "specificity", "SD over seeds"):
        table.add_column(heading, no_wrap=True)
    for arm in contents.arms:
        figures = (arm.auc, arm.within_site_auc, arm.sensitivity, arm.specificity)
        spread = "–" if arm.spread is None else f"{arm.spread:.3f}"
        table.add_row(arm.name, *("–" if each is None else str(each) for each in figures), spread)
    console.print(table)
    paired = Table(title="Paired differences of AUC")
    for heading in ("difference", "within sites", "pooled"):
        paired.add_column(heading, no_wrap=True)
    for row in contents.differences:
        cells = ("–" if each is None else str(each) for each in (row.within_site, row.pooled))
        paired.add_row(f"{row.first} − {row.second}", *cells)
    console.print(paired)
    for question, value in measured.items():
        if isinstance(value, Mapping):
            console.print(f"{question}: " + ", ".join(f"{name} {auc:.3f}" for name, auc in value.items()))
        elif value is not None:
            console.print(f"{question}: {value:+.3f}")
    for remark in contents.remarks:
        console.print(remark)
