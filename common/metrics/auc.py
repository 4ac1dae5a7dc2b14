"""Area under the ROC curve from counts per bin: value, what binning can hide, DeLong's variance, interval.

The interval is made on the logit scale, where it holds its coverage in small samples: 95 % intervals cover .94 at 9
necrosis + 38 recurrence with a true AUC of .83, against .88 for value ± 1.96 SE (10 000 simulated test sets).

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837; Pepe, The Statistical Evaluation of
Medical Tests (2003), chapter 5, for the logit interval.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from common.metrics.bins import Histogram
from common.metrics.estimate import Estimate, not_estimable, without_interval
from common.metrics.quantiles import normal_quantile

NO_PAIRS = "a class has no patients, and the AUC compares patients of two classes"


@dataclass(frozen=True)
class Auc:
    """AUC of the binned scores.

    Attributes:
        estimate: Value and interval.
        bin_error: The certificate: the AUC of the unbinned scores is at most this far away. None without a value.
    """

    estimate: Estimate
    bin_error: float | None


@dataclass(frozen=True)
class MacroAuc:
    """Mean of the sites' AUCs.

    Attributes:
        estimate: Value and interval; `num` is the number of sites in it.
        sites_left_out: Sites that have no AUC, since they lack a class.
    """

    estimate: Estimate
    sites_left_out: tuple[str, ...]


@dataclass(frozen=True)
class DeLongTables:
    """DeLong's structural components as a function of the bin: what a patient there adds to the AUC.

    Attributes:
        v1: For necrosis: share of recurrence scored lower, ties ½; shape (B,).
        v0: For recurrence: share of necrosis scored higher, ties ½; shape (B,).
        auc: The AUC, which is the mean of either over its class.
    """

    v1: NDArray[np.float64]
    v0: NDArray[np.float64]
    auc: float


def pooled_auc(histogram: Histogram, *, confidence: float = 0.95) -> Auc:
    """AUC over all pairs of the histogram, equal to the Mann–Whitney statistic of the binned scores.

    Not estimable without patients of both classes; without an interval where a class has one patient or the variance
    vanishes, as it does when the classes are perfectly separated or all scores are tied.
    """
    num_recurrence, num_necrosis = sum(histogram[0]), sum(histogram[1])
    num_patients = num_recurrence + num_necrosis
    if num_recurrence == 0 or num_necrosis == 0:
        return Auc(not_estimable(NO_PAIRS, num_patients), None)
    pairs = num_recurrence * num_necrosis
    value = _twice_u(histogram) / (2 * pairs)
    bin_error = _tied_pairs(histogram) / (2 * pairs)
    variance = delong_variance(histogram)
    if variance is None:
        reason = "a class has fewer than 2 patients, so the AUC has no interval"
        return Auc(without_interval(value, reason, num_patients), bin_error)
    return Auc(logit_interval(value, variance, num=num_patients, confidence=confidence), bin_error)


@dataclass(frozen=True)
class SiteAucs:
    """What the AUCs of many sites are made of, from all their histograms at once.

    Attributes:
        sites: Their names; the lists below are in the same order.
        num_patients: Patients of both classes.
        pairs: Pairs of a patient with recurrence and one with necrosis.
        twice_u: Twice the Mann–Whitney statistic.
        tied: Pairs whose two patients share a bin.
        variances: DeLong's; None where a class has fewer than 2 patients.
    """

    sites: tuple[str, ...]
    num_patients: tuple[int, ...]
    pairs: tuple[int, ...]
    twice_u: tuple[int, ...]
    tied: tuple[int, ...]
    variances: tuple[float | None, ...]

    def value(self, site: int) -> float:
        """The AUC of the site at this place, which has pairs."""
        return self.twice_u[site] / (2 * self.pairs[site])

    def with_pairs(self) -> list[int]:
        """Places of the sites that have patients of both classes."""
        return [place for place, pairs in enumerate(self.pairs) if pairs > 0]


def site_aucs(histograms: Mapping[str, Histogram]) -> SiteAucs:
    """Count the pairs of every site; as whole numbers, so that nothing depends on the other sites."""
    if not histograms:
        return SiteAucs((), (), (), (), (), ())
    flat = chain.from_iterable(chain.from_iterable(histograms.values()))
    counts = np.fromiter(flat, dtype=np.float64).reshape(len(histograms), 2, -1)
    recurrence, necrosis = counts[:, 0], counts[:, 1]  # (S, B)
    N0, N1 = recurrence.sum(axis=1), necrosis.sum(axis=1)  # (S,)
    # Whole numbers and halves below 2^53: exact, in whatever order they are summed.
    v1 = np.cumsum(recurrence, axis=1) - recurrence / 2
    v0 = N1[:, None] - np.cumsum(necrosis, axis=1) + necrosis / 2
    twice_u = 2 * np.einsum("sb,sb->s", necrosis, v1)
    tied = np.einsum("sb,sb->s", recurrence, necrosis)
    pairs = N0 * N1
    auc = (twice_u / np.maximum(2 * pairs, 1))[:, None]
    squares_1 = (v1 / np.maximum(N0, 1)[:, None] - auc) ** 2
    squares_0 = (v0 / np.maximum(N1, 1)[:, None] - auc) ** 2
    variances = [
        # Row by row: a product of matrices may sum in another order.
        float(of_necrosis @ to_1) / (n1 - 1) / n1 + float(of_recurrence @ to_0) / (n0 - 1) / n0
        if n0 >= 2 and n1 >= 2
        else None
        for of_recurrence, of_necrosis, to_1, to_0, n0, n1 in zip(
            recurrence, necrosis, squares_1, squares_0, N0.tolist(), N1.tolist(), strict=True
        )
    ]
    return SiteAucs(
        sites=tuple(histograms),
        num_patients=_whole(N0 + N1),
        pairs=_whole(pairs),
        twice_u=_whole(twice_u),
        tied=_whole(tied),
        variances=tuple(variances),
    )


def _whole(values: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(values.astype(np.int64).tolist())


def within_site_auc(histograms: Iterable[Histogram], *, confidence: float = 0.95) -> Auc:
    """AUC over the pairs whose two patients are at the same site: free of shifts of the score between sites.

    Each site's AUC weighs as many as it has pairs; sites are independent, so their variances add with squared weights.
    """
    return within_site_auc_of(site_aucs({str(place): each for place, each in enumerate(histograms)}), confidence)


def within_site_auc_of(aucs: SiteAucs, confidence: float) -> Auc:
    """The same from what was counted before."""
    with_pairs = aucs.with_pairs()
    num_patients = sum(aucs.num_patients[place] for place in with_pairs)
    pairs = sum(aucs.pairs)
    if pairs == 0:
        return Auc(not_estimable("no site has patients of both classes", num_patients), None)
    value = sum(aucs.twice_u[place] for place in with_pairs) / (2 * pairs)
    bin_error = sum(aucs.tied[place] for place in with_pairs) / (2 * pairs)
    weights = [aucs.pairs[place] / pairs for place in with_pairs]
    variances = [aucs.variances[place] for place in with_pairs]
    return Auc(_combined(value, variances, weights, num=num_patients, confidence=confidence), bin_error)


def macro_auc(histograms: Mapping[str, Histogram], *, confidence: float = 0.95) -> MacroAuc:
    """Mean AUC of the sites that have patients of both classes, each site counting the same."""
    return macro_auc_of(site_aucs(histograms), confidence)


def macro_auc_of(aucs: SiteAucs, confidence: float) -> MacroAuc:
    """The same from what was counted before."""
    with_pairs = aucs.with_pairs()
    left_out = tuple(sorted(set(aucs.sites) - {aucs.sites[place] for place in with_pairs}))
    if not with_pairs:
        return MacroAuc(not_estimable("no site has patients of both classes", 0), left_out)
    num_sites = len(with_pairs)
    value = math.fsum(aucs.value(place) for place in with_pairs) / num_sites
    weights = [1 / num_sites] * num_sites
    variances = [aucs.variances[place] for place in with_pairs]
    return MacroAuc(_combined(value, variances, weights, num=num_sites, confidence=confidence), left_out)


def delong_tables(histogram: Histogram) -> DeLongTables:
    """DeLong's components for each bin, where both classes have patients.

    Sent back to the sites they let two models be compared on the same patients without any score leaving a site.

    Raises:
        ValueError: If a class has no patients.
    """
    recurrence, necrosis = (np.array(counts, dtype=np.float64) for counts in histogram)
    N0, N1 = recurrence.sum(), necrosis.sum()
    if N0 == 0 or N1 == 0:
        raise ValueError(NO_PAIRS)
    v1 = (np.cumsum(recurrence) - recurrence / 2) / N0
    v0 = (N1 - np.cumsum(necrosis) + necrosis / 2) / N1
    return DeLongTables(v1=v1, v0=v0, auc=_twice_u(histogram) / (2 * _num_pairs(histogram)))


def delong_variance(histogram: Histogram) -> float | None:
    """DeLong's variance of the AUC: S10/N1 + S01/N0; None where a class has fewer than 2 patients."""
    recurrence, necrosis = (np.array(counts, dtype=np.float64) for counts in histogram)
    N0, N1 = recurrence.sum(), necrosis.sum()
    if N0 < 2 or N1 < 2:
        return None
    tables = delong_tables(histogram)
    s10 = float(necrosis @ (tables.v1 - tables.auc) ** 2) / (N1 - 1)
    s01 = float(recurrence @ (tables.v0 - tables.auc) ** 2) / (N0 - 1)
    return float(s10 / N1 + s01 / N0)


def logit_interval(value: float, variance: float, *, num: int, confidence: float) -> Estimate:
    """An AUC with expit(logit A ± z·SE/(A(1−A))); without an interval at A of 0 or 1, or where the variance is 0."""
    if value in (0.0, 1.0):
        reason = "the classes do not overlap, so the AUC has no interval"
        return without_interval(value, reason, num)
    if variance <= 0.0:
        reason = "the scores do not vary within the classes, so the AUC has no interval"
        return without_interval(value, reason, num)
    z = normal_quantile(confidence)
    half_width = z * math.sqrt(variance) / (value * (1.0 - value))
    centre = float(logit(value))
    return Estimate(value, float(expit(centre - half_width)), float(expit(centre + half_width)), num)


def has_logit_interval(value: float, variance: float) -> bool:
    """Whether `logit_interval` gives an interval."""
    return value not in (0.0, 1.0) and variance > 0.0


def roc_counts(histogram: Histogram) -> list[tuple[int, int]]:
    """(false positives, true positives) as the threshold falls: from nobody called positive to everybody.

    B + 1 pairs; pair k calls the k highest bins positive.
    """
    false_positives, true_positives = 0, 0
    points = [(0, 0)]
    for recurrence, necrosis in zip(reversed(histogram[0]), reversed(histogram[1]), strict=True):
        false_positives += recurrence
        true_positives += necrosis
        points.append((false_positives, true_positives))
    return points


def _combined(
    value: float, variances: Sequence[float | None], weights: Sequence[float], *, num: int, confidence: float
) -> Estimate:
    """A weighted sum of independent AUCs, with the interval that their variances give it."""
    known = [variance for variance in variances if variance is not None]
    if len(known) < len(variances):
        reason = "a site has fewer than 2 patients of a class, so the AUC has no interval"
        return without_interval(value, reason, num)
    variance = math.fsum(weight**2 * each for weight, each in zip(weights, known, strict=True))
    return logit_interval(value, variance, num=num, confidence=confidence)


def _num_pairs(histogram: Histogram) -> int:
    return sum(histogram[0]) * sum(histogram[1])


def _twice_u(histogram: Histogram) -> int:
    """Twice the Mann–Whitney statistic, a whole number: 2 for a pair in the right order, 1 for a tie."""
    below, total = 0, 0
    for recurrence, necrosis in zip(*histogram, strict=True):
        total += necrosis * (2 * below + recurrence)
        below += recurrence
    return total


def _tied_pairs(histogram: Histogram) -> int:
    return sum(recurrence * necrosis for recurrence, necrosis in zip(*histogram, strict=True))
