"""Pooling: counts are added over the sites that show them, and whoever is missing is named."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from common.messages import bins_of
from common.metrics.site_statistics import SiteStatistics
from common.study import Study, parse_study
from common.tasks import Evaluation
from server.pooling import candidate, pool_evaluations, summary
from tests.tiny_hospitals import study_text


def study(min_pooled_sites: int = 1) -> Study:
    return parse_study(study_text(evaluation={"min_pooled_sites": min_pooled_sites, "num_bins": 256}), origin="study")


def shows(margins: list[float], labels: list[int]) -> Evaluation:
    counted = SiteStatistics.from_margins(
        np.array(margins), np.array(labels, dtype=np.int64), bins=bins_of(study()), threshold=None
    )
    return Evaluation(split="validation", statistics=counted, withheld="", cohort_digest="0" * 64)


def withholds(why: str) -> Evaluation:
    return Evaluation(split="validation", statistics=None, withheld=why, cohort_digest="0" * 64)


A = shows([-2.0, -1.0, 0.5], [0, 1, 1])
B = shows([0.2, 0.7, 3.0], [0, 0, 1])
MARGINS, LABELS = [-2.0, -1.0, 0.5, 0.2, 0.7, 3.0], [0, 1, 1, 0, 0, 1]


def test_pooled_figures_are_those_of_all_patients_together() -> None:
    values = summary(pool_evaluations({"a": A, "b": B}, missing={}, study=study()), study=study())

    assert values["num_patients"] == [3, 3]
    assert values["auc"]["value"] == pytest.approx(roc_auc_score(LABELS, MARGINS), abs=1e-12)
    probabilities = 1 / (1 + np.exp(-np.array(MARGINS)))
    assert values["loss"] == pytest.approx(log_loss(LABELS, probabilities), abs=1e-5)
    assert values["sites"] == ["a", "b"]


def test_order_of_the_sites_changes_nothing() -> None:
    one = summary(pool_evaluations({"a": A, "b": B}, missing={}, study=study()), study=study())
    other = summary(pool_evaluations({"b": B, "a": A}, missing={}, study=study()), study=study())

    assert one == other


def test_everybody_who_is_not_in_the_pool_is_named_with_the_reason() -> None:
    evaluations = {"a": A, "few": withholds("min_cell"), "none": withholds("no_patients")}

    pool = pool_evaluations(evaluations, missing={"z": "absent: never connected"}, study=study())

    assert pool.missing == {
        "few": "withheld: a class has fewer patients than the site shows",
        "none": "no patients in this split",
        "z": "absent: never connected",
    }
    assert pool.answered == ("a", "few", "none")
    assert sorted(pool.per_site) == ["a"]


def test_too_few_sites_form_no_pooled_figure_and_it_is_said_why() -> None:
    pool = pool_evaluations({"a": A, "few": withholds("min_cell")}, missing={}, study=study(2))

    values = summary(pool, study=study(2))

    assert pool.total is None
    assert values["not_pooled"] == "the counts of 1 of the 2 sites that the study asks for"
    assert (values["num_patients"], values["loss"], values["auc"]) == (None, None, None)
    assert candidate(4, values).loss is None


def test_one_class_alone_has_a_loss_and_no_auc() -> None:
    values = summary(pool_evaluations({"a": shows([0.0, 1.0], [0, 0])}, missing={}, study=study()), study=study())

    assert values["auc"]["value"] is None
    assert "a class has no patients" in values["auc"]["reason"]
    new = candidate(2, values)
    assert (new.auc, new.num_patients) == (None, 2)
    assert new.loss is not None


def test_candidate_is_the_pooled_validation_result() -> None:
    new = candidate(3, summary(pool_evaluations({"a": A, "b": B}, missing={}, study=study()), study=study()))

    assert (new.round, new.num_patients) == (3, 6)
    assert new.auc == pytest.approx(roc_auc_score(LABELS, MARGINS))
