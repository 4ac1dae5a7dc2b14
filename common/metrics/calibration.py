"""Calibration: do probabilities mean what they say? From fixed-point sums and from counts per bin of the margin.

Brier, expected calibration error and observed − expected come exactly from the sums. Intercept, slope and temperature
are logistic fits on the histogram, every patient standing at the middle of their bin (Cox, Biometrika 45 (1958) 562;
Van Calster et al., BMC Medicine 17 (2019) 230; temperature: Guo et al., ICML 2017).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from common.metrics.bins import Histogram, MarginBins
from common.metrics.calibration_sums import FIXED_POINT, NUM_TENTHS
from common.metrics.estimate import Estimate, not_estimable, without_interval
from common.metrics.proportions import IntervalMethod, proportion
from common.metrics.quantiles import normal_quantile, student_quantile
from common.metrics.site_statistics import SiteStatistics

NO_VARIANCE = "what sites send does not hold the variance of this figure"
NOBODY = "there are no patients"
ONE_CLASS = "a class has no patients"


@dataclass(frozen=True)
class CalibrationTenth:
    """The patients whose probability lies in one tenth of [0, 1].

    Attributes:
        low: Where the tenth begins; it ends .1 higher.
        mean_probability: Their mean probability of necrosis; None without patients.
        observed: Share of them with necrosis.
    """

    low: float
    mean_probability: float | None
    observed: Estimate


@dataclass(frozen=True)
class CalibrationFigures:
    """How probabilities compare with what was observed.

    Attributes:
        brier: Mean squared error of the probability, 0 (best) to 1.
        expected_calibration_error: Mean distance of observed from expected over the tenths, 0 (best) to 1.
        observed_minus_expected: Share of necrosis less the mean probability; 0 is best, above 0 the risk is underrated.
        in_the_large: Intercept of the logistic fit with the slope held at 1; 0 is best.
        intercept: Intercept of the logistic fit of the label on the margin.
        slope: Its slope; 1 is best, below 1 the model is too sure of itself.
        log_loss: Mean cross-entropy, nats.
        tenths: The calibration curve.
    """

    brier: Estimate
    expected_calibration_error: Estimate
    observed_minus_expected: Estimate
    in_the_large: Estimate
    intercept: Estimate
    slope: Estimate
    log_loss: Estimate
    tenths: tuple[CalibrationTenth, ...]


def calibration_figures(
    statistics: SiteStatistics, *, confidence: float = 0.95, interval: IntervalMethod = "wilson"
) -> CalibrationFigures:
    """All calibration figures of a site, or of the pool."""
    histogram, bins = statistics.histogram, statistics.bins
    intercept, slope = fit_recalibration(histogram, bins, confidence=confidence)
    return CalibrationFigures(
        brier=_plain_mean(_brier_sum(statistics), statistics),
        expected_calibration_error=_plain_mean(_calibration_error_sum(statistics), statistics),
        observed_minus_expected=_observed_minus_expected(statistics, confidence),
        in_the_large=fit_in_the_large(histogram, bins, confidence=confidence),
        intercept=intercept,
        slope=slope,
        log_loss=_plain_mean(statistics.loss_sum, statistics),
        tenths=_tenths(statistics, confidence, interval),
    )


def fit_recalibration(histogram: Histogram, bins: MarginBins, *, confidence: float = 0.95) -> tuple[Estimate, Estimate]:
    """Intercept and slope of logit P(necrosis) = intercept + slope·margin, by maximum likelihood (statsmodels GLM).

    Not estimable where a threshold separates the classes, since the likelihood then has no maximum.
    """
    # Late: statsmodels takes a second to import, and a site or a round never needs it.
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    margins, recurrence, necrosis = _occupied(histogram, bins)
    num = int(recurrence.sum() + necrosis.sum())
    if (reason := _why_no_slope(margins, recurrence, necrosis)) is not None:
        return not_estimable(reason, num), not_estimable(reason, num)
    scale = float(np.abs(margins).max())  # brings the regressor to [−1, 1], where the fit is well conditioned
    x = margins / scale
    # A row for each bin and label, weighed by its patients: statsmodels takes rows of counts too, but calls two bins
    # that it fits exactly a perfect separation.
    with np.errstate(over="ignore"):  # exp(−z) of a sure patient; whether the fit ended well is asked below
        fit = GLM(
            np.repeat([0.0, 1.0], x.size),
            np.column_stack([np.ones(2 * x.size), np.tile(x, 2)]),
            family=Binomial(),
            freq_weights=np.concatenate([recurrence, necrosis]),
        ).fit(maxiter=200)
    values = np.asarray(fit.params) / [1.0, scale]
    ends = np.asarray(fit.conf_int(alpha=1.0 - confidence)) / [[1.0], [scale]]
    if not fit.converged or not np.isfinite(values).all() or not np.isfinite(ends).all():
        reason = "the logistic fit did not converge"
        return not_estimable(reason, num), not_estimable(reason, num)
    intercept, slope = (
        Estimate(float(value), float(low), float(high), num) for value, (low, high) in zip(values, ends, strict=True)
    )
    return intercept, slope


def fit_in_the_large(histogram: Histogram, bins: MarginBins, *, confidence: float = 0.95) -> Estimate:
    """Calibration-in-the-large: the a of logit P(necrosis) = a + margin; not estimable without both classes."""
    from scipy.optimize import brentq

    margins, recurrence, necrosis = _occupied(histogram, bins)
    patients = recurrence + necrosis
    num, num_necrosis = int(patients.sum()), float(necrosis.sum())
    if num_necrosis in (0.0, num):
        return not_estimable(ONE_CLASS, num)

    def score(a: float) -> float:
        return num_necrosis - float(patients @ expit(a + margins))

    reach = float(np.abs(margins).max()) + 50.0  # where every probability is 0 or 1 within 1e-21
    value = float(brentq(score, -reach, reach, xtol=1e-12, maxiter=1000))
    probability = expit(value + margins)
    information = float(patients @ (probability * (1.0 - probability)))
    if information < 1e-12:
        return without_interval(value, "all probabilities are 0 or 1, so the fit has no interval", num)
    half_width = _z(confidence) / math.sqrt(information)
    return Estimate(value, value - half_width, value + half_width, num)


def fit_temperature(histogram: Histogram, bins: MarginBins, *, confidence: float = 0.95) -> Estimate:
    """The T that makes margin/T best calibrated: maximum likelihood on the pooled validation histogram.

    Above 1 the model was too sure of itself. Dividing by T changes no order, so AUC and a threshold divided by T stay
    what they were. The interval is made on the scale of log T. Not estimable where every patient lies on the right side
    of margin 0 (T would be 0), or where the scores do no better than chance (T would be infinite).
    """
    margins, recurrence, necrosis = _occupied(histogram, bins)
    patients = recurrence + necrosis
    num = int(patients.sum())

    def score(inverse: float) -> float:
        return float(margins @ (necrosis - patients * expit(inverse * margins)))

    if num == 0:
        return not_estimable(NOBODY, 0)
    if score(0.0) <= 1e-12 * float(np.abs(margins) @ patients):  # 0 but for rounding
        return not_estimable("the scores do not point to the right class on average", num)
    if recurrence[margins > 0.0].sum() + necrosis[margins < 0.0].sum() == 0:
        return not_estimable("every patient lies on the right side of even odds", num)
    inverse = _root_above_zero(score, 1.0 / float(np.abs(margins).max()))
    probability = expit(inverse * margins)
    information = float((patients * margins**2) @ (probability * (1.0 - probability)))
    value = 1.0 / inverse
    log_error = value / math.sqrt(information) if information > 0.0 else math.inf  # SE of log T
    if log_error > 10.0:
        return without_interval(value, "too few scores near even odds for an interval", num)
    half_width = _z(confidence) * log_error
    return Estimate(value, value * math.exp(-half_width), value * math.exp(half_width), num)


def _root_above_zero(falling: Callable[[float], float], first_guess: float) -> float:
    """Where a function that is positive at 0 and falls for ever crosses 0."""
    from scipy.optimize import brentq

    above = first_guess
    while falling(above) >= 0.0:
        above *= 2.0
    return float(brentq(falling, 0.0, above, xtol=1e-12 * above, rtol=1e-12, maxiter=1000))


def _occupied(
    histogram: Histogram, bins: MarginBins
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Margin, recurrence and necrosis of the bins that hold a patient, in rising order."""
    recurrence, necrosis = (np.array(counts, dtype=np.float64) for counts in histogram)
    held = recurrence + necrosis > 0
    return bins.representatives()[held], recurrence[held], necrosis[held]


def _why_no_slope(
    margins: NDArray[np.float64], recurrence: NDArray[np.float64], necrosis: NDArray[np.float64]
) -> str | None:
    """The likelihood has a maximum exactly where the classes overlap (Albert and Anderson, Biometrika 71 (1984) 1)."""
    of_recurrence, of_necrosis = margins[recurrence > 0], margins[necrosis > 0]
    if of_recurrence.size == 0 or of_necrosis.size == 0:
        return ONE_CLASS
    if of_recurrence.max() <= of_necrosis.min() or of_necrosis.max() <= of_recurrence.min():
        return "a threshold separates the classes, so the logistic fit has no end"
    return None


def _brier_sum(statistics: SiteStatistics) -> int:
    """Σ(p − y)² in units of 2^-20."""
    sums = statistics.calibration
    return sums.p_squared - 2 * sums.p_necrosis + statistics.num_patients[1] * FIXED_POINT


def _calibration_error_sum(statistics: SiteStatistics) -> int:
    """Σ over tenths of |Σp − Σy| in units of 2^-20."""
    sums = statistics.calibration
    return sum(abs(p - y * FIXED_POINT) for p, y in zip(sums.tenth_p, sums.tenth_necrosis, strict=True))


def _plain_mean(total: int, statistics: SiteStatistics) -> Estimate:
    num = sum(statistics.num_patients)
    if num == 0:
        return not_estimable(NOBODY, 0)
    return without_interval(total / (num * FIXED_POINT), NO_VARIANCE, num)


def _observed_minus_expected(statistics: SiteStatistics, confidence: float) -> Estimate:
    """Mean of y − p with Student's interval: Σ(y − p)² is the Brier sum."""
    num = sum(statistics.num_patients)
    if num == 0:
        return not_estimable(NOBODY, 0)
    mean = (statistics.num_patients[1] * FIXED_POINT - statistics.calibration.p) / (num * FIXED_POINT)
    if num == 1:
        return without_interval(mean, "one patient gives no variance", num)
    variance = max(_brier_sum(statistics) / (num * FIXED_POINT) - mean**2, 0.0) / (num - 1)
    if variance == 0.0:
        return without_interval(mean, "all patients differ by the same, which gives no variance", num)
    half_width = student_quantile(confidence, num - 1) * math.sqrt(variance)
    return Estimate(mean, mean - half_width, mean + half_width, num)


def _tenths(statistics: SiteStatistics, confidence: float, interval: IntervalMethod) -> tuple[CalibrationTenth, ...]:
    sums = statistics.calibration
    return tuple(
        CalibrationTenth(
            low=which / NUM_TENTHS,
            mean_probability=p / (patients * FIXED_POINT) if patients else None,
            observed=proportion(
                necrosis, patients, whose="patients in this tenth", confidence=confidence, interval=interval
            ),
        )
        for which, (p, necrosis, patients) in enumerate(
            zip(sums.tenth_p, sums.tenth_necrosis, sums.tenth_patients, strict=True)
        )
    )


def _z(confidence: float) -> float:
    return normal_quantile(confidence)
