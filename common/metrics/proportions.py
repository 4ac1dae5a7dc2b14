"""Figures of a confusion matrix, each with an interval.

Sensitivity, specificity, accuracy, PPV and NPV are shares of a number of patients: Wilson's interval, or
Clopper–Pearson on request (`statsmodels.stats.proportion.proportion_confint`). The others:

- F1 = 2J/(1 + J) with J = TP/(TP+FP+FN), a share too, so the interval of J goes through the same map ("Wilson
  indirect": Lam, Gopal and Qian, arXiv 2309.14621).
- Balanced accuracy is the mean of two independent shares: square-and-add (Zou and Donner, Stat. Med. 27 (2008) 1693).
- MCC is the φ coefficient: its large-sample variance (Bishop, Fienberg and Holland, Discrete Multivariate Analysis
  (1975), chapter 11) on Fisher's z scale (Itaya et al., Stat. Med. 44 (2025) e10303).
- PPV and NPV at a stated prevalence are functions of a likelihood ratio, a ratio of two independent shares, whose
  interval is made from the intervals of the shares (MOVER-R: Newcombe, Stat. Methods Med. Res. 25 (2016) 1774). It
  covers .97 at 9 + 49 patients where the log interval of statsmodels, with ½ added to the counts, covers .88.

Patients of all sites count as one sample; how much the sites differ is the subject of `heterogeneity`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigError
from common.metrics.confusion import Confusion
from common.metrics.estimate import Estimate, not_estimable, without_interval
from common.metrics.quantiles import normal_quantile

IntervalMethod = Literal["wilson", "clopper-pearson"]
_STATSMODELS_NAMES = {"wilson": "wilson", "clopper-pearson": "beta"}


@dataclass(frozen=True)
class ConfusionFigures:
    """What a confusion matrix says, each with its interval.

    Attributes:
        counts: The matrix itself.
        prevalence: The stated share of necrosis, if one was stated.
        ppv_at_prevalence: PPV in a population with that share; None where none was stated.
        npv_at_prevalence: NPV, likewise.
    """

    counts: Confusion
    sensitivity: Estimate
    specificity: Estimate
    accuracy: Estimate
    ppv: Estimate
    npv: Estimate
    f1: Estimate
    balanced_accuracy: Estimate
    mcc: Estimate
    prevalence: float | None
    ppv_at_prevalence: Estimate | None
    npv_at_prevalence: Estimate | None


def confusion_figures(
    counts: Confusion,
    *,
    confidence: float = 0.95,
    interval: IntervalMethod = "wilson",
    prevalence: float | None = None,
) -> ConfusionFigures:
    """All figures of a confusion matrix.

    Args:
        counts: The matrix.
        confidence: Coverage of the intervals, between 0 and 1.
        interval: For the shares, and for what is made from them.
        prevalence: Share of necrosis, between 0 and 1, for which PPV and NPV are also wanted.
    """
    tp, fp, tn, fn = counts.true_positive, counts.false_positive, counts.true_negative, counts.false_negative

    def share(of: int, out_of: int, whose: str) -> Estimate:
        return proportion(of, out_of, whose=whose, confidence=confidence, interval=interval)

    def at_prevalence(figure: Callable[..., Estimate]) -> Estimate | None:
        if prevalence is None:
            return None
        return figure(counts, prevalence, confidence=confidence, interval=interval)

    sensitivity = share(tp, tp + fn, "patients with necrosis")
    specificity = share(tn, tn + fp, "patients with recurrence")
    jaccard = share(tp, tp + fp + fn, "patients who have necrosis or are called so")
    return ConfusionFigures(
        counts=counts,
        sensitivity=sensitivity,
        specificity=specificity,
        accuracy=share(tp + tn, counts.num_patients, "patients"),
        ppv=share(tp, tp + fp, "patients called necrosis"),
        npv=share(tn, tn + fn, "patients called recurrence"),
        f1=_mapped(jaccard, lambda j: 2.0 * j / (1.0 + j)),
        balanced_accuracy=_mean_of_two(sensitivity, specificity),
        mcc=matthews_correlation(counts, confidence=confidence),
        prevalence=prevalence,
        ppv_at_prevalence=at_prevalence(ppv_at),
        npv_at_prevalence=at_prevalence(npv_at),
    )


def proportion(
    count: int, out_of: int, *, whose: str, confidence: float = 0.95, interval: IntervalMethod = "wilson"
) -> Estimate:
    """A share of patients with its interval; not estimable out of nobody.

    Args:
        count: Patients who have it.
        out_of: Patients looked at.
        whose: Who was looked at, for the reason where there are none.
        confidence: Coverage of the interval.
        interval: How the interval is made.
    """
    from statsmodels.stats.proportion import proportion_confint  # late: it takes a second to import

    if out_of == 0:
        return not_estimable(f"there are no {whose}", 0)
    ends = proportion_confint(count, out_of, alpha=1.0 - confidence, method=_STATSMODELS_NAMES[interval])
    low, high = (min(max(float(end), 0.0), 1.0) for end in ends)
    # Rounding may leave 1e-17 where the end is 0 or 1.
    return Estimate(count / out_of, 0.0 if count == 0 else low, 1.0 if count == out_of else high, out_of)


def matthews_correlation(counts: Confusion, *, confidence: float = 0.95) -> Estimate:
    """Matthews correlation, −1 to 1; not estimable where a row or column of the matrix is empty."""
    tp, fp, tn, fn = counts.true_positive, counts.false_positive, counts.true_negative, counts.false_negative
    n = counts.num_patients
    margins = (tp + fn) * (tn + fp) * (tp + fp) * (tn + fn)
    if margins == 0:
        reason = "a class has no patients, or no patient is called so, and the correlation needs both"
        return not_estimable(reason, n)
    mcc = (tp * tn - fp * fn) / math.sqrt(margins)
    if abs(mcc) >= 1.0:
        return without_interval(mcc, "every call is the same way, so the correlation has no interval", n)
    label, call = (tp + fn) * (tn + fp), (tp + fp) * (tn + fn)
    label_skew, call_skew = (tp + fn) - (tn + fp), (tp + fp) - (tn + fn)
    variance = (
        1.0
        - mcc**2
        + mcc * (1.0 + mcc**2 / 2.0) * label_skew * call_skew / math.sqrt(margins)
        - 0.75 * mcc**2 * (label_skew**2 / label + call_skew**2 / call)
    ) / n
    if variance <= 0.0:
        return without_interval(mcc, "the correlation's variance vanishes, so it has no interval", n)
    half_width = normal_quantile(confidence) * math.sqrt(variance) / (1.0 - mcc**2)
    centre = math.atanh(mcc)
    return Estimate(mcc, math.tanh(centre - half_width), math.tanh(centre + half_width), n)


def ppv_at(
    counts: Confusion, prevalence: float, *, confidence: float = 0.95, interval: IntervalMethod = "wilson"
) -> Estimate:
    """PPV where the share of necrosis is `prevalence` (π): sens·π / (sens·π + (1−spec)(1−π)), increasing in LR+."""
    _require_share(prevalence)
    sensitivity, false_alarms = (
        proportion(of, out_of, whose="patients of a class", confidence=confidence, interval=interval)
        for of, out_of in (
            (counts.true_positive, counts.num_necrosis),
            (counts.false_positive, counts.num_recurrence),
        )
    )
    return _at_prevalence(sensitivity, false_alarms, prevalence / (1.0 - prevalence))


def npv_at(
    counts: Confusion, prevalence: float, *, confidence: float = 0.95, interval: IntervalMethod = "wilson"
) -> Estimate:
    """NPV where the share of necrosis is `prevalence` (π): spec(1−π) / (spec(1−π) + (1−sens)π), decreasing in LR−."""
    _require_share(prevalence)
    specificity, misses = (
        proportion(of, out_of, whose="patients of a class", confidence=confidence, interval=interval)
        for of, out_of in (
            (counts.true_negative, counts.num_recurrence),
            (counts.false_negative, counts.num_necrosis),
        )
    )
    return _at_prevalence(specificity, misses, (1.0 - prevalence) / prevalence)


def _at_prevalence(right: Estimate, wrong: Estimate, odds: float) -> Estimate:
    """a·odds / (a·odds + b) for the shares a and b of the patients rightly and wrongly called so."""
    num = right.num + wrong.num
    if (of_right := _with_interval(right)) is None or (of_wrong := _with_interval(wrong)) is None:
        return not_estimable(right.reason or wrong.reason or "", num)
    a, b = of_right[0], of_wrong[0]
    if a == 0.0 and b == 0.0:
        return not_estimable("no patient is called so", num)
    value = a * odds / (a * odds + b)
    low, high = (1.0 - 1.0 / (1.0 + ratio * odds) for ratio in _ends_of_ratio(of_right, of_wrong))
    return Estimate(value, min(low, value), max(high, value), num)  # rounding may put an end past the value


def _ends_of_ratio(above: tuple[float, float, float], below: tuple[float, float, float]) -> tuple[float, float]:
    """MOVER-R: interval of a ratio of two independent figures, each given as value, low and high.

    The low end is written as p/(m + √(m² − pq)) rather than (m − √(m² − pq))/q, which is 0/0 where b_high = 2b.
    """
    a, a_low, a_high = above
    b, b_low, b_high = below
    m = a * b
    p, q = a_low * (2.0 * a - a_low), b_high * (2.0 * b - b_high)
    low = p / (m + math.sqrt(max(m * m - p * q, 0.0))) if p > 0.0 else 0.0
    if b == 0.0:
        return low, math.inf
    p, q = a_high * (2.0 * a - a_high), b_low * (2.0 * b - b_low)
    return low, (m + math.sqrt(max(m * m - p * q, 0.0))) / q


def _mapped(estimate: Estimate, increasing: Callable[[float], float]) -> Estimate:
    if (ends := _with_interval(estimate)) is None:
        return estimate
    value, low, high = (increasing(each) for each in ends)
    return Estimate(value, low, high, estimate.num)


def _mean_of_two(first: Estimate, second: Estimate) -> Estimate:
    """Mean of two independent figures, by square-and-add."""
    num = first.num + second.num
    if (one := _with_interval(first)) is None or (other := _with_interval(second)) is None:
        return not_estimable(first.reason or second.reason or "", num)
    value = (one[0] + other[0]) / 2.0
    below = math.hypot(one[0] - one[1], other[0] - other[1]) / 2.0
    above = math.hypot(one[2] - one[0], other[2] - other[0]) / 2.0
    return Estimate(value, value - below, value + above, num)


def _with_interval(estimate: Estimate) -> tuple[float, float, float] | None:
    """Value, low and high, or None where one is missing."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return estimate.value, estimate.low, estimate.high


def _require_share(prevalence: float) -> None:
    if not 0.0 < prevalence < 1.0:
        raise ConfigError(f"prevalence is {prevalence}, expected a share of patients between 0 and 1")
