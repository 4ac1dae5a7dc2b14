"""Paired difference of two AUCs from counts: equals DeLong's covariance computed pair by pair, whoever holds whom."""

from functools import reduce
from operator import add
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import DataError, ProtocolError
from common.metrics.auc import delong_variance
from common.metrics.bins import Histogram, add_histograms
from common.metrics.paired import (
    NO_VARIANCE,
    DifferenceSums,
    KeptScores,
    auc_influences,
    difference_sums,
    influences,
    mean_difference_over_runs,
    patient_shares,
    pooled_difference,
    site_comparison,
    site_difference,
    within_site_difference,
)

BINS_A, BINS_B = 6, 9

patients = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, BINS_A - 1), st.integers(0, BINS_B - 1), st.integers(0, 3)),
    min_size=4,
    max_size=40,
).filter(lambda drawn: min(sum(p[0] == label for p in drawn) for label in (0, 1)) >= 2)


def scores(labels: list[int], index: list[int], num_bins: int) -> KeptScores:
    return KeptScores(np.array(index, dtype=np.int64), np.array(labels, dtype=np.int64), num_bins)


def both(drawn: list[tuple[int, int, int, int]]) -> tuple[KeptScores, KeptScores]:
    labels = [p[0] for p in drawn]
    return scores(labels, [p[1] for p in drawn], BINS_A), scores(labels, [p[2] for p in drawn], BINS_B)


def direct_difference_and_variance(first: KeptScores, second: KeptScores) -> tuple[float, float]:
    """DeLong's two AUCs, their variances and their covariance, by comparing every pair of patients."""
    components: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for model in (first, second):
        necrosis, recurrence = model.index[model.labels == 1], model.index[model.labels == 0]
        wins = (necrosis[:, None] > recurrence[None, :]) + 0.5 * (necrosis[:, None] == recurrence[None, :])
        components.append((wins.mean(axis=1), wins.mean(axis=0)))
    s10, s01 = (np.cov(np.stack([components[0][k], components[1][k]])) for k in (0, 1))
    covariance = s10 / components[0][0].size + s01 / components[0][1].size
    value = components[0][0].mean() - components[1][0].mean()
    return float(value), float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def split_over_sites(drawn: list[tuple[int, int, int, int]]) -> list[tuple[KeptScores, KeptScores]]:
    return [both(held) for site in range(4) if (held := [p for p in drawn if p[3] == site])]


def exchanged(
    sites: list[tuple[KeptScores, KeptScores]],
) -> tuple[tuple[Histogram, Histogram], DifferenceSums]:
    pools = tuple(reduce(add_histograms, (pair[k].histogram() for pair in sites)) for k in (0, 1))
    sums = reduce(add, (difference_sums(*pair, (pools[0], pools[1])) for pair in sites))
    return (pools[0], pools[1]), sums


def test_four_patients_counted_by_hand() -> None:
    # A ranks both pairs of necrosis 1 rightly and ties necrosis 2 with recurrence 2; B has it all upside down.
    first = scores([0, 0, 1, 1], [0, 1, 2, 1], 3)
    second = scores([0, 0, 1, 1], [2, 2, 0, 0], 3)

    found = site_difference(site_comparison(first, second))

    # v of A: recurrence (1, .75), necrosis (1, .75), A .875; v of B all 0. s² = 2 · .125² = 1/32 for each class.
    assert (found.first, found.second, found.difference.value) == (0.875, 0.0, 0.875)
    assert found.difference.low == pytest.approx(0.875 - 1.959964 * np.sqrt(2 / 32 / 2))


@given(patients)
def test_pooled_difference_is_delong_s_over_every_pair(drawn: list[tuple[int, int, int, int]]) -> None:
    first, second = both(drawn)
    pools, sums = exchanged(split_over_sites(drawn))

    value, variance = direct_difference_and_variance(first, second)
    found = pooled_difference(pools, sums)

    assert found.difference.value == pytest.approx(value, abs=1e-12)
    assert sums.variance() == pytest.approx(variance, abs=1e-8)


@given(patients, st.randoms(use_true_random=False))
def test_any_split_over_sites_in_any_order_gives_the_same_bits(
    drawn: list[tuple[int, int, int, int]], random: Random
) -> None:
    shuffled = [(label, a, b, random.randrange(4)) for label, a, b, _ in drawn]
    random.shuffle(shuffled)

    assert exchanged(split_over_sites(shuffled)) == exchanged([both(drawn)])


@given(patients)
def test_models_that_rank_alike_differ_by_0_with_no_variance_and_it_is_said(
    drawn: list[tuple[int, int, int, int]],
) -> None:
    first, _ = both(drawn)

    pools, sums = exchanged([(first, first)])
    found = pooled_difference(pools, sums).difference

    assert sums.variance() == 0.0
    assert (found.value, found.low, found.reason) == (0.0, None, NO_VARIANCE)


@given(patients)
def test_within_site_difference_weighs_sites_by_their_pairs(drawn: list[tuple[int, int, int, int]]) -> None:
    sites = [site_comparison(*pair) for pair in split_over_sites(drawn)]

    found = within_site_difference(sites)

    pairs = [site.num_patients[0] * site.num_patients[1] for site in sites]
    if sum(pairs) == 0:
        assert found.difference.reason == "no site has patients of both classes"
        return
    rows = [site_difference(site).difference.value or 0.0 for site in sites]
    expected = sum(n * row for n, row in zip(pairs, rows, strict=True)) / sum(pairs)
    assert found.difference.value == pytest.approx(expected, abs=1e-12)


def test_within_site_variance_is_that_of_independent_sites() -> None:
    rng = np.random.default_rng(1)
    sites, expected = [], 0.0
    for num in (4, 8):
        labels = [0] * num + [1] * num
        first = scores(labels, rng.integers(0, 6, 2 * num).tolist(), 6)
        second = scores(labels, rng.integers(0, 6, 2 * num).tolist(), 6)
        sites.append(site_comparison(first, second))
        expected += (num * num / 80) ** 2 * direct_difference_and_variance(first, second)[1]

    found = within_site_difference(sites).difference

    assert found.value is not None
    assert found.high is not None
    assert ((found.high - found.value) / 1.959964) ** 2 == pytest.approx(expected, rel=1e-5)


def test_class_of_one_patient_has_a_difference_and_no_interval() -> None:
    first, second = scores([0, 0, 1], [0, 1, 2], 3), scores([0, 0, 1], [1, 2, 1], 3)

    found = site_difference(site_comparison(first, second)).difference

    assert found.value == 0.75
    assert found.reason == "a class has fewer than 2 patients, so the difference has no interval"


def test_site_with_one_class_still_adds_to_the_pool() -> None:
    one_class, other = scores([1, 1], [1, 2], 3), scores([0, 0], [0, 1], 3)

    pools, sums = exchanged([(one_class, one_class), (other, other)])

    assert site_comparison(one_class, one_class).own is None
    assert pooled_difference(pools, sums).first == 0.875


def test_other_patients_are_refused() -> None:
    with pytest.raises(DataError, match="whose labels differ, expected the same patients"):
        site_comparison(scores([0, 1], [0, 1], 2), scores([1, 0], [0, 1], 2))


def test_pool_without_the_site_s_own_patients_is_refused() -> None:
    first = scores([0, 1], [0, 1], 2)

    with pytest.raises(ProtocolError, match="does not hold this site's own patients"):
        difference_sums(first, first, (((0, 5), (0, 5)), first.histogram()))


def test_sums_over_other_patients_than_the_histograms_are_refused() -> None:
    first = scores([0, 1], [0, 1], 2)

    with pytest.raises(ProtocolError, match="have to be of the same patients"):
        pooled_difference((first.histogram(), first.histogram()), DifferenceSums((1, 2), (0, 0), (0, 0)))


@given(patients)
def test_sums_survive_the_message(drawn: list[tuple[int, int, int, int]]) -> None:
    _, sums = exchanged([both(drawn)])

    assert DifferenceSums.from_integers(sums.to_integers()) == sums


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1, 1, 0, 0, 0], id="too few"),
        pytest.param([1, 1, 0.0, 0, 0, 0], id="no whole number"),
        pytest.param([-1, 1, 0, 0, 0, 0], id="negative count"),
        pytest.param([1, 1, 2**32, 0, 2**32, 0], id="larger than any difference"),
        pytest.param([4, 4, 2**31, 0, 0, 0], id="sum without squares"),
    ],
)
def test_sums_that_no_patients_add_up_to_are_refused(values: list[int]) -> None:
    with pytest.raises(ProtocolError, match="sums of differences"):
        DifferenceSums.from_integers(values)


def test_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    # Two models whose noises are correlated, so that an unpaired variance would be far too wide.
    rng = np.random.default_rng(5)
    covered, num_draws, truth = 0, 400, 0.0
    for _ in range(num_draws):
        labels = np.repeat([0, 1], [60, 25])
        signal = rng.normal(size=85) + 1.2 * labels
        index = [np.clip((signal + rng.normal(scale=0.5, size=85)) * 20 + 60, 0, 199).astype(np.int64) for _ in "ab"]
        pair = [KeptScores(each, labels, 200) for each in index]
        found = site_difference(site_comparison(pair[0], pair[1])).difference
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high

    assert 0.925 <= covered / num_draws <= 0.975


def test_repeated_run_on_the_same_patients_does_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    labels = [0] * 10 + [1] * 6
    first, second = (scores(labels, rng.integers(0, 6, 16).tolist(), 6) for _ in "ab")
    once = site_difference(site_comparison(first, second)).difference
    d = influences(first, second, (first.histogram(), second.histogram()))
    shares = patient_shares(d, first.labels)
    assert shares is not None
    same, others = ({f"{name}{i}": float(each) for i, each in enumerate(shares)} for name in "pq")
    assert once.value is not None
    assert once.low is not None

    twice = mean_difference_over_runs([same, same], [once.value] * 2)
    new_patients = mean_difference_over_runs([same, others], [once.value] * 2)

    assert twice.low == pytest.approx(once.low, abs=1e-6)
    assert new_patients.low == pytest.approx(once.value - (once.value - once.low) / np.sqrt(2), abs=1e-6)


def test_shares_of_one_model_give_delong_s_variance() -> None:
    model = scores([0, 0, 0, 1, 1], [0, 1, 3, 2, 3], 4)

    shares = patient_shares(auc_influences(model), model.labels)

    assert shares is not None
    assert float((shares**2).sum()) == pytest.approx(delong_variance(model.histogram()))
    assert patient_shares(np.zeros(3), np.array([0, 0, 1])) is None
