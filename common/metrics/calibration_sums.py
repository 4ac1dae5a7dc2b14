"""Sums from which calibration is computed: whole numbers, so that they add exactly and in any order.

A probability travels as q = round(p·2^20). Everything else is made from q by whole-number arithmetic: q² is rounded
back to 2^20, and the calibration bin of a patient is the tenth in which q lies. The error of a mean is below 1e-6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

FIXED_POINT = 2**20
NUM_TENTHS = 10
MAX_LOSS = 1024.0  # nats a patient: a margin of 1024 on the wrong side


@dataclass(frozen=True)
class CalibrationSums:
    """Fixed-point sums over patients of the probability p of necrosis and the label y. Adds with +.

    Attributes:
        p: Σp, in units of 2^-20.
        p_squared: Σp², in units of 2^-20.
        p_necrosis: Σp·y, in units of 2^-20.
        tenth_p: Σp of the patients with p in each tenth of [0, 1], in units of 2^-20; 10 values.
        tenth_necrosis: Σy of the same.
        tenth_patients: Number of the same.
    """

    p: int
    p_squared: int
    p_necrosis: int
    tenth_p: tuple[int, ...]
    tenth_necrosis: tuple[int, ...]
    tenth_patients: tuple[int, ...]

    @classmethod
    def zero(cls) -> "CalibrationSums":
        """The sums of nobody."""
        nothing = (0,) * NUM_TENTHS
        return cls(0, 0, 0, nothing, nothing, nothing)

    @classmethod
    def from_margins(cls, margins: NDArray[np.float64], labels: NDArray[np.int64]) -> "CalibrationSums":
        """Sums over one site's patients.

        Args:
            margins: Logit margins without NaN; shape (N,).
            labels: 0 or 1 for each; shape (N,).
        """
        q = np.rint(expit(margins) * FIXED_POINT).astype(np.int64)
        squared = (q * q + FIXED_POINT // 2) // FIXED_POINT
        tenth = np.minimum(q * NUM_TENTHS // FIXED_POINT, NUM_TENTHS - 1)
        members = [tenth == which for which in range(NUM_TENTHS)]
        return cls(
            p=int(q.sum()),
            p_squared=int(squared.sum()),
            p_necrosis=int(q[labels == 1].sum()),
            tenth_p=tuple(int(q[member].sum()) for member in members),
            tenth_necrosis=tuple(int(labels[member].sum()) for member in members),
            tenth_patients=tuple(int(member.sum()) for member in members),
        )

    @classmethod
    def total(cls, sums: Sequence["CalibrationSums"]) -> "CalibrationSums":
        """The sum of all, which + also gives, one after the other and more slowly."""
        tenths = (
            tuple(map(sum, zip(*column, strict=True)))
            for column in zip(*((each.tenth_p, each.tenth_necrosis, each.tenth_patients) for each in sums), strict=True)
        )
        return cls(
            sum(each.p for each in sums),
            sum(each.p_squared for each in sums),
            sum(each.p_necrosis for each in sums),
            *tenths,
        )

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        return CalibrationSums(
            self.p + other.p,
            self.p_squared + other.p_squared,
            self.p_necrosis + other.p_necrosis,
            _add(self.tenth_p, other.tenth_p),
            _add(self.tenth_necrosis, other.tenth_necrosis),
            _add(self.tenth_patients, other.tenth_patients),
        )

    def faults(self, num_recurrence: int, num_necrosis: int) -> list[str]:
        """What no cohort of these sizes can have sent; empty where all is possible. Counts are known to be >= 0."""
        num_patients = num_recurrence + num_necrosis
        found = []
        if sum(self.tenth_patients) != num_patients:
            found.append("calibration_tenth_patients does not add up to num_patients")
        if sum(self.tenth_necrosis) != num_necrosis:
            found.append("calibration_tenth_necrosis does not add up to the patients with necrosis")
        if sum(self.tenth_p) != self.p:
            found.append("calibration_tenth_p does not add up to the sum of p")
        fewest, most = 0, 0  # what the tenths leave for Σp·y
        for which in range(NUM_TENTHS):
            patients, necrosis, p = self.tenth_patients[which], self.tenth_necrosis[which], self.tenth_p[which]
            lowest, highest = _range_of_tenth(which)
            if necrosis > patients:
                found.append(f"calibration tenth {which} has more necrosis than patients")
            if not lowest * patients <= p <= highest * patients:
                found.append(f"calibration tenth {which} has a mean p outside the tenth")
            fewest += max(lowest * necrosis, p - highest * (patients - necrosis))
            most += min(highest * necrosis, p - lowest * (patients - necrosis))
        if not fewest <= self.p_necrosis <= most:
            found.append("the sum of p·y is not possible with these tenths")
        # Σp²: at most Σp, and at least (Σp)²/N less half a unit of rounding a patient.
        if self.p_squared > self.p:
            found.append("the sum of p² exceeds the sum of p")
        if (2 * self.p_squared + num_patients) * num_patients * FIXED_POINT < 2 * self.p**2:
            found.append("the sum of p² is smaller than the mean of p allows")
        return found


def fixed_point_loss(margins: NDArray[np.float64], labels: NDArray[np.int64]) -> int:
    """Sum of the cross-entropy −log p(label), nats in units of 2^-20; each patient counts for at most MAX_LOSS."""
    wrong_way = np.where(labels == 1, -margins, margins)
    loss = np.minimum(np.logaddexp(0.0, wrong_way), MAX_LOSS)
    return int(np.rint(loss * FIXED_POINT).astype(np.int64).sum())


def _range_of_tenth(which: int) -> tuple[int, int]:
    """Lowest and highest q in a tenth; the last one holds p = 1."""
    lowest = -(-which * FIXED_POINT // NUM_TENTHS)
    if which == NUM_TENTHS - 1:
        return lowest, FIXED_POINT
    return lowest, -(-(which + 1) * FIXED_POINT // NUM_TENTHS) - 1


def _add(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))
