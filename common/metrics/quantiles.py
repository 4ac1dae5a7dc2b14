"""Quantiles for intervals: what `scipy.stats` gives, without the second that its import takes."""

from functools import lru_cache

from scipy.special import ndtri, stdtrit


@lru_cache(maxsize=64)
def normal_quantile(confidence: float) -> float:
    """The z of a two-sided interval with this coverage, such as 1.96 for .95."""
    return -float(ndtri((1.0 - confidence) / 2.0))


def student_quantile(confidence: float, degrees_of_freedom: float) -> float:
    """The t of a two-sided interval with this coverage."""
    return -float(stdtrit(degrees_of_freedom, (1.0 - confidence) / 2.0))
