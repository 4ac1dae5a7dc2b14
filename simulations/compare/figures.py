"""Figures of a comparison: each arm's, paired differences between arms, and what every hospital gained, over seeds.

A figure over seeds is the mean of the seeds' figures. Its interval says how it would vary with other test patients: a
patient who is tested under several seeds counts once (`common.metrics.paired.variance_over_runs`). How it varies with
the seed of training is the standard deviation beside it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from common.metrics.auc import logit_interval, pooled_auc
from common.metrics.confusion import Confusion
from common.metrics.estimate import Estimate, not_estimable, without_interval
from common.metrics.paired import (
    KeptScores,
    auc_influences,
    influences,
    mean_difference_over_runs,
    patient_shares,
    variance_over_runs,
)
from server.report.comparison_page import ArmRow, DifferenceRow, GainRow
from simulations.compare.scores import Scores, SiteScores, all_patients, whole_pool

Shares = dict[str, float]
LOCAL, ABROAD = "local", "local abroad"

NO_COMMON_SCALE = {
    LOCAL: "each hospital's own model on its own patients: scores of different models have no common scale, so there "
    "is no pooled AUC; sensitivity and specificity are at each hospital's own threshold",
    "leave_one_out": "each hospital's patients under the model of all the others: no pooled AUC for the same reason",
    "ditto (own models)": "each hospital's own model on its own patients, as for local",
    "fine_tune (own models)": "each hospital's own model on its own patients, as for local",
}
REMARKS = {
    **NO_COMMON_SCALE,
    ABROAD: "a hospital's own model on the test patients of all hospitals, mean over the models",
    "pooled": "all patients in one place, as many steps as a hospital takes, each on the batches of all hospitals",
    "pooled_long": "all patients in one place, as many steps as all hospitals take together",
}


@dataclass(frozen=True)
class ArmSeed:
    """What one seed of an arm brought.

    Attributes:
        scores: Of its model or models, by site.
        confusion: Counts at its frozen threshold or thresholds; None where it has none.
    """

    scores: Scores
    confusion: Confusion | None


def arm_row(name: str, seeds: Sequence[ArmSeed], *, confidence: float) -> ArmRow:
    """An arm's figures over its seeds."""
    values = [] if name in NO_COMMON_SCALE else _known(_pooled_value(seed.scores) for seed in seeds)
    pooled = None
    if name not in NO_COMMON_SCALE:
        pooled = _mean_auc(seeds, _pooled_value, _pooled_shares, confidence=confidence)
    return ArmRow(
        name=name,
        auc=pooled,
        within_site_auc=_mean_auc(seeds, _within_value, _within_shares, confidence=confidence),
        sensitivity=_mean_share(seeds, lambda c: (c.true_positive, c.num_necrosis), confidence=confidence),
        specificity=_mean_share(seeds, lambda c: (c.true_negative, c.num_recurrence), confidence=confidence),
        spread=stdev(values) if len(values) > 1 else None,
        remark=REMARKS.get(name, ""),
    )


def abroad_row(models: Sequence[Scores], *, confidence: float) -> ArmRow:
    """The sites' own models on the patients of all sites: mean over models and seeds."""
    seeds = [ArmSeed(scores, None) for scores in models]
    return ArmRow(
        name=ABROAD,
        auc=_mean_auc(seeds, _pooled_value, _pooled_shares, confidence=confidence),
        within_site_auc=_mean_auc(seeds, _within_value, _within_shares, confidence=confidence),
        sensitivity=None,
        specificity=None,
        remark=REMARKS[ABROAD],
    )


def difference_row(
    first: str, second: str, pairs: Sequence[tuple[ArmSeed, ArmSeed]], *, confidence: float
) -> DifferenceRow:
    """Paired difference of two arms, mean over seeds; the pooled one where the scores of both have a common scale."""
    pooled = None
    if not {first, second} & NO_COMMON_SCALE.keys():
        whole = [(_whole_site(a.scores), _whole_site(b.scores)) for a, b in pairs]
        pooled = _mean_difference([[pair] for pair in whole], confidence=confidence)
    within = [[(a.scores[site], b.scores[site]) for site in sorted(a.scores)] for a, b in pairs]
    return DifferenceRow(first, second, pooled, _mean_difference(within, confidence=confidence))


def gain_rows(first: str, second: str, pairs: Sequence[tuple[ArmSeed, ArmSeed]], *, confidence: float) -> list[GainRow]:
    """The same at each site. The numbers of patients are means over the seeds, whose splits may differ by a patient."""
    rows = []
    for site in sorted(pairs[0][0].scores):
        own = [(a.scores[site], b.scores[site]) for a, b in pairs]
        counts = [np.bincount(a.scores.labels, minlength=2) for a, _ in own]
        aucs = [_known(_auc(each[k].scores) for each in own) for k in (0, 1)]
        rows.append(
            GainRow(
                site=site,
                first=first,
                second=second,
                first_auc=fmean(aucs[0]) if aucs[0] else None,
                second_auc=fmean(aucs[1]) if aucs[1] else None,
                gain=_mean_difference([[pair] for pair in own], confidence=confidence),
                num_recurrence=round(fmean(int(count[0]) for count in counts)),
                num_necrosis=round(fmean(int(count[1]) for count in counts)),
            )
        )
    return rows


# --- parts ------------------------------------------------------------------------------------------------------------


def _mean_difference(seeds: Sequence[Sequence[tuple[SiteScores, SiteScores]]], *, confidence: float) -> Estimate:
    """Mean over seeds of a difference whose parts, such as sites, weigh as much as they have pairs of patients."""
    values: list[float] = []
    shares: list[Shares] = []
    for parts in seeds:
        with_pairs = [(a, b) for a, b in parts if _num_pairs(a.scores) > 0]
        total = sum(_num_pairs(a.scores) for a, _ in with_pairs)
        if total == 0:
            return not_estimable("a class has no test patients", 0)
        value, added, known = 0.0, Shares(), True
        for a, b in with_pairs:
            assert a.patients == b.patients, "arms are tested on the same patients"
            weight = _num_pairs(a.scores) / total
            pools = a.scores.histogram(), b.scores.histogram()
            value += weight * ((_auc(a.scores) or 0.0) - (_auc(b.scores) or 0.0))
            own = patient_shares(influences(a.scores, b.scores, pools), a.scores.labels)
            if own is None:
                known = False
            else:
                added |= dict(zip(a.patients, (weight * own).tolist(), strict=True))
        values.append(value)
        if known:
            shares.append(added)
    if len(shares) < len(values):
        num = len({patient for parts in seeds for a, _ in parts for patient in a.patients})
        reason = "a site has fewer than 2 patients of a class, so the difference has no interval"
        return without_interval(fmean(values), reason, num)
    return mean_difference_over_runs(shares, values, confidence=confidence)


def _mean_auc(
    seeds: Sequence[ArmSeed],
    value_of: Callable[[Scores], float | None],
    shares_of: Callable[[Scores], Shares | None],
    *,
    confidence: float,
) -> Estimate:
    values = _known(value_of(seed.scores) for seed in seeds)
    num = len({patient for seed in seeds for patient in all_patients(seed.scores)})
    if len(values) < len(seeds):
        return not_estimable("a class has no test patients", num)
    shares = [each for each in (shares_of(seed.scores) for seed in seeds) if each is not None]
    if len(shares) < len(seeds):
        return without_interval(fmean(values), "a class has fewer than 2 patients, so the AUC has no interval", num)
    return logit_interval(fmean(values), variance_over_runs(shares), num=num, confidence=confidence)


def _pooled_value(scores: Scores) -> float | None:
    return _auc(whole_pool(scores))


def _pooled_shares(scores: Scores) -> Shares | None:
    whole = _whole_site(scores)
    own = patient_shares(auc_influences(whole.scores), whole.scores.labels)
    return None if own is None else dict(zip(whole.patients, own.tolist(), strict=True))


def _within_value(scores: Scores) -> float | None:
    parts = [site.scores for site in scores.values() if _num_pairs(site.scores) > 0]
    total = sum(map(_num_pairs, parts))
    return math.fsum(_num_pairs(part) / total * (_auc(part) or 0.0) for part in parts) if total else None


def _within_shares(scores: Scores) -> Shares | None:
    parts = [site for site in scores.values() if _num_pairs(site.scores) > 0]
    total = sum(_num_pairs(site.scores) for site in parts)
    shares: Shares = {}
    for site in parts:
        own = patient_shares(auc_influences(site.scores), site.scores.labels)
        if own is None:
            return None
        shares |= dict(zip(site.patients, (own * _num_pairs(site.scores) / total).tolist(), strict=True))
    return shares


def _mean_share(
    seeds: Sequence[ArmSeed], part_of: Callable[[Confusion], tuple[int, int]], *, confidence: float
) -> Estimate | None:
    """Mean share over seeds, with Wilson's interval for the patients of one seed: further seeds do not narrow it."""
    found = [part_of(seed.confusion) for seed in seeds if seed.confusion is not None]
    if len(found) < len(seeds):
        return None
    num = fmean(whole for _, whole in found)
    if min(whole for _, whole in found) == 0:
        return not_estimable("a class has no test patients", 0)
    value = fmean(part / whole for part, whole in found)
    low, high = proportion_confint(value * num, num, alpha=1 - confidence, method="wilson")
    return Estimate(value, max(0.0, float(low)), min(1.0, float(high)), round(num))


def _whole_site(scores: Scores) -> SiteScores:
    return SiteScores(all_patients(scores), whole_pool(scores))


def _auc(scores: KeptScores) -> float | None:
    return pooled_auc(scores.histogram()).estimate.value


def _num_pairs(scores: KeptScores) -> int:
    counts = np.bincount(scores.labels, minlength=2)
    return int(counts[0]) * int(counts[1])


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
