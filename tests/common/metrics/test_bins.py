"""The study's bins of the score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, DataError
from common.metrics.bins import MarginBins, count_by_bin
from common.metrics.confusion import confusion_from_histogram, count_confusion

some_bins = st.builds(MarginBins, num_bins=st.integers(2, 64), limit=st.floats(0.1, 20.0))


def test_edges_are_equally_spaced_on_the_asinh_scale() -> None:
    edges = MarginBins(num_bins=4, limit=2.0).edges()

    np.testing.assert_allclose(np.arcsinh(edges), [-1.0, 0.0, 1.0], rtol=1e-11)


@given(some_bins)
def test_edges_rise_and_mirror_each_other(bins: MarginBins) -> None:
    edges = bins.edges()

    assert edges.shape == (bins.num_bins - 1,)
    assert (np.diff(edges) > 0).all()
    np.testing.assert_array_equal(edges, -edges[::-1])


def test_even_odds_are_an_edge_of_an_even_number_of_bins() -> None:
    assert 0.0 in MarginBins(num_bins=256, limit=6.0).edges()


def test_a_score_on_an_edge_belongs_to_the_bin_above() -> None:
    bins = MarginBins(num_bins=4, limit=2.0)
    edges = bins.edges()

    on = bins.index(edges).tolist()
    below = bins.index(np.nextafter(edges, -np.inf)).tolist()

    assert (on, below) == ([1, 2, 3], [0, 1, 2])


def test_all_beyond_the_limit_and_infinity_go_to_the_outer_bins() -> None:
    bins = MarginBins(num_bins=4, limit=2.0)

    assert bins.index(np.array([-np.inf, -1e300, 1e300, np.inf])).tolist() == [0, 0, 3, 3]


@given(some_bins)
def test_the_margin_that_stands_for_a_bin_lies_in_it(bins: MarginBins) -> None:
    assert bins.index(bins.representatives()).tolist() == list(range(bins.num_bins))


def test_nan_scores_are_refused_and_counted() -> None:
    with pytest.raises(DataError, match="2 of 3 are NaN"):
        MarginBins(num_bins=4, limit=2.0).index(np.array([0.0, np.nan, np.nan]))


@pytest.mark.parametrize(
    ("num_bins", "limit"), [(1, 5.0), (10**9, 5.0), (32, 0.0), (32, 21.0), (32, -1.0), (32, math.nan), (32, math.inf)]
)
def test_impossible_bins_are_refused(num_bins: int, limit: float) -> None:
    with pytest.raises(ConfigError, match="margin bins"):
        MarginBins(num_bins=num_bins, limit=limit)


@given(
    bins=some_bins,
    patients=st.lists(st.tuples(st.floats(allow_nan=False), st.integers(0, 1)), max_size=30),
    data=st.data(),
)
def test_counting_at_an_edge_equals_summing_the_histogram_above_it(
    bins: MarginBins, patients: list[tuple[float, int]], data: st.DataObject
) -> None:
    threshold = data.draw(st.sampled_from([-math.inf, *bins.edges().tolist(), math.inf]))
    edge_scores = data.draw(st.lists(st.sampled_from([*bins.edges().tolist(), -math.inf, math.inf]), max_size=5))
    margins = np.array([margin for margin, _ in patients] + edge_scores)
    labels = np.array([label for _, label in patients] + [1] * len(edge_scores), dtype=np.int64)

    first_bin = bins.first_positive_bin(threshold)

    assert first_bin is not None
    counted = count_confusion(margins, labels, threshold)
    assert confusion_from_histogram(count_by_bin(margins, labels, bins), first_bin) == counted


def test_a_threshold_inside_a_bin_has_no_first_positive_bin() -> None:
    bins = MarginBins(num_bins=4, limit=2.0)

    assert bins.first_positive_bin(0.0) == 2
    assert bins.first_positive_bin(0.1) is None
    assert bins.first_positive_bin(1e300) is None
