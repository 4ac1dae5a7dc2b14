"""The threshold: chosen on pooled validation patients by the study's rule, or not at all and said why."""

import math
from typing import Any

import numpy as np
import pytest

from common.messages import bins_of
from common.metrics.confusion import count_confusion
from common.metrics.site_statistics import SiteStatistics
from common.study import Study, parse_study
from common.tasks import Evaluation
from server.decision import decide, with_confusion
from server.pooling import Pool, pool_evaluations
from tests.tiny_hospitals import study_text

MARGINS = np.array([-2.0, -1.0, 0.5, 0.2, 0.7, 3.0])
LABELS = np.array([0, 1, 1, 0, 0, 1])


def study(**operating_point: Any) -> Study:
    return parse_study(study_text(evaluation={"operating_point": operating_point, "num_bins": 256}), origin="study")


def pool(labels: Any = LABELS, *, min_pooled_sites: int = 1) -> Pool:
    counted = SiteStatistics.from_margins(MARGINS, np.asarray(labels), bins=bins_of(study()), threshold=None)
    evaluation = Evaluation(split="validation", statistics=counted, withheld="", cohort_digest="0" * 64)
    few = parse_study(study_text(evaluation={"min_pooled_sites": min_pooled_sites}), origin="study")
    return pool_evaluations({"a": evaluation}, missing={}, study=few)


@pytest.mark.parametrize(
    ("operating_point", "between"),
    [
        pytest.param({"rule": "sensitivity", "value": 0.6}, (0.2, 0.5), id="two of three necroses"),
        pytest.param({"rule": "sensitivity"}, (-2.0, -1.0), id="nine of ten necroses is all three"),
        pytest.param({"rule": "specificity", "value": 0.6}, (0.2, 0.7), id="two of three recurrences"),
        pytest.param({"rule": "youden"}, (-2.0, -1.0), id="youden"),
    ],
)
def test_threshold_is_the_one_the_rule_asks_for(operating_point: Any, between: tuple[float, float]) -> None:
    decision = decide(pool(), study(**operating_point))

    assert decision.threshold is not None
    assert between[0] < decision.threshold <= between[1]
    assert decision.reason == ""


def test_rule_is_told_with_its_value() -> None:
    assert decide(pool(), study(rule="sensitivity")).rule == "sensitivity 0.9"
    assert decide(pool(), study(rule="youden")).rule == "youden"


def test_fixed_threshold_needs_no_patients() -> None:
    decision = decide(pool(min_pooled_sites=2), study(rule="fixed", value=0.3))

    assert (decision.threshold, decision.rule, decision.reason) == (0.3, "fixed 0.3", "")


def test_without_a_pooled_result_there_is_no_threshold_and_it_is_said_why() -> None:
    decision = decide(pool(min_pooled_sites=2), study())

    assert decision.threshold is None
    assert decision.reason == "no pooled validation result: the counts of 1 of the 2 sites that the study asks for"


def test_without_a_patient_of_the_class_a_rule_needs_there_is_no_threshold_and_it_is_said_why() -> None:
    decision = decide(pool(np.zeros(6, dtype=np.int64)), study(rule="sensitivity"))

    assert decision.threshold is None
    assert "no validation patient has necrosis" in decision.reason


@pytest.mark.parametrize("threshold", [-math.inf, 0.0, math.inf])
def test_counts_at_an_edge_of_the_bins_are_exact(threshold: float) -> None:
    counted = with_confusion(pool(), threshold).per_site["a"].confusion

    assert counted == count_confusion(MARGINS, LABELS, threshold)


@pytest.mark.parametrize("threshold", [None, 0.123456])
def test_where_the_histogram_cannot_tell_nothing_is_counted(threshold: float | None) -> None:
    assert with_confusion(pool(), threshold).per_site["a"].confusion is None
