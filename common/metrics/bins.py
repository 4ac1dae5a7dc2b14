"""Bins of the score: where the study cuts the logit margin, the same at every site.

The score of a patient is the margin z1 − z0 of the two logits in float64: log-odds of necrosis, without bounds, free of
the ties that a softmax in float32 makes. Bins are equally wide on asinh(margin), so they are fine around even odds and
still tell 50 from 500.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataError

Histogram: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Patients per class (0 recurrence, 1 necrosis) and bin of the score, lowest scores first."""

MAX_BINS = 65536
MAX_LIMIT = 20.0  # margins of ±2.4e8


@dataclass(frozen=True)
class MarginBins:
    """Bins equally wide on asinh(margin); bin k holds edge[k−1] <= margin < edge[k], the outer bins all beyond.

    Attributes:
        num_bins: Number of bins, 2 or more. An even number puts an edge at margin 0, that is at probability ½.
        limit: Where the outer bins would end, on the asinh scale: 8 means margins of ±sinh(8) = ±1490.

    Raises:
        ConfigError: If either is out of range.
    """

    num_bins: int
    limit: float

    def __post_init__(self) -> None:
        if not 2 <= self.num_bins <= MAX_BINS:
            raise ConfigError(f"margin bins: num_bins is {self.num_bins}, expected 2 to {MAX_BINS}")
        if not 0.0 < self.limit <= MAX_LIMIT:  # False for NaN too
            raise ConfigError(
                f"margin bins: limit is {self.limit}, expected a number above 0 and at most {MAX_LIMIT:g}; "
                "it is on the asinh scale, 8 stands for margins of ±1490"
            )

    def edges(self) -> NDArray[np.float64]:
        """Inner edges on the margin scale; shape (num_bins − 1,), strictly increasing, symmetric about 0.

        Rounded to 12 digits, so that two hospitals whose sinh differs in the last bit still have the same edges.
        """
        steps = 2.0 * np.arange(1, self.num_bins) - self.num_bins  # whole numbers: the middle edge is exactly 0
        edges = np.sinh(steps * (self.limit / self.num_bins))
        return np.array([float(f"{edge:.12g}") for edge in edges], dtype=np.float64)

    def index(self, margins: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bin of each margin; same shape, 0 to num_bins − 1.

        An infinite margin still has an order, so it goes to the outer bin on its side.

        Raises:
            DataError: If a margin is NaN.
        """
        require_no_nan(margins)
        return np.searchsorted(self.edges(), margins, side="right").astype(np.int64)

    def representatives(self) -> NDArray[np.float64]:
        """A margin that stands for each bin: its middle on the asinh scale; shape (num_bins,)."""
        steps = 2.0 * np.arange(self.num_bins) + 1.0 - self.num_bins
        return np.asarray(np.sinh(steps * (self.limit / self.num_bins)), dtype=np.float64)

    def first_positive_bin(self, threshold: float) -> int | None:
        """The lowest bin that a threshold calls positive; None where the threshold cuts through a bin.

        −inf calls all patients positive (bin 0), +inf nobody (num_bins).
        """
        if math.isinf(threshold):
            return self.num_bins if threshold > 0 else 0
        edges = self.edges()
        position = int(np.searchsorted(edges, threshold, side="left"))
        is_edge = position < edges.size and edges[position] == threshold
        return position + 1 if is_edge else None


def require_no_nan(margins: NDArray[np.float64]) -> None:
    """Refuse scores that have no order.

    Raises:
        DataError: Saying how many of how many are NaN.
    """
    num_nan = int(np.isnan(margins).sum())
    if num_nan:
        raise DataError(
            f"scores: {num_nan} of {margins.size} are NaN, expected numbers; "
            "look for NaN in the images and in the model state that was evaluated"
        )


def count_by_bin(margins: NDArray[np.float64], labels: NDArray[np.int64], bins: MarginBins) -> Histogram:
    """Histogram of the margins of each class.

    Args:
        margins: Logit margins; shape (N,).
        labels: 0 (recurrence) or 1 (necrosis) for each; shape (N,).
        bins: The study's bins.
    """
    index = bins.index(margins)
    recurrence, necrosis = (np.bincount(index[labels == label], minlength=bins.num_bins).tolist() for label in (0, 1))
    return tuple(recurrence), tuple(necrosis)


def add_histograms(left: Histogram, right: Histogram) -> Histogram:
    """Counts of both, bin by bin.

    Raises:
        ValueError: If they differ in the number of bins.
    """
    return (
        tuple(a + b for a, b in zip(left[0], right[0], strict=True)),
        tuple(a + b for a, b in zip(left[1], right[1], strict=True)),
    )
