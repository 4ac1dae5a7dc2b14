"""The operating point: a threshold chosen on the pooled validation histogram, then frozen.

A threshold chosen on the patients it is judged on flatters itself: Youden's J chosen on 100 patients shows .587 where
new patients give .473. So it is chosen on validation patients, stored with the model, and applied to the test patients.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigError, DataError, list_of_faults
from common.metrics.auc import roc_counts
from common.metrics.bins import Histogram, MarginBins
from common.metrics.confusion import Confusion, confusion_from_histogram

RuleName = Literal["sensitivity", "specificity", "youden", "fixed"]


@dataclass(frozen=True)
class ThresholdRule:
    """How the threshold is chosen.

    Attributes:
        name: `sensitivity`: the highest threshold with at least this sensitivity. `specificity`: the lowest with at
            least this specificity. `youden`: the largest sensitivity + specificity. `fixed`: this margin.
        value: The sensitivity or specificity wanted, above 0 and at most 1; the margin of `fixed`; None for `youden`.

    Raises:
        ConfigError: If the value does not fit the name.
    """

    name: RuleName = "sensitivity"
    value: float | None = 0.90

    def __post_init__(self) -> None:
        match self.name:
            case "sensitivity" | "specificity":
                if self.value is None or not 0.0 < self.value <= 1.0:
                    raise ConfigError(
                        f"threshold rule {self.name}: value is {self.value}, expected a share above 0 and at most 1"
                    )
            case "fixed":
                if self.value is None or math.isnan(self.value):
                    raise ConfigError(
                        f"threshold rule fixed: value is {self.value}, expected a logit margin; 0 is even odds"
                    )
            case "youden":
                if self.value is not None:
                    raise ConfigError(f"threshold rule youden: value is {self.value}, expected none")


@dataclass(frozen=True)
class OperatingPoint:
    """A frozen threshold.

    Attributes:
        threshold: On the margin scale; a patient is called necrosis where score >= threshold. An inner edge of the
            bins, or −inf (everybody), or +inf (nobody), or the rule's own value.
        rule: How it was chosen.
        validation: Counts of the validation patients at the threshold; None where a fixed threshold cuts through a
            bin, where the histogram does not tell.
    """

    threshold: float
    rule: ThresholdRule
    validation: Confusion | None

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise ConfigError("operating point: threshold is NaN, expected a margin; choose it again on validation")


_OPERATING_POINT = TypeAdapter(OperatingPoint)


def choose_threshold(histogram: Histogram, rule: ThresholdRule, bins: MarginBins) -> OperatingPoint:
    """Choose the threshold on pooled validation patients.

    Candidates are −inf, the inner edges, and +inf. Shares are compared as whole numbers or exact quotients, so that
    ties are decided by the rule and not by rounding. Youden's ties go to the higher sensitivity; among thresholds that
    call the same patients, to the middle of the gap between the scores.

    Args:
        histogram: Validation patients of all sites.
        rule: What is wanted.
        bins: The bins of the histogram.

    Raises:
        DataError: If the rule needs a class that has no validation patients.
    """
    if rule.name == "fixed":
        assert rule.value is not None
        first_bin = bins.first_positive_bin(rule.value)
        counts = None if first_bin is None else confusion_from_histogram(histogram, first_bin)
        return OperatingPoint(rule.value, rule, counts)
    _require_classes(histogram, rule)
    chosen = _first_positive_bin(histogram, rule)
    cuts = [-math.inf, *bins.edges().tolist(), math.inf]
    return OperatingPoint(cuts[chosen], rule, confusion_from_histogram(histogram, chosen))


def _first_positive_bin(histogram: Histogram, rule: ThresholdRule) -> int:
    """Number of the lowest bin called positive: 0 (all) to num_bins (none)."""
    N0, N1 = sum(histogram[0]), sum(histogram[1])
    by_cut = roc_counts(histogram)[::-1]  # (FP, TP) with bins >= cut called positive
    match rule.name:
        case "sensitivity":
            assert rule.value is not None
            return max(cut for cut, (_, tp) in enumerate(by_cut) if tp / N1 >= rule.value)
        case "specificity":
            assert rule.value is not None
            return min(cut for cut, (fp, _) in enumerate(by_cut) if (N0 - fp) / N0 >= rule.value)
        case "youden":
            j = [tp * N0 - fp * N1 for fp, tp in by_cut]
            first = int(np.argmax(j))
            same = [cut for cut, counts in enumerate(by_cut) if counts == by_cut[first]]
            return same[(len(same) - 1) // 2]
        case "fixed":
            raise AssertionError("a fixed threshold is not searched for")


def _require_classes(histogram: Histogram, rule: ThresholdRule) -> None:
    needed = {"sensitivity": (1,), "specificity": (0,), "youden": (0, 1)}[rule.name]
    missing = [("recurrence", "necrosis")[label] for label in needed if sum(histogram[label]) == 0]
    if missing:
        raise DataError(
            f"threshold rule {rule.name}: no validation patient has {' or '.join(missing)}; "
            "enlarge the validation split or use the rule fixed"
        )


def operating_point_to_json(point: OperatingPoint) -> dict[str, object]:
    """Plain JSON values for the model's record; an infinite threshold is the text "inf" or "-inf"."""
    threshold = point.threshold
    return {
        "threshold": threshold if math.isfinite(threshold) else str(threshold),
        "rule": asdict(point.rule),
        "validation": None if point.validation is None else asdict(point.validation),
    }


def operating_point_from_json(values: Mapping[str, object]) -> OperatingPoint:
    """Read back what `operating_point_to_json` made.

    Raises:
        ConfigError: If a field is missing, unknown or of another kind.
    """
    where = "operating point of the model's record"
    if unknown := sorted(set(values) - {field.name for field in fields(OperatingPoint)}):
        raise ConfigError(f"{where}: unknown fields {', '.join(unknown)}; expected threshold, rule and validation")
    try:
        return _OPERATING_POINT.validate_python(dict(values))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
        raise ConfigError(list_of_faults(where, faults)) from error
