"""Choosing the threshold on validation patients."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, DataError
from common.metrics.bins import Histogram, MarginBins
from common.metrics.confusion import Confusion, confusion_from_histogram
from common.metrics.operating_point import (
    OperatingPoint,
    RuleName,
    ThresholdRule,
    choose_threshold,
    operating_point_from_json,
    operating_point_to_json,
)

BINS = MarginBins(num_bins=4, limit=2.0)
LOW, EVEN, HIGH = BINS.edges().tolist()
VALIDATION: Histogram = ((4, 3, 2, 1), (1, 0, 4, 5))

rows = st.lists(st.integers(0, 6), min_size=8, max_size=8).map(tuple)
EIGHT = MarginBins(num_bins=8, limit=3.0)


def test_default_rule_is_the_highest_threshold_with_sensitivity_90() -> None:
    point = choose_threshold(VALIDATION, ThresholdRule(), BINS)

    assert point.threshold == EVEN
    assert point.validation == Confusion(true_positive=9, false_positive=3, true_negative=7, false_negative=1)


@pytest.mark.parametrize(
    ("name", "value", "threshold"),
    [
        pytest.param("sensitivity", 0.5, HIGH, id="sensitivity .5"),
        pytest.param("sensitivity", 0.91, -math.inf, id="everybody, where the lowest bin is needed"),
        pytest.param("specificity", 0.7, EVEN, id="specificity .7"),
        pytest.param("specificity", 0.71, HIGH, id="specificity .71"),
        pytest.param("specificity", 1.0, math.inf, id="nobody, where the highest bin must stay out"),
        pytest.param("youden", None, EVEN, id="youden"),
        pytest.param("fixed", 0.0, EVEN, id="fixed"),
    ],
)
def test_rules_choose_the_threshold_one_finds_by_hand(name: RuleName, value: float | None, threshold: float) -> None:
    point = choose_threshold(VALIDATION, ThresholdRule(name, value), BINS)

    assert point.threshold == threshold
    first_bin = BINS.first_positive_bin(threshold)
    assert first_bin is not None
    assert point.validation == confusion_from_histogram(VALIDATION, first_bin)


def test_a_fixed_threshold_inside_a_bin_is_kept_but_has_no_validation_counts() -> None:
    point = choose_threshold(VALIDATION, ThresholdRule("fixed", 0.3), BINS)

    assert (point.threshold, point.validation) == (0.3, None)


def test_youden_takes_the_higher_sensitivity_of_equals_and_the_middle_of_a_gap() -> None:
    gap = (0, 0, 9, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0, 9)
    equals = (2, 2, 0, 0, 0, 0, 0, 0), (0, 2, 0, 2, 0, 0, 0, 0)

    assert choose_threshold(gap, ThresholdRule("youden", None), EIGHT).threshold == EIGHT.edges()[4]
    assert choose_threshold(equals, ThresholdRule("youden", None), EIGHT).threshold == EIGHT.edges()[0]


@given(rows, rows, st.floats(0.01, 1.0))
def test_no_other_candidate_satisfies_the_rule_better(
    recurrence: tuple[int, ...], necrosis: tuple[int, ...], wanted: float
) -> None:
    histogram = recurrence, necrosis
    if sum(recurrence) == 0 or sum(necrosis) == 0:
        return
    candidates = [-math.inf, *EIGHT.edges().tolist(), math.inf]
    counts = [confusion_from_histogram(histogram, cut) for cut in range(9)]
    sensitivity = [each.true_positive / each.num_necrosis for each in counts]
    specificity = [each.true_negative / each.num_recurrence for each in counts]

    def chosen(name: RuleName, value: float | None) -> float:
        return choose_threshold(histogram, ThresholdRule(name, value), EIGHT).threshold

    pairs = list(zip(candidates, sensitivity, specificity, strict=True))
    assert chosen("sensitivity", wanted) == max(t for t, share, _ in pairs if share >= wanted)
    assert chosen("specificity", wanted) == min(t for t, _, share in pairs if share >= wanted)
    best = max(a + b for _, a, b in pairs)
    youden = candidates.index(chosen("youden", None))
    assert sensitivity[youden] + specificity[youden] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value", "histogram", "missing"),
    [
        ("sensitivity", 0.9, ((1, 1, 1, 1), (0, 0, 0, 0)), "has necrosis"),
        ("specificity", 0.9, ((0, 0, 0, 0), (1, 1, 1, 1)), "has recurrence"),
        ("youden", None, ((0, 0, 0, 0), (0, 0, 0, 0)), "has recurrence or necrosis"),
    ],
)
def test_a_rule_without_the_class_it_needs_is_refused(
    name: RuleName, value: float | None, histogram: Histogram, missing: str
) -> None:
    with pytest.raises(DataError, match=missing):
        choose_threshold(histogram, ThresholdRule(name, value), BINS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sensitivity", None),
        ("sensitivity", 0.0),
        ("sensitivity", 90.0),
        ("specificity", math.nan),
        ("fixed", None),
        ("fixed", math.nan),
        ("youden", 0.9),
    ],
)
def test_a_rule_with_an_impossible_value_is_refused(name: RuleName, value: float | None) -> None:
    with pytest.raises(ConfigError, match=f"threshold rule {name}"):
        ThresholdRule(name, value)


@pytest.mark.parametrize(
    "point",
    [
        choose_threshold(VALIDATION, ThresholdRule(), BINS),
        choose_threshold(VALIDATION, ThresholdRule("specificity", 1.0), BINS),
        OperatingPoint(0.1 + 0.2, ThresholdRule("fixed", 0.1 + 0.2), None),
    ],
    ids=["edge", "infinite", "fixed"],
)
def test_a_frozen_point_survives_strict_json(point: OperatingPoint) -> None:
    text = json.dumps(operating_point_to_json(point), allow_nan=False)

    assert operating_point_from_json(json.loads(text)) == point


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": "high"}, "threshold"),
        ({"threshold": "nan"}, "threshold is NaN"),
        ({"rule": {"name": "best", "value": None}}, "rule.name"),
        ({"cohort": 1}, "unknown fields cohort"),
    ],
)
def test_a_broken_record_is_refused(change: dict[str, object], says: str) -> None:
    values = operating_point_to_json(choose_threshold(VALIDATION, ThresholdRule(), BINS)) | change

    with pytest.raises(ConfigError, match=says):
        operating_point_from_json(values)
