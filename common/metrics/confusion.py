"""Confusion counts at a threshold: necrosis is the positive class, called where score >= threshold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.metrics.bins import Histogram


@dataclass(frozen=True)
class Confusion:
    """How many patients of each class were called what. Adds with +."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.true_negative + other.true_negative,
            self.false_negative + other.false_negative,
        )

    @property
    def num_necrosis(self) -> int:
        """Patients whose label is 1."""
        return self.true_positive + self.false_negative

    @property
    def num_recurrence(self) -> int:
        """Patients whose label is 0."""
        return self.true_negative + self.false_positive

    @property
    def num_patients(self) -> int:
        """Patients of both classes."""
        return self.num_necrosis + self.num_recurrence


def count_confusion(margins: NDArray[np.float64], labels: NDArray[np.int64], threshold: float) -> Confusion:
    """Count at a threshold on the margin scale, in float64.

    Args:
        margins: Logit margins without NaN; shape (N,).
        labels: 0 or 1 for each; shape (N,).
        threshold: −inf calls all patients positive and +inf nobody, whatever their scores.
    """
    # An infinite score would meet a threshold of +inf and miss one of −inf; the largest finite number does neither.
    largest = np.finfo(np.float64).max
    called = np.clip(margins, -largest, largest) >= threshold
    necrosis = labels == 1
    return Confusion(
        true_positive=int((called & necrosis).sum()),
        false_positive=int((called & ~necrosis).sum()),
        true_negative=int((~called & ~necrosis).sum()),
        false_negative=int((~called & necrosis).sum()),
    )


def confusion_from_histogram(histogram: Histogram, first_positive_bin: int) -> Confusion:
    """Exactly the count at the lower edge of a bin; see `MarginBins.first_positive_bin`."""
    recurrence, necrosis = histogram
    return Confusion(
        true_positive=sum(necrosis[first_positive_bin:]),
        false_positive=sum(recurrence[first_positive_bin:]),
        true_negative=sum(recurrence[:first_positive_bin]),
        false_negative=sum(necrosis[:first_positive_bin]),
    )
