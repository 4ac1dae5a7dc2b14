"""The figures of an evaluation: what all sites sent equals what all patients together give."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from common.errors import ProtocolError
from common.metrics.bins import MarginBins
from common.metrics.pooled import PooledFigures, figures_of, pooled_figures, roc_points, to_json
from common.metrics.site_statistics import SiteStatistics

BINS = MarginBins(num_bins=32, limit=5.0)
Patients = list[tuple[float, int]]

cohorts = st.lists(st.tuples(st.floats(-20.0, 20.0), st.integers(0, 1)), max_size=30)


def statistics_of(patients: Patients, *, threshold: float | None = 0.0) -> SiteStatistics:
    margins = np.array([margin for margin, _ in patients], dtype=np.float64)
    labels = np.array([label for _, label in patients], dtype=np.int64)
    return SiteStatistics.from_margins(margins, labels, bins=BINS, threshold=threshold)


def drawn(num_recurrence: int, num_necrosis: int, *, shift: float, seed: int) -> Patients:
    """A site whose scanner shifts all scores."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [num_recurrence, num_necrosis])
    return list(zip((rng.normal(size=labels.size) + 1.5 * labels + shift).tolist(), labels.tolist(), strict=True))


def three_sites(*, threshold: float | None = 0.0) -> dict[str, SiteStatistics]:
    return {
        "C": statistics_of(drawn(20, 9, shift=0.0, seed=1), threshold=threshold),
        "A": statistics_of(drawn(15, 6, shift=2.0, seed=2), threshold=threshold),
        "B": statistics_of(drawn(12, 0, shift=-2.0, seed=3), threshold=threshold),
    }


@given(cohort=cohorts, data=st.data())
def test_any_split_of_the_patients_over_sites_gives_bit_identical_pooled_figures(
    cohort: Patients, data: st.DataObject
) -> None:
    patients = data.draw(st.permutations(cohort))
    sites: dict[str, Patients] = {"D": [], "B": [], "A": [], "C": []}
    for patient in patients:
        sites[data.draw(st.sampled_from("ABCD"))].append(patient)

    split = pooled_figures({name: statistics_of(part) for name, part in sites.items()}, prevalence=0.2)

    whole = pooled_figures({"all": statistics_of(cohort)}, prevalence=0.2)
    assert json.dumps(to_json(split)["pooled"]) == json.dumps(to_json(whole)["pooled"])
    assert split.statistics == whole.statistics


def test_order_of_sites_changes_nothing_at_all() -> None:
    sites = three_sites()
    backwards = dict(reversed(list(sites.items())))

    assert json.dumps(to_json(pooled_figures(backwards))) == json.dumps(to_json(pooled_figures(sites)))


def test_pooled_auc_equals_scikit_learn_on_the_union_of_patients() -> None:
    union = drawn(20, 9, shift=0.0, seed=1) + drawn(15, 6, shift=2.0, seed=2) + drawn(12, 0, shift=-2.0, seed=3)
    index = BINS.index(np.array([margin for margin, _ in union]))

    value = pooled_figures(three_sites()).pooled.auc.estimate.value

    assert value == pytest.approx(roc_auc_score([label for _, label in union], index), abs=1e-12)


def test_pooled_row_counts_patients_where_a_mean_of_sites_would_not() -> None:
    # Site A: 1 of 1 with necrosis found; site B: 2 of 9. Pooled 3 of 10, mean of the sites .61.
    a, b = [(1.0, 1)], [(1.0, 1)] * 2 + [(-1.0, 1)] * 7

    at_threshold = pooled_figures({"A": statistics_of(a), "B": statistics_of(b)}).pooled.at_threshold

    assert at_threshold is not None
    assert at_threshold.sensitivity.value == 0.3
    assert at_threshold.sensitivity.num == 10


def test_within_site_auc_exceeds_the_pooled_one_where_scanners_shift_scores() -> None:
    sites = {
        name: statistics_of(drawn(60, 60, shift=shift, seed=9)) for name, shift in [("A", -3.0), ("B", 0.0), ("C", 3.0)]
    }

    figures = pooled_figures(sites)

    within, pooled = figures.within_site_auc.estimate.value, figures.pooled.auc.estimate.value
    assert within is not None
    assert pooled is not None
    assert within - pooled > 0.1


def test_a_site_of_one_class_counts_in_the_pool_and_is_named_where_it_cannot() -> None:
    figures = pooled_figures(three_sites())

    assert figures.pooled.num_recurrence == 47
    assert figures.per_site["B"].auc.estimate.value is None
    assert figures.macro_auc.sites_left_out == ("B",)
    assert figures.auc_between_sites.sites_left_out == ("B",)
    assert figures.sensitivity_between_sites is not None
    assert figures.sensitivity_between_sites.sites_left_out == ("B",)
    assert figures.specificity_between_sites is not None
    assert figures.specificity_between_sites.sites_left_out == ()


def test_an_empty_site_changes_no_pooled_figure() -> None:
    with_empty = pooled_figures(three_sites() | {"D": statistics_of([])})

    assert with_empty.pooled == pooled_figures(three_sites()).pooled
    assert with_empty.per_site["D"].num_necrosis == 0


@pytest.mark.parametrize(
    "patients",
    [[], [(0.3, 1)], [(0.3, 0)], [(0.3, 0), (0.3, 1)], [(1.0, 0)] * 5 + [(1.0, 1)] * 5],
    ids=["nobody", "one with necrosis", "one with recurrence", "a tie", "all tied"],
)
def test_small_cohorts_give_valid_json_with_reasons(patients: Patients) -> None:
    tree = to_json(pooled_figures({"A": statistics_of(patients)}, prevalence=0.1))

    parsed = json.loads(json.dumps(tree, allow_nan=False))
    assert parsed == tree
    estimates = list(_estimates(parsed))
    assert len(estimates) > 50
    assert all((each["low"] is None) == (each["reason"] is not None) for each in estimates)


def _estimates(tree: object) -> Iterator[dict[str, object]]:
    if isinstance(tree, dict):
        if "reason" in tree:
            yield tree
        for item in tree.values():
            yield from _estimates(item)
    if isinstance(tree, list):
        for item in tree:
            yield from _estimates(item)


def test_json_holds_one_row_a_site_and_the_pool() -> None:
    tree = json.loads(json.dumps(to_json(pooled_figures(three_sites(), prevalence=0.1)), allow_nan=False))

    assert list(tree["per_site"]) == ["A", "B", "C"]
    assert tree["pooled"]["at_threshold"]["sensitivity"]["num"] == 15
    assert tree["pooled"]["at_threshold"]["ppv_at_prevalence"]["value"] > 0
    assert tree["statistics"]["bins"] == {"num_bins": 32, "limit": 5.0}
    assert sum(tree["statistics"]["histogram_necrosis"]) == 15


def test_before_a_threshold_is_frozen_there_are_no_figures_at_one() -> None:
    figures: PooledFigures = pooled_figures(three_sites(threshold=None))

    assert figures.pooled.at_threshold is None
    assert figures.sensitivity_between_sites is None
    assert figures.pooled.auc.estimate.value is not None


def test_no_site_at_all_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no site sent statistics"):
        pooled_figures({})


def test_a_pool_whose_sites_are_unknown_gives_the_same_row() -> None:
    figures = pooled_figures(three_sites())

    assert figures_of(figures.statistics) == figures.pooled


@given(cohorts)
def test_roc_points_are_scikit_learns_on_the_binned_scores(cohort: Patients) -> None:
    labels = np.array([label for _, label in cohort])
    index = BINS.index(np.array([margin for margin, _ in cohort]))

    points = roc_points(statistics_of(cohort).histogram, BINS)

    if len(set(labels.tolist())) < 2:
        assert points == []
        return
    fpr, tpr, _ = roc_curve(labels, index, drop_intermediate=False)
    np.testing.assert_allclose([point[:2] for point in points], np.column_stack([fpr, tpr]), atol=1e-12)
    assert points[0] == (0.0, 0.0, math.inf)


def test_a_roc_point_is_what_its_threshold_gives() -> None:
    patients = drawn(20, 9, shift=0.0, seed=1)

    for fpr, tpr, threshold in roc_points(statistics_of(patients).histogram, BINS):
        counts = statistics_of(patients, threshold=threshold).confusion
        assert counts is not None
        assert (counts.false_positive / 20, counts.true_positive / 9) == (fpr, tpr)
