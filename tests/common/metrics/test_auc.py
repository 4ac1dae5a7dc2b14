"""AUC from counts: value, certificate, DeLong, interval, and the cases in which there is none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from common.metrics.auc import (
    delong_tables,
    delong_variance,
    logit_interval,
    macro_auc,
    pooled_auc,
    roc_counts,
    within_site_auc,
)
from common.metrics.bins import Histogram, MarginBins, count_by_bin

BINS = MarginBins(num_bins=16, limit=4.0)
PERFECT: Histogram = ((3, 2, 0), (0, 0, 4))

scores_of_a_class = st.lists(st.floats(-20.0, 20.0) | st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=25)
histograms = st.integers(1, 12).flatmap(
    lambda num_bins: st.tuples(*[st.lists(st.integers(0, 5), min_size=num_bins, max_size=num_bins).map(tuple)] * 2)
)


def binned(recurrence: list[float], necrosis: list[float], bins: MarginBins = BINS) -> Histogram:
    labels = np.array([0] * len(recurrence) + [1] * len(necrosis), dtype=np.int64)
    return count_by_bin(np.array(recurrence + necrosis), labels, bins)


def patients_of(histogram: Histogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bin of each patient with recurrence and with necrosis."""
    recurrence, necrosis = (np.repeat(np.arange(len(row)), row) for row in histogram)
    return recurrence, necrosis


def direct_auc_and_variance(recurrence: NDArray[np.int64], necrosis: NDArray[np.int64]) -> tuple[float, float]:
    """AUC and DeLong's variance by comparing every pair of patients."""
    wins = (necrosis[:, None] > recurrence[None, :]) + 0.5 * (necrosis[:, None] == recurrence[None, :])
    variance = wins.mean(axis=1).var(ddof=1) / necrosis.size + wins.mean(axis=0).var(ddof=1) / recurrence.size
    return float(wins.mean()), float(variance)


def test_six_pairs_counted_by_hand() -> None:
    # Necrosis in bins 1 and 2 against recurrence in 0, 1, 2: (1 + ½ + 0) + (1 + 1 + ½) = 4 of 6, ties 2.
    auc = pooled_auc(((1, 1, 1), (0, 1, 1)))

    assert auc.estimate.value == 4 / 6
    assert auc.bin_error == 1 / 6
    assert auc.estimate.num == 5


@given(scores_of_a_class, scores_of_a_class)
def test_value_equals_scikit_learn_on_the_binned_scores(recurrence: list[float], necrosis: list[float]) -> None:
    index = BINS.index(np.array(recurrence + necrosis))
    expected = roc_auc_score([0] * len(recurrence) + [1] * len(necrosis), index)

    value = pooled_auc(binned(recurrence, necrosis)).estimate.value

    assert value is not None
    assert abs(value - expected) <= 1e-12


@given(scores_of_a_class, scores_of_a_class, st.integers(2, 64))
def test_unbinned_auc_is_within_the_certificate(recurrence: list[float], necrosis: list[float], num_bins: int) -> None:
    true_auc = roc_auc_score([0] * len(recurrence) + [1] * len(necrosis), recurrence + necrosis)

    auc = pooled_auc(binned(recurrence, necrosis, MarginBins(num_bins=num_bins, limit=4.0)))

    assert auc.estimate.value is not None
    assert auc.bin_error is not None
    assert abs(auc.estimate.value - true_auc) <= auc.bin_error + 1e-12


@given(histograms)
def test_variance_equals_the_direct_computation_over_all_pairs(histogram: Histogram) -> None:
    recurrence, necrosis = patients_of(histogram)

    variance = delong_variance(histogram)

    if recurrence.size < 2 or necrosis.size < 2:
        assert variance is None
    else:
        _, expected = direct_auc_and_variance(recurrence, necrosis)
        assert variance is not None
        assert math.isclose(variance, expected, rel_tol=1e-9, abs_tol=1e-15)


@given(histograms)
def test_tables_average_to_the_auc_over_either_class(histogram: Histogram) -> None:
    if min(sum(histogram[0]), sum(histogram[1])) == 0:
        with pytest.raises(ValueError, match="a class has no patients"):
            delong_tables(histogram)
        return

    tables = delong_tables(histogram)

    assert math.isclose(np.average(tables.v0, weights=histogram[0]), tables.auc, abs_tol=1e-12)
    assert math.isclose(np.average(tables.v1, weights=histogram[1]), tables.auc, abs_tol=1e-12)


def test_interval_is_made_on_the_logit_scale() -> None:
    estimate = logit_interval(0.8, 0.04**2, num=100, confidence=0.95)

    # logit .8 = ln 4 = 1.3863; SE 0.04/(0.8·0.2) = 0.25; ±1.95996·0.25
    assert estimate.low == pytest.approx(1 / (1 + math.exp(-(math.log(4) - 0.4899910))), abs=1e-7)
    assert estimate.high == pytest.approx(1 / (1 + math.exp(-(math.log(4) + 0.4899910))), abs=1e-7)


@pytest.mark.parametrize(
    ("histogram", "value", "reason"),
    [
        pytest.param(((0, 0), (0, 0)), None, "no patients", id="empty site"),
        pytest.param(((3, 1), (0, 0)), None, "no patients", id="no necrosis"),
        pytest.param(((0, 0), (1, 0)), None, "no patients", id="one patient"),
        pytest.param(((3, 1), (1, 0)), 1 / 8 * 3, "fewer than 2", id="one with necrosis"),
        pytest.param(PERFECT, 1.0, "do not overlap", id="perfect"),
        pytest.param(PERFECT[::-1], 0.0, "do not overlap", id="perfectly wrong"),
        pytest.param(((0, 9), (0, 4)), 0.5, "do not vary", id="all tied"),
    ],
)
def test_what_cannot_be_estimated_says_why(histogram: Histogram, value: float | None, reason: str) -> None:
    estimate = pooled_auc(histogram).estimate

    assert estimate.value == value
    assert (estimate.low, estimate.high) == (None, None)
    assert estimate.reason is not None
    assert reason in estimate.reason


def test_within_site_auc_counts_only_pairs_of_one_site() -> None:
    # Each site orders its own patients perfectly but for one tie; the second site scores everybody higher.
    first: Histogram = ((2, 1, 0, 0), (0, 1, 0, 0))
    second: Histogram = ((0, 0, 2, 0), (0, 0, 0, 2))
    only_recurrence: Histogram = ((0, 0, 0, 5), (0, 0, 0, 0))

    within = within_site_auc([first, second, only_recurrence])

    assert within.estimate.value == (2.5 + 4) / (3 + 4)
    assert within.bin_error == 0.5 / 7
    assert within.estimate.num == 8
    assert within.estimate.reason is not None  # a single patient with necrosis at the first site


def test_within_site_variance_weighs_each_site_by_its_pairs() -> None:
    first: Histogram = ((4, 2, 1), (1, 1, 3))
    second: Histogram = ((3, 3, 0), (1, 1, 2))
    pairs = np.array([35, 24])
    variances = np.array([direct_auc_and_variance(*patients_of(each))[1] for each in (first, second)])

    estimate = within_site_auc([second, first]).estimate

    assert estimate.value is not None
    expected = logit_interval(estimate.value, float(pairs**2 @ variances) / 59**2, num=18, confidence=0.95)
    assert estimate.low == pytest.approx(expected.low)
    assert estimate.high == pytest.approx(expected.high)


def test_one_site_alone_has_the_same_pooled_within_and_macro_auc() -> None:
    histogram: Histogram = ((4, 2, 1), (1, 1, 3))

    pooled = pooled_auc(histogram)

    assert within_site_auc([histogram]) == pooled
    macro = macro_auc({"A": histogram}).estimate
    assert (macro.value, macro.num) == (pooled.estimate.value, 1)
    assert macro.low == pytest.approx(pooled.estimate.low)


def test_macro_auc_names_the_sites_it_leaves_out() -> None:
    macro = macro_auc({"B": ((2, 2), (0, 2)), "C": ((1, 0), (0, 0)), "A": ((1, 1), (1, 1))})

    assert macro.estimate.value == (0.75 + 0.5) / 2
    assert macro.estimate.num == 2
    assert macro.sites_left_out == ("C",)


def test_no_site_with_both_classes_leaves_nothing_to_average() -> None:
    one_class: Histogram = ((1, 0), (0, 0))

    assert within_site_auc([one_class]).estimate.value is None
    assert macro_auc({"A": one_class}).estimate.value is None
    assert macro_auc({"A": one_class}).sites_left_out == ("A",)


def test_roc_counts_run_from_nobody_to_everybody() -> None:
    assert roc_counts(((2, 1), (0, 3))) == [(0, 0), (1, 3), (3, 3)]


def test_interval_covers_the_truth_in_95_of_100_small_test_sets() -> None:
    # 9 necrosis + 38 recurrence, normal scores, true AUC .83; the simulation's own standard error is .4 %.
    rng = np.random.default_rng(20240501)
    bins = MarginBins(num_bins=256, limit=6.0)
    shift = norm.ppf(0.83) * math.sqrt(2.0)
    labels = np.repeat([0, 1], [38, 9])
    covered = []
    for scores in rng.normal(size=(3000, 47)) + shift * labels:
        estimate = pooled_auc(count_by_bin(scores, labels, bins)).estimate
        if estimate.low is not None and estimate.high is not None:
            covered.append(estimate.low <= 0.83 <= estimate.high)

    assert len(covered) > 2950
    assert 0.93 <= np.mean(covered) <= 0.97
