"""What one site sends for one evaluation: whole numbers in a fixed schema, which add up to the pool.

Sums of integers are exact and have no order, so any split of the same patients over sites gives the same pool, and
the same numbers can go through secure aggregation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ProtocolError, list_of_faults
from common.metrics.bins import Histogram, MarginBins, add_histograms, count_by_bin, require_no_nan
from common.metrics.calibration_sums import FIXED_POINT, MAX_LOSS, NUM_TENTHS, CalibrationSums, fixed_point_loss
from common.metrics.confusion import Confusion, count_confusion

MAX_PATIENTS = 2**24
"""Patients in one message. Keeps every sum, and every product of two counts, inside 64 bits."""


@dataclass(frozen=True)
class SiteStatistics:
    """Sums over the patients of one site, or of several after +.

    Attributes:
        bins: The study's bins of the score.
        histogram: Patients per class and bin.
        confusion: Counts at the frozen threshold; None as long as no threshold is frozen.
        calibration: Fixed-point sums of probabilities.
        loss_sum: Cross-entropy, nats in units of 2^-20; see `fixed_point_loss`.
        num_patients: Patients with label 0 (recurrence) and 1 (necrosis).
    """

    bins: MarginBins
    histogram: Histogram
    confusion: Confusion | None
    calibration: CalibrationSums
    loss_sum: int
    num_patients: tuple[int, int]

    @classmethod
    def from_margins(
        cls,
        margins: NDArray[np.float64],
        labels: NDArray[np.int64],
        *,
        bins: MarginBins,
        threshold: float | None,
    ) -> "SiteStatistics":
        """Count one site's patients.

        Args:
            margins: Logit margin z1 − z0 of each patient; shape (N,), N may be 0. An infinite margin counts as
                probability 0 or 1 and in the outer bin.
            labels: 0 (recurrence) or 1 (necrosis); shape (N,).
            bins: The study's bins.
            threshold: The frozen threshold on the margin scale, or None before one is chosen.

        Raises:
            DataError: If a margin or the threshold is NaN, a label is neither 0 nor 1, or the shapes differ.
        """
        margins = np.asarray(margins, dtype=np.float64)
        labels = np.asarray(labels)
        _require_usable(margins, labels, threshold)
        labels = labels.astype(np.int64)
        num_necrosis = int(labels.sum())
        return cls(
            bins=bins,
            histogram=count_by_bin(margins, labels, bins),
            confusion=None if threshold is None else count_confusion(margins, labels, threshold),
            calibration=CalibrationSums.from_margins(margins, labels),
            loss_sum=fixed_point_loss(margins, labels),
            num_patients=(labels.size - num_necrosis, num_necrosis),
        )

    @classmethod
    def zero(cls, bins: MarginBins, *, has_threshold: bool) -> "SiteStatistics":
        """The statistics of nobody, where a sum begins."""
        return cls(
            bins=bins,
            histogram=((0,) * bins.num_bins, (0,) * bins.num_bins),
            confusion=Confusion(0, 0, 0, 0) if has_threshold else None,
            calibration=CalibrationSums.zero(),
            loss_sum=0,
            num_patients=(0, 0),
        )

    def __add__(self, other: "SiteStatistics") -> "SiteStatistics":
        """The statistics of the patients of both.

        Raises:
            ProtocolError: If the bins differ, or only one of the two was counted at a threshold.
        """
        if self.bins != other.bins:
            raise ProtocolError(f"site statistics: bins {self.bins} and {other.bins} differ; use the study's")
        return SiteStatistics(
            bins=self.bins,
            histogram=add_histograms(self.histogram, other.histogram),
            confusion=_add_confusion(self.confusion, other.confusion),
            calibration=self.calibration + other.calibration,
            loss_sum=self.loss_sum + other.loss_sum,
            num_patients=(
                self.num_patients[0] + other.num_patients[0],
                self.num_patients[1] + other.num_patients[1],
            ),
        )

    @classmethod
    def total(cls, statistics: Sequence["SiteStatistics"]) -> "SiteStatistics":
        """The sum of all, which + also gives, one after the other and more slowly.

        Raises:
            ProtocolError: Where + does.
            IndexError: If there is none.
        """
        first = statistics[0]
        confusions = [each.confusion for each in statistics if each.confusion is not None]
        if any(each.bins != first.bins for each in statistics) or len(confusions) not in (0, len(statistics)):
            return reduce(add, statistics)  # says what differs
        recurrence, necrosis = (
            tuple(map(sum, zip(*(each.histogram[label] for each in statistics), strict=True))) for label in (0, 1)
        )
        return cls(
            bins=first.bins,
            histogram=(recurrence, necrosis),
            confusion=reduce(add, confusions) if confusions else None,
            calibration=CalibrationSums.total([each.calibration for each in statistics]),
            loss_sum=sum(each.loss_sum for each in statistics),
            num_patients=(
                sum(each.num_patients[0] for each in statistics),
                sum(each.num_patients[1] for each in statistics),
            ),
        )

    def to_integers(self) -> dict[str, list[int]]:
        """The message: `schema` names the lists and their lengths."""
        sums = self.calibration
        values = {
            "num_patients": list(self.num_patients),
            "histogram_recurrence": list(self.histogram[0]),
            "histogram_necrosis": list(self.histogram[1]),
            "calibration_sums": [sums.p, sums.p_squared, sums.p_necrosis],
            "calibration_tenth_p": list(sums.tenth_p),
            "calibration_tenth_necrosis": list(sums.tenth_necrosis),
            "calibration_tenth_patients": list(sums.tenth_patients),
            "loss_sum": [self.loss_sum],
        }
        if (counts := self.confusion) is not None:
            values["confusion"] = [
                counts.true_positive,
                counts.false_positive,
                counts.true_negative,
                counts.false_negative,
            ]
        return values

    @classmethod
    def from_integers(
        cls, values: Mapping[str, Sequence[int]], *, bins: MarginBins, has_threshold: bool
    ) -> "SiteStatistics":
        """Read what a peer sent, and refuse what no cohort can have produced.

        Args:
            values: As `to_integers` makes it.
            bins: The study's bins.
            has_threshold: Whether the evaluation was asked for at a frozen threshold.

        Raises:
            ProtocolError: Naming every list that is missing, unknown, of another length, negative, or at odds with
                the number of patients.
        """
        lists = _require_schema(values, schema(bins, has_threshold=has_threshold))
        sums = lists["calibration_sums"]
        statistics = cls(
            bins=bins,
            histogram=(tuple(lists["histogram_recurrence"]), tuple(lists["histogram_necrosis"])),
            confusion=Confusion(*lists["confusion"]) if has_threshold else None,
            calibration=CalibrationSums(
                p=sums[0],
                p_squared=sums[1],
                p_necrosis=sums[2],
                tenth_p=tuple(lists["calibration_tenth_p"]),
                tenth_necrosis=tuple(lists["calibration_tenth_necrosis"]),
                tenth_patients=tuple(lists["calibration_tenth_patients"]),
            ),
            loss_sum=lists["loss_sum"][0],
            num_patients=(lists["num_patients"][0], lists["num_patients"][1]),
        )
        if faults := statistics.faults():
            raise ProtocolError(list_of_faults("site statistics", faults))
        return statistics

    def faults(self) -> list[str]:
        """What contradicts itself in these sums; empty where some cohort can have produced them."""
        num_recurrence, num_necrosis = self.num_patients
        num_patients = num_recurrence + num_necrosis
        found = []
        if num_patients > MAX_PATIENTS:
            found.append(f"num_patients adds up to {num_patients}, expected at most {MAX_PATIENTS}")
        if sum(self.histogram[0]) != num_recurrence:
            found.append("histogram_recurrence does not add up to its num_patients")
        if sum(self.histogram[1]) != num_necrosis:
            found.append("histogram_necrosis does not add up to its num_patients")
        if self.confusion is not None:
            if self.confusion.num_recurrence != num_recurrence:
                found.append("confusion has another number of patients with recurrence than num_patients")
            if self.confusion.num_necrosis != num_necrosis:
                found.append("confusion has another number of patients with necrosis than num_patients")
        if self.loss_sum > num_patients * int(MAX_LOSS) * FIXED_POINT:
            found.append(f"loss_sum exceeds {MAX_LOSS:g} nats a patient")
        return found + self.calibration.faults(num_recurrence, num_necrosis)


def schema(bins: MarginBins, *, has_threshold: bool) -> dict[str, int]:
    """Name and length of every list that a site sends."""
    lengths = {
        "num_patients": 2,
        "histogram_recurrence": bins.num_bins,
        "histogram_necrosis": bins.num_bins,
        "calibration_sums": 3,
        "calibration_tenth_p": NUM_TENTHS,
        "calibration_tenth_necrosis": NUM_TENTHS,
        "calibration_tenth_patients": NUM_TENTHS,
        "loss_sum": 1,
    }
    return lengths | {"confusion": 4} if has_threshold else lengths


def _require_schema(values: object, lengths: Mapping[str, int]) -> dict[str, list[int]]:
    """The lists as plain integers >= 0, or a ProtocolError that names what is wrong with each."""
    if not isinstance(values, Mapping):
        raise ProtocolError(f"site statistics: expected named lists of integers, got {type(values).__name__}")
    faults = []
    if unknown := len([name for name in values if name not in lengths]):
        faults.append(f"{unknown} unknown names; expected {', '.join(lengths)}")
    lists: dict[str, list[int]] = {}
    for name, length in lengths.items():
        items = values.get(name)
        if not isinstance(items, Sequence) or isinstance(items, str | bytes):
            faults.append(f"{name} is {type(items).__name__}, expected a list of {length} integers")
        elif len(items) != length:
            faults.append(f"{name} has {len(items)} values, expected {length}")
        elif not all(type(item) is int and 0 <= item < 2**63 for item in items):
            faults.append(f"{name} holds something else than integers from 0 to 2^63 − 1")
        else:
            lists[name] = list(items)
    if faults:
        raise ProtocolError(list_of_faults("site statistics", faults))
    return lists


def _require_usable(margins: NDArray[np.float64], labels: NDArray[np.int64], threshold: float | None) -> None:
    if margins.ndim != 1 or labels.shape != margins.shape:
        raise DataError(f"scores: shape {margins.shape} for labels of shape {labels.shape}, expected (N,) for both")
    require_no_nan(margins)
    num_other = int((~np.isin(labels, (0, 1))).sum())
    if num_other:
        raise DataError(f"labels: {num_other} of {labels.size} are neither 0 nor 1; map labels before the evaluation")
    if threshold is not None and np.isnan(threshold):
        raise DataError("threshold is NaN, expected a number; take it from the model's record")


def _add_confusion(left: Confusion | None, right: Confusion | None) -> Confusion | None:
    if left is None and right is None:
        return None
    if left is None or right is None:
        raise ProtocolError(
            "site statistics: one site counted at a threshold and another did not; ask all sites for the same"
        )
    return left + right
