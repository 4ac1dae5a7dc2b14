"""Paired comparison of two models on the same patients, from counts: DeLong's difference and its variance.

Two exchanges suffice, and no score leaves a site. First each site sends the histograms of both models; the
coordinator adds them up and sends the two pools back. Then each site sends, for each class, how many patients it has
and the sums of d and d², where d = (vᴬ − A) − (vᴮ − B) is what a patient adds to the difference of the two AUCs, read
from the pools' tables. The variance is Σ_c s²_c / N_c. Within a site nothing has to be sent back: its own tables follow
from its own histograms.

Scores of the two models may be binned differently. A site weighs as much in the within-site difference as it has pairs
of patients; sites are independent.

Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837, equations 5 to 8.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ProtocolError
from common.metrics.auc import NO_PAIRS, delong_tables
from common.metrics.bins import Histogram
from common.metrics.estimate import Estimate, not_estimable, without_interval
from common.metrics.quantiles import normal_quantile
from common.metrics.site_statistics import MAX_PATIENTS

DIFFERENCE_UNIT = 2**30
"""d is rounded to whole multiples of 2^-30, so that sums are exact, have no order, and fit into 64 bits."""

_LARGEST = 2 * DIFFERENCE_UNIT  # |d| <= 2: four shares from 0 to 1, two of them subtracted
NO_VARIANCE = "the two models rank the patients alike, so the difference has no variance and no interval"
TOO_FEW = "a class has fewer than 2 patients, so the difference has no interval"


@dataclass(frozen=True)
class KeptScores:
    """Binned scores of one model for the patients of one site, in the site's own order. They never leave it.

    Attributes:
        index: Bin of each patient; shape (N,).
        labels: 0 (recurrence) or 1 (necrosis); shape (N,).
        num_bins: Bins of the study.
    """

    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_bins: int

    def histogram(self) -> Histogram:
        """Patients per class and bin."""
        recurrence, necrosis = (
            np.bincount(self.index[self.labels == label], minlength=self.num_bins).tolist() for label in (0, 1)
        )
        return tuple(recurrence), tuple(necrosis)


@dataclass(frozen=True)
class DifferenceSums:
    """What one site, or several after +, adds to the variance of a difference; recurrence first, then necrosis.

    Attributes:
        num_patients: Patients of each class.
        total: Σ d, in units of 2^-30.
        squares: Σ d², in units of 2^-30.
    """

    num_patients: tuple[int, int]
    total: tuple[int, int]
    squares: tuple[int, int]

    def __add__(self, other: "DifferenceSums") -> "DifferenceSums":
        """The sums over the patients of both."""
        return DifferenceSums(
            num_patients=_added(self.num_patients, other.num_patients),
            total=_added(self.total, other.total),
            squares=_added(self.squares, other.squares),
        )

    def to_integers(self) -> list[int]:
        """The message: patients, totals and squares, recurrence before necrosis."""
        return [*self.num_patients, *self.total, *self.squares]

    @classmethod
    def from_integers(cls, values: Sequence[int]) -> "DifferenceSums":
        """Read what a peer sent, and refuse what no patients can have added up to.

        Raises:
            ProtocolError: If they are not six whole numbers, or contradict each other.
        """
        if len(values) != 6 or not all(type(value) is int for value in values):
            raise ProtocolError("sums of differences: expected 6 whole numbers")
        sums = cls((values[0], values[1]), (values[2], values[3]), (values[4], values[5]))
        for num, total, squares in zip(sums.num_patients, sums.total, sums.squares, strict=True):
            # Cauchy-Schwarz, with the rounding of each square: (Σ d)² <= n Σ d².
            fits = 0 <= num <= MAX_PATIENTS and abs(total) <= num * _LARGEST and 0 <= squares <= 2 * num * _LARGEST
            if not fits or total**2 > num * (squares + num) * DIFFERENCE_UNIT:
                raise ProtocolError("sums of differences: no patients can have added up to these numbers")
        return sums

    def variance(self) -> float | None:
        """Variance of the difference: Σ_c s²_c / N_c; None where a class has fewer than 2 patients."""
        if min(self.num_patients) < 2:
            return None
        parts = []
        for num, total, squares in zip(self.num_patients, self.total, self.squares, strict=True):
            spread = (num * squares * DIFFERENCE_UNIT - total**2) / (num * DIFFERENCE_UNIT**2)  # exact up to here
            parts.append(max(spread, 0.0) / (num - 1) / num)
        return math.fsum(parts)


@dataclass(frozen=True)
class SiteComparison:
    """One site's part of a comparison.

    Attributes:
        histograms: Of the first and of the second model, for the same patients.
        own: Sums of the differences by the site's own tables; None where it lacks a class.
    """

    histograms: tuple[Histogram, Histogram]
    own: DifferenceSums | None

    @property
    def num_patients(self) -> tuple[int, int]:
        """Patients with recurrence and with necrosis."""
        return sum(self.histograms[0][0]), sum(self.histograms[0][1])


@dataclass(frozen=True)
class Difference:
    """AUC of the first model, of the second, and first minus second with its interval.

    Attributes:
        num_recurrence: Patients with label 0 behind it.
        num_necrosis: Patients with label 1.
    """

    first: float | None
    second: float | None
    difference: Estimate
    num_recurrence: int
    num_necrosis: int


def require_same_patients(first: KeptScores, second: KeptScores) -> None:
    """Refuse scores that are not of the same patients in the same order.

    Raises:
        DataError: If their labels differ.
    """
    if not np.array_equal(first.labels, second.labels):
        raise DataError(
            f"scores: {first.labels.size} and {second.labels.size} patients whose labels differ, expected the same "
            "patients in both evaluations; evaluate both models on one frozen test set"
        )


def difference_sums(first: KeptScores, second: KeptScores, pools: tuple[Histogram, Histogram]) -> DifferenceSums:
    """A site's sums over its patients, with the tables of the two pools.

    Args:
        first: Scores of the first model.
        second: Scores of the second model for the same patients.
        pools: Histograms of the two models over all patients of the comparison.

    Raises:
        ProtocolError: If the pools cannot hold these patients.
        ValueError: If a class has no patients in the pools.
    """
    require_same_patients(first, second)
    _require_within(first, pools[0])
    _require_within(second, pools[1])
    parts = _influence(first, pools[0]) - _influence(second, pools[1])
    whole = np.rint(parts * DIFFERENCE_UNIT).astype(np.int64)  # |d| <= 2, so below 2^31
    squares = np.rint((whole / DIFFERENCE_UNIT) ** 2 * DIFFERENCE_UNIT).astype(np.int64)
    counts, totals, squared = [], [], []
    for label in (0, 1):
        chosen = first.labels == label
        counts.append(int(chosen.sum()))
        totals.append(int(whole[chosen].sum()))
        squared.append(int(squares[chosen].sum()))
    return DifferenceSums((counts[0], counts[1]), (totals[0], totals[1]), (squared[0], squared[1]))


def site_comparison(first: KeptScores, second: KeptScores) -> SiteComparison:
    """What a site sends first: both histograms, and the sums by its own tables."""
    require_same_patients(first, second)
    histograms = (first.histogram(), second.histogram())
    own = difference_sums(first, second, histograms) if _num_pairs(histograms[0]) > 0 else None
    return SiteComparison(histograms, own)


def pooled_difference(
    pools: tuple[Histogram, Histogram], sums: DifferenceSums, *, confidence: float = 0.95
) -> Difference:
    """First minus second over all pairs of patients, also of different sites.

    Args:
        pools: Histograms of the two models over all patients.
        sums: Over the same patients.
        confidence: Coverage of the interval, which is value ± z·SE, cut at −1 and 1.

    Raises:
        ProtocolError: If the sums are over other patients than the histograms.
    """
    counts = sum(pools[0][0]), sum(pools[0][1])
    if not counts == (sum(pools[1][0]), sum(pools[1][1])) == sums.num_patients:
        raise ProtocolError(
            f"comparison: sums over {sums.num_patients} patients, histograms of {counts} and "
            f"{(sum(pools[1][0]), sum(pools[1][1]))}; all three have to be of the same patients"
        )
    if min(counts) == 0:
        return Difference(None, None, not_estimable(NO_PAIRS, sum(counts)), *counts)
    first, second = (delong_tables(pool).auc for pool in pools)
    estimate = _with_interval(first - second, sums.variance(), num=sum(counts), confidence=confidence)
    return Difference(first, second, estimate, *counts)


def within_site_difference(sites: Iterable[SiteComparison], *, confidence: float = 0.95) -> Difference:
    """First minus second over the pairs whose two patients are at the same site.

    The one to read where the two models of a pair are not the same at every site, such as local ones: scores of
    different models have no common scale.
    """
    with_pairs = [site for site in sites if site.own is not None]
    counts = (
        sum(site.num_patients[0] for site in with_pairs),
        sum(site.num_patients[1] for site in with_pairs),
    )
    pairs = sum(_num_pairs(site.histograms[0]) for site in with_pairs)
    if pairs == 0:
        return Difference(None, None, not_estimable("no site has patients of both classes", 0), 0, 0)
    weights = [_num_pairs(site.histograms[0]) / pairs for site in with_pairs]
    first, second = (
        math.fsum(
            weight * delong_tables(site.histograms[k]).auc for weight, site in zip(weights, with_pairs, strict=True)
        )
        for k in (0, 1)
    )
    variances = [site.own.variance() for site in with_pairs if site.own is not None]
    known = [variance for variance in variances if variance is not None]
    if len(known) < len(variances):
        reason = "a site has fewer than 2 patients of a class, so the difference has no interval"
        return Difference(first, second, without_interval(first - second, reason, sum(counts)), *counts)
    variance = math.fsum(weight**2 * each for weight, each in zip(weights, known, strict=True))
    estimate = _with_interval(first - second, variance, num=sum(counts), confidence=confidence)
    return Difference(first, second, estimate, *counts)


def site_difference(site: SiteComparison, *, confidence: float = 0.95) -> Difference:
    """First minus second over the pairs of one site: what the first model brings this hospital."""
    if site.own is None:
        return Difference(None, None, not_estimable(NO_PAIRS, sum(site.num_patients)), *site.num_patients)
    return pooled_difference(site.histograms, site.own, confidence=confidence)


def variance_over_runs(runs: Sequence[Mapping[str, float]]) -> float:
    """Variance of the mean over repeated runs, which may share patients.

    A patient who is tested in several runs is one patient: his shares are added up before they are squared, so that
    runs on the same patients do not make the interval narrower as if they were new ones. The training's own randomness
    is no part of it; the spread of the runs shows that.

    Args:
        runs: For each run, by patient, his share as `patient_shares` gives it.
    """
    added: dict[str, float] = {}
    for shares in runs:
        for patient, share in shares.items():
            added[patient] = added.get(patient, 0.0) + share / len(runs)
    return math.fsum(each**2 for each in added.values())


def mean_difference_over_runs(
    runs: Sequence[Mapping[str, float]], differences: Sequence[float], *, confidence: float = 0.95
) -> Estimate:
    """Mean of a paired difference over repeated runs, with the interval of `variance_over_runs`."""
    value = math.fsum(differences) / len(differences)
    num = len({patient for shares in runs for patient in shares})
    return _with_interval(value, variance_over_runs(runs), num=num, confidence=confidence)


def patient_shares(parts: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Each patient's share, so that the squares over all of them add up to DeLong's variance Σ_c s²_c / N_c.

    Args:
        parts: What each patient adds, with mean 0 in each class, such as `influences`; shape (N,).
        labels: Shape (N,).

    Returns:
        None where a class has fewer than 2 patients, which has no variance.
    """
    counts = np.bincount(labels, minlength=2).astype(np.float64)
    if counts.min() < 2:
        return None
    return np.asarray(parts / np.sqrt(counts * (counts - 1))[labels], dtype=np.float64)


def auc_influences(scores: KeptScores) -> NDArray[np.float64]:
    """What every patient adds to the AUC of one model, v − A; shape (N,)."""
    return _influence(scores, scores.histogram())


def influences(first: KeptScores, second: KeptScores, pools: tuple[Histogram, Histogram]) -> NDArray[np.float64]:
    """What every patient adds to the difference, d = (vᴬ − A) − (vᴮ − B); shape (N,). Over the pool, means are 0."""
    require_same_patients(first, second)
    return _influence(first, pools[0]) - _influence(second, pools[1])


def _influence(scores: KeptScores, pool: Histogram) -> NDArray[np.float64]:
    tables = delong_tables(pool)
    values = np.where(scores.labels == 1, tables.v1[scores.index], tables.v0[scores.index])
    return np.asarray(values - tables.auc, dtype=np.float64)


def _require_within(scores: KeptScores, pool: Histogram) -> None:
    """The pool holds at least this site's own patients in every bin."""
    own = scores.histogram()
    if any(len(row) != scores.num_bins for row in pool) or any(
        mine > all_sites
        for mine_row, pool_row in zip(own, pool, strict=True)
        for mine, all_sites in zip(mine_row, pool_row, strict=True)
    ):
        raise ProtocolError("comparison: the pooled histogram that arrived does not hold this site's own patients")


def _with_interval(value: float, variance: float | None, *, num: int, confidence: float) -> Estimate:
    if variance is None:
        return without_interval(value, TOO_FEW, num)
    if variance == 0.0:
        return without_interval(value, NO_VARIANCE, num)
    half_width = normal_quantile(confidence) * math.sqrt(variance)
    return Estimate(value, max(value - half_width, -1.0), min(value + half_width, 1.0), num)


def _num_pairs(histogram: Histogram) -> int:
    return sum(histogram[0]) * sum(histogram[1])


def _added(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return left[0] + right[0], left[1] + right[1]
