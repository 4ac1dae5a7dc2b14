"""Adaptive FedProx: the strength of the penalty follows the pooled validation loss from round to round."""

import math
from dataclasses import dataclass, replace

import numpy as np

from common.metrics.site_statistics import SiteStatistics

LEAST_MU, MOST_MU = 1e-3, 1.0
STEP = 2.0
"""Factor of a step up or down."""

_FIXED_POINT = 2**20


@dataclass(frozen=True)
class ProximalStrength:
    """The strength that the next round has, and the loss that decided on it.

    Attributes:
        mu: Strength of the penalty.
        loss: Pooled validation loss at the last step, or the first one seen; None before there is one.
        num_patients: Recurrence and necrosis behind that loss.
    """

    mu: float
    loss: float | None = None
    num_patients: tuple[int, int] | None = None


def first_strength(mu: float) -> ProximalStrength:
    """Where a study's `fedprox_mu` lets the strength begin, within its range."""
    return ProximalStrength(min(mu, MOST_MU))


def adapted(strength: ProximalStrength, validation: SiteStatistics | None) -> ProximalStrength:
    """The strength after one more pooled validation.

    Li et al. (2020, arXiv:1812.06127, section 5.3.2 and appendix C.3.3) raise mu by .1 when the loss rises and lower it
    by .1 after falls in a row. Here a step is a factor of 2, since useful strengths lie orders of magnitude apart, and
    chance is kept out of it: a loss within one standard error of that of the last step moves nothing and leaves the
    comparison where it is, so that a slow drift is noticed too. mu goes from 0 to .001, from .001 to 0, and stays at 1.

    Args:
        strength: What has been so far.
        validation: Counts of the pooled validation patients; None where none were pooled, which changes nothing. Where
            they are not as many as before, the loss is not comparable: it becomes the new reference.
    """
    if validation is None or sum(validation.num_patients) == 0:
        return strength
    loss = validation.loss_sum / _FIXED_POINT / sum(validation.num_patients)
    seen = replace(strength, loss=loss, num_patients=validation.num_patients)
    if strength.loss is None or strength.num_patients != validation.num_patients:
        return seen
    error = loss_standard_error(validation)
    if error is None or abs(loss - strength.loss) <= error:
        return strength
    return replace(seen, mu=_raised(strength.mu) if loss > strength.loss else _lowered(strength.mu))


def _raised(mu: float) -> float:
    return min(max(STEP * mu, LEAST_MU), MOST_MU)


def _lowered(mu: float) -> float:
    lower = mu / STEP
    return lower if lower >= LEAST_MU else 0.0


def loss_standard_error(statistics: SiteStatistics) -> float | None:
    """Standard error of the mean loss; None with fewer than two patients.

    Sites send the sum of their patients' losses but not of the squares, so the spread is taken from the histogram of
    margins: every patient counts with the loss in the middle of its bin. The losses of two rounds are of the same
    patients, so that their difference varies less than this says: the dead band errs on the side of leaving mu alone.
    """
    num = sum(statistics.num_patients)
    if num < 2:
        return None
    margins = statistics.bins.representatives()
    counts = np.concatenate([np.asarray(row, dtype=np.float64) for row in statistics.histogram])  # (2 bins,)
    losses = np.concatenate([np.logaddexp(0.0, margins), np.logaddexp(0.0, -margins)])
    mean = float(counts @ losses) / num
    variance = float(counts @ (losses - mean) ** 2) / (num - 1)
    return math.sqrt(variance / num)
