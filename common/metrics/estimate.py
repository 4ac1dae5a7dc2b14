"""A figure as it is printed: value, interval, the patients behind it, or why it cannot be estimated."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The figure; None where it cannot be estimated.
        low: Lower end of the interval; None where there is no interval.
        high: Upper end of the interval; None exactly where low is.
        num: What the figure rests on: patients, or sites for a figure between sites.
        reason: Why the value or its interval is missing; None where both are there.
    """

    value: float | None
    low: float | None
    high: float | None
    num: int
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.low is None) == (self.high is None), "an interval has two ends"
        assert (self.low is None) == (self.reason is not None), "a missing interval has a reason, no other has"
        assert self.value is not None or self.low is None, "no interval without a value"

    def __str__(self) -> str:
        if self.value is None:
            return "not estimable"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [not estimable]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def not_estimable(reason: str, num: int) -> Estimate:
    """No value at all."""
    return Estimate(value=None, low=None, high=None, num=num, reason=reason)


def without_interval(value: float, reason: str, num: int) -> Estimate:
    """A value whose interval cannot be given."""
    return Estimate(value=value, low=None, high=None, num=num, reason=reason)
