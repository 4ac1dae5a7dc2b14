"""`gliorn-server compare`: runs beside each other, the studies for such runs, and a cross-validation added up."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.metrics.estimate import Estimate
from common.study import Study, parse_study
from server.commands.places import add_federation_argument, federation_folder
from server.compare_with import PERSONAL
from server.federation_folder import admitted
from server.method_studies import METHODS, require_methods, studies_of_plan, studies_without_each, write_studies
from server.out_of_fold import fold_run, lines_of, out_of_fold
from server.repeated_runs import (
    RunGroup,
    auc_of_held_out,
    grouped,
    held_out_site,
    mean_over_runs,
    spread_over_runs,
)
from server.report.comparison_page import ArmRow, ComparisonContents, DifferenceRow, GainRow, render_comparison
from server.run_folder import RunFolder, write_atomically
from server.statistics_note import is_statistics_run

Record = Mapping[str, Any]

LEAVE_ONE_OUT = "leave_one_out"
LOCAL_REMARK = (
    "every hospital's own model at its own threshold: scores of different models have no common scale, so there is no "
    "pooled AUC"
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "compare",
        help="runs beside each other with paired differences; or the studies of such runs",
        description="Show runs beside each other, with the paired differences that `gliorn-server run --compare-with` "
        "has put into their records. With --plan: write one study for each method, for the sites to accept.",
    )
    add_federation_argument(parser)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs that have ended, or paths of folders")
    parser.add_argument(
        "--folds-of", action="store_true", help="the runs are the folds of one cross-validation: add them up"
    )
    parser.add_argument("--plan", type=Path, metavar="STUDY", help="study.yaml that the methods are put into")
    parser.add_argument(
        "--methods",
        default="fedavg,local",
        metavar="NAMES",
        help=f"--plan: out of {', '.join(METHODS)} and {LEAVE_ONE_OUT}, fedavg without each site (fedavg,local)",
    )
    parser.add_argument(
        "--sites",
        metavar="NAMES",
        help=f"--plan: the sites, for {LEAVE_ONE_OUT}; the federation's admitted ones if absent",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="S", help="--plan: studies of S seeds (1)")
    parser.add_argument("--folds", type=int, metavar="K", help="--plan: a study for each of K folds")
    parser.add_argument("--repeats", type=int, default=1, metavar="R", help="--plan: divisions into folds (1)")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="the page (compare.html), or with --plan the folder (studies)"
    )
    parser.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.plan is not None:
        return _plan(arguments)
    if len(set(arguments.runs)) < 2:
        named = arguments.runs[0] if arguments.runs else "no run"
        raise ConfigError(
            f"compare: {named} is named alone; name two runs or more, or write their studies with --plan STUDY"
        )
    records = [_record(arguments, name) for name in arguments.runs]
    if arguments.folds_of:
        for line in lines_of(out_of_fold([fold_run(record) for record in records])):
            print(line)
        return 0
    contents = contents_of(records)
    for line in _lines(contents):
        print(line)
    page = arguments.out or Path("compare.html")
    write_atomically(page.resolve(), render_comparison(contents).encode())
    print(f"Page: {page}")
    if not contents.differences:
        print(
            "No paired differences: none of these runs was begun with --compare-with another of them. "
            "Next: gliorn-server run STUDY --compare-with RUN"
        )
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.runs or arguments.folds_of:
        raise ConfigError("--plan: writes studies, and takes no runs; leave the runs and --folds-of out")
    try:
        text = arguments.plan.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{arguments.plan}: unreadable ({type(error).__name__}), expected a study.yaml") from None
    if arguments.folds is not None and not 2 <= arguments.folds <= 20:
        raise ConfigError(f"--folds {arguments.folds}: expected a whole number from 2 to 20")
    if arguments.repeats < 1 or (arguments.repeats > 1 and arguments.folds is None):
        raise ConfigError(f"--repeats {arguments.repeats}: expected 1 or more, and --folds beside it")
    if arguments.seeds < 1 or (arguments.seeds > 1 and arguments.folds is not None):
        raise ConfigError(f"--seeds {arguments.seeds}: expected 1 or more, and no --folds beside it")
    base = parse_study(text, origin=str(arguments.plan))
    studies = _studies(arguments, base)
    folder = arguments.out or Path("studies")
    paths = write_studies(folder, studies)
    for path, (name, study) in zip(paths, studies.items(), strict=True):
        print(f"{name}: {path}\n  digest {study.digest}")
    print(_budget(studies))
    print("Each site accepts each of them: gliorn-client accept")
    print("Then, one after the other:")
    firsts: dict[int, str] = {}
    for (name, study), path in zip(studies.items(), paths, strict=True):
        first = firsts.setdefault(study.seed, name)
        against = "" if name == first or arguments.folds is not None else f" --compare-with {first}"
        print(f"  gliorn-server run {path} --name {name}{against} --wait")
    what = "--folds-of " if arguments.folds is not None else ""
    print(f"  gliorn-server compare {what}{' '.join(studies)}")
    return 0


def _studies(arguments: argparse.Namespace, base: Study) -> dict[str, Study]:
    """The studies that a command line asks for, those of a seed one after the other."""
    names = [name.strip() for name in arguments.methods.split(",")]
    leaves_out = LEAVE_ONE_OUT in names
    if leaves_out and arguments.folds is not None:
        raise ConfigError(f"--methods {LEAVE_ONE_OUT}: leaves hospitals out, not folds; leave it or --folds out")
    others = ",".join(name for name in names if name != LEAVE_ONE_OUT)
    methods = require_methods(others, option="--methods") if others or not leaves_out else []
    studies = studies_of_plan(
        base, methods, num_folds=arguments.folds, repeats=arguments.repeats, num_seeds=arguments.seeds
    )
    if leaves_out:
        studies |= studies_without_each(base, _sites(arguments), num_seeds=arguments.seeds)
    return dict(sorted(studies.items(), key=lambda named: named[1].seed))


def _sites(arguments: argparse.Namespace) -> list[str]:
    if arguments.sites:
        return list(dict.fromkeys(name.strip() for name in arguments.sites.split(",") if name.strip()))
    return sorted(admitted(federation_folder(arguments).read_register()))


def _budget(studies: Mapping[str, Study]) -> str:
    """What the runs cost, in rounds; how long one takes, only the hospitals know (`gliorn-client check`)."""
    training = next(iter(studies.values())).training
    length = f"{training.local_steps} steps" if training.local_steps else f"{training.local_epochs} epochs"
    rounds = sum(study.rounds for study in studies.values())
    without = [study for study in studies.values() if study.participation.held_out]
    text = f"Budget: {len(studies)} runs, {rounds} rounds of {length} at a site"
    if without:
        spared = sum(study.rounds for study in without) // len({study.participation.held_out for study in without})
        text += f", {spared} fewer at one that is left out in turn"
    twice = [name for name, study in studies.items() if study.personalization.method == "ditto"]
    return text + (f"; twice the steps in {', '.join(twice)}" if twice else "") + "."


def _record(arguments: argparse.Namespace, name: str) -> Record:
    named = federation_folder(arguments).runs / name
    folder = RunFolder(named if named.is_dir() else Path(name))
    if is_statistics_run(folder):
        raise ConfigError(f"{name}: is a run of statistics and tested no model; name runs that trained one")
    try:
        record: Record = json.loads(folder.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder.record}: absent or unreadable, expected the record of a run that has ended"
        ) from None
    return record


def contents_of(records: Sequence[Record]) -> ComparisonContents:
    """What the records of some runs say of each other.

    Raises:
        ConfigError: If one ended without a result.
    """
    if invalid := [record["run"] for record in records if record["outcome"] == "INVALID"]:
        raise ConfigError(f"{', '.join(invalid)}: ended INVALID, without figures; name runs with a result")
    names = [str(record["run"]) for record in records]
    differences, gains, remarks = [], [], []
    for record in records:
        left_out = held_out_site(record)
        for comparison in record.get("comparisons", []):
            first, second = (_model_name(comparison[place]) for place in ("first", "second"))
            if comparison["second"]["run"] not in names:
                continue
            if comparison["within_site"] is None:
                remarks.append(f"{first} − {second}: no figure, only {comparison['not_pooled']}")
                continue
            remarks += [f"{first} − {second}: without {site}, {why}" for site, why in comparison["missing"].items()]
            own = {_method(each) for each in records if each["run"] in (first, second)}
            pooled = None if comparison["pooled"] is None else _estimate(comparison["pooled"]["difference"])
            if "local" in own or PERSONAL in first + second:
                pooled = None
            within = _estimate(comparison["within_site"]["difference"])
            if left_out is None:
                differences.append(DifferenceRow(first, second, pooled, within))
            gains += [
                GainRow(
                    site=site,
                    first=first,
                    second=second,
                    first_auc=row["first"],
                    second_auc=row["second"],
                    gain=_estimate(row["difference"]),
                    num_recurrence=row["num_recurrence"],
                    num_necrosis=row["num_necrosis"],
                )
                for site, row in comparison["per_site"].items()
                if left_out in (None, site)
            ]
    confidence = float(records[0]["study"]["evaluation"]["confidence"])
    return ComparisonContents(
        title=", ".join(names),
        confidence=confidence,
        arms=[row for group in grouped(records) for row in _rows_of_group(group, confidence)],
        differences=differences,
        gains=gains,
        remarks=remarks,
    )


def _rows_of_group(group: RunGroup, confidence: float) -> list[ArmRow]:
    if group.leaves_out:
        return [_row_of_left_out(group, confidence)]
    rows = [_arm_rows(record) for record in group.records]
    if len(rows) == 1:
        return rows[0]
    return [
        _mean_row(f"{group.name}{PERSONAL if place else ''}", [of_run[place] for of_run in rows])
        for place in range(min(map(len, rows)))
    ]


def _row_of_left_out(group: RunGroup, confidence: float) -> ArmRow:
    """What a hospital outside the run is to expect: each under the model that never saw it, over all seeds."""
    by_seed: dict[int, list[Record]] = {}
    for record in group.records:
        by_seed.setdefault(int(record["study"]["seed"]), []).append(record)
    aucs = [auc_of_held_out(records, confidence=confidence) for records in by_seed.values()]
    sites = sorted({str(held_out_site(record)) for record in group.records})
    return ArmRow(
        name=group.name,
        auc=None,
        within_site_auc=mean_over_runs(aucs),
        sensitivity=None,
        specificity=None,
        spread=spread_over_runs(aucs),
        remark=f"tested at {', '.join(sites)}, each by a model trained without it, so there is no pooled AUC; "
        f"{len(by_seed)} seed{'s' if len(by_seed) > 1 else ''}",
    )


def _mean_row(name: str, rows: Sequence[ArmRow]) -> ArmRow:
    """The mean over seeds."""
    found: dict[str, Estimate | None] = {}
    for figure in ("auc", "within_site_auc", "sensitivity", "specificity"):
        estimates = [getattr(row, figure) for row in rows]
        found[figure] = None if None in estimates else mean_over_runs(estimates)
    main = "auc" if found["auc"] is not None else "within_site_auc"
    main_estimates = [each for row in rows if (each := getattr(row, main)) is not None]
    remarks = dict.fromkeys(row.remark for row in rows if row.remark)
    return ArmRow(
        name,
        **found,
        spread=spread_over_runs(main_estimates),
        remark="; ".join([f"mean of {len(rows)} seeds, and of the ends of their intervals", *remarks]),
    )


def _arm_rows(record: Record) -> list[ArmRow]:
    rows = []
    is_local = _method(record) == "local"
    for key, name in (("test", record["run"]), ("personal_test", f"{record['run']}{PERSONAL}")):
        part = record["figures"].get(key)
        if part is None:
            continue
        figures = part["figures"]
        if figures is None:
            rows.append(ArmRow(name, None, None, None, None, remark=str(part["not_pooled"])))
            continue
        own_models = is_local or key == "personal_test"
        at = figures["pooled"]["at_threshold"]
        rows.append(
            ArmRow(
                name=name,
                auc=None if own_models else _estimate(figures["pooled"]["auc"]["estimate"]),
                within_site_auc=_estimate(figures["within_site_auc"]["estimate"]),
                sensitivity=None if at is None else _estimate(at["sensitivity"]),
                specificity=None if at is None else _estimate(at["specificity"]),
                remark=LOCAL_REMARK if own_models else "",
            )
        )
    return rows


def _method(record: Record) -> str:
    return str(record["study"].get("aggregation", {}).get("method", "mean"))


def _model_name(model: Record) -> str:
    return f"{model['run']}{PERSONAL if model['personal'] else ''}"


def _estimate(values: Record) -> Estimate:
    return Estimate(**values)


def _lines(contents: ComparisonContents) -> list[str]:
    lines = []
    for arm in contents.arms:
        figures = asdict(arm)
        said = ", ".join(
            f"{label} {getattr(arm, key)}"
            for key, label in (
                ("auc", "AUC"),
                ("within_site_auc", "within sites"),
                ("sensitivity", "sensitivity"),
                ("specificity", "specificity"),
            )
            if figures[key] is not None
        )
        lines.append(f"{arm.name}: {said or arm.remark}")
    for row in contents.differences:
        pooled = "" if row.pooled is None else f", pooled {row.pooled}"
        lines.append(f"{row.first} − {row.second}: within sites {row.within_site}{pooled}")
    lines += [f"  {row.site}: {row.first} − {row.second} {row.gain}" for row in contents.gains]
    return lines + list(contents.remarks)
