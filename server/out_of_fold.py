"""Repeated k-fold cross-validation of a federation: every patient is tested once by a model that had not seen him.

The test counts of the folds are added up, as those of sites are: every patient stands in one of them per repeat. The
scores come from as many models as there are folds, each on its own scale, so the pooled AUC also pays for shifts
between the models (Airola et al., Comput. Stat. Data Anal. 55 (2011) 1828); the mean of the folds' own AUCs does not,
and is given beside it. Counts at the threshold are each fold's at its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from statistics import fmean, stdev
from typing import Any

from common.errors import ConfigError, list_of_faults
from common.metrics.auc import Auc, pooled_auc
from common.metrics.bins import MarginBins
from common.metrics.estimate import not_estimable
from common.metrics.pooled import Figures, figures_of
from common.metrics.site_statistics import SiteStatistics
from common.study import Study
from server.pooling import OWN_SCALES


@dataclass(frozen=True)
class FoldRun:
    """A run that tested one fold.

    Attributes:
        run: Its name.
        study: Its study.
        statistics: Pooled test counts.
        sites: Sites in them.
        within_site_auc: Of this fold's test.
    """

    run: str
    study: Study
    statistics: SiteStatistics
    sites: tuple[str, ...]
    within_site_auc: float | None = None


@dataclass(frozen=True)
class Repeat:
    """One division of the patients into folds.

    Attributes:
        repeat: Its number.
        figures: Over all folds together.
        fold_aucs: Of each fold by itself, in order; None where a class is missing. Where every site trains by itself,
            those within sites, and the figures have no pooled AUC.
        without_threshold: Folds that chose none, where a class was missing from their validation patients. The repeat
            then has no figures at a threshold: they would leave out these folds' patients.
    """

    repeat: int
    figures: Figures
    fold_aucs: tuple[float | None, ...]
    without_threshold: tuple[int, ...]


@dataclass(frozen=True)
class OutOfFold:
    """A whole cross-validation.

    Attributes:
        repeats: In order.
        mean_auc: Mean of the repeats' pooled AUCs.
        spread: Their standard deviation; None with one repeat.
        mean_fold_auc: Mean of the AUCs of single folds; None where there is none.
        fold_spread: Their standard deviation.
    """

    repeats: tuple[Repeat, ...]
    mean_auc: float | None
    spread: float | None
    mean_fold_auc: float | None
    fold_spread: float | None


def fold_run(record: Mapping[str, Any]) -> FoldRun:
    """What a run's record says of its fold.

    Raises:
        ConfigError: If its study has no folds, or it has no pooled test figures.
    """
    study = Study.model_validate_json(json.dumps(record["study"]))
    if study.split.num_folds is None:
        raise ConfigError(f"run {record['run']}: its study has no split.num_folds; name runs of a cross-validation")
    test = record.get("figures", {}).get("test")
    if test is None or test["figures"] is None:
        why = record["outcome"] if test is None else test["not_pooled"]
        raise ConfigError(f"run {record['run']}: no pooled test figures ({why}); carry this fold out again")
    values = dict(test["figures"]["statistics"])
    bins = MarginBins(**values.pop("bins"))
    statistics = SiteStatistics.from_integers(values, bins=bins, has_threshold="confusion" in values)
    within = test["figures"]["within_site_auc"]["estimate"]["value"]
    return FoldRun(record["run"], study, statistics, tuple(sorted(test["figures"]["per_site"])), within)


def out_of_fold(runs: Sequence[FoldRun]) -> OutOfFold:
    """Add up the folds of each repeat.

    Raises:
        ConfigError: If folds are missing or there twice, or runs are of different studies or sites.
    """
    _require_whole(runs)
    spec = runs[0].study.evaluation
    repeats = []
    for number in sorted({run.study.split.repeat for run in runs}):
        folds = sorted((run for run in runs if run.study.split.repeat == number), key=lambda run: run.study.split.fold)
        without = tuple(run.study.split.fold for run in folds if run.statistics.confusion is None)
        counts = [replace(run.statistics, confusion=None) if without else run.statistics for run in folds]
        figures = figures_of(
            reduce(add, counts),
            confidence=spec.confidence,
            interval=spec.interval,
            prevalence=spec.prevalence,
        )
        if runs[0].study.aggregation.method == "local":
            figures = replace(figures, auc=Auc(not_estimable(OWN_SCALES, figures.auc.estimate.num), None))
            aucs = tuple(fold.within_site_auc for fold in folds)
        else:
            aucs = tuple(pooled_auc(fold.statistics.histogram).estimate.value for fold in folds)
        repeats.append(Repeat(number, figures, aucs, without))
    pooled = [auc for each in repeats if (auc := each.figures.auc.estimate.value) is not None]
    single = [auc for each in repeats for auc in each.fold_aucs if auc is not None]
    return OutOfFold(
        repeats=tuple(repeats),
        mean_auc=fmean(pooled) if pooled else None,
        spread=stdev(pooled) if len(pooled) > 1 else None,
        mean_fold_auc=fmean(single) if single else None,
        fold_spread=stdev(single) if len(single) > 1 else None,
    )


def _require_whole(runs: Sequence[FoldRun]) -> None:
    faults = []
    if not runs:
        raise ConfigError("cross-validation: no runs; name all folds of every repeat")
    first = runs[0]
    for run in runs:
        if _without_fold(run.study) != _without_fold(first.study):
            faults.append(f"{run.run}: its study differs from that of {first.run} in more than fold, repeat and name")
        if run.sites != first.sites:
            faults.append(f"{run.run}: pooled over {', '.join(run.sites)}, {first.run} over {', '.join(first.sites)}")
    found = sorted((run.study.split.repeat, run.study.split.fold) for run in runs)
    num_folds = first.study.split.num_folds or 0
    expected = [(repeat, fold) for repeat in sorted({repeat for repeat, _ in found}) for fold in range(num_folds)]
    faults += [f"fold {fold} of repeat {repeat} is missing" for repeat, fold in expected if (repeat, fold) not in found]
    twice = sorted({pair for pair in found if found.count(pair) > 1})
    faults += [f"fold {fold} of repeat {repeat} is there more than once" for repeat, fold in twice]
    if faults:
        raise ConfigError(list_of_faults("cross-validation", faults))


def _without_fold(study: Study) -> dict[str, Any]:
    values = study.model_dump(mode="json")
    del values["name"]
    values["split"] = {key: value for key, value in values["split"].items() if key not in ("fold", "repeat")}
    return values


def _single(found: OutOfFold) -> str:
    within = any(repeat.figures.auc.estimate.reason == OWN_SCALES for repeat in found.repeats)
    return "AUC within sites of single folds" if within else "AUC of single folds"


def lines_of(found: OutOfFold) -> list[str]:
    """What a person reads."""
    lines = []
    for repeat in found.repeats:
        at = repeat.figures.at_threshold
        folds = ", ".join(map(str, repeat.without_threshold))
        lines.append(
            f"repeat {repeat.repeat}: {repeat.figures.num_necrosis} necrosis + {repeat.figures.num_recurrence} "
            f"recurrence, each tested once; "
            + (
                "no pooled AUC"
                if repeat.figures.auc.estimate.reason == OWN_SCALES
                else f"AUC {repeat.figures.auc.estimate}"
            )
            + ("" if at is None else f", sensitivity {at.sensitivity}, specificity {at.specificity}")
            + (f"; no figures at a threshold, since fold {folds} chose none" if folds else "")
        )
    for name, mean, spread in (
        ("pooled AUC over repeats", found.mean_auc, found.spread),
        (_single(found), found.mean_fold_auc, found.fold_spread),
    ):
        if mean is not None:
            lines.append(f"mean of {name}: {mean:.3f}" + ("" if spread is None else f" (SD {spread:.3f})"))
    return lines
