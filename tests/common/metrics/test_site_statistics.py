"""What a site sends: sums that add exactly, and a reader that refuses what no cohort can have produced."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import DataError, ProtocolError
from common.metrics.bins import MarginBins
from common.metrics.site_statistics import MAX_PATIENTS, SiteStatistics, schema

BINS = MarginBins(num_bins=8, limit=4.0)
ONE = 2**20

cohorts = st.lists(st.tuples(st.floats(allow_nan=False) | st.floats(-5.0, 5.0), st.integers(0, 1)), max_size=40)


def statistics_of(
    patients: list[tuple[float, int]], *, bins: MarginBins = BINS, threshold: float | None = 0.0
) -> SiteStatistics:
    margins = np.array([margin for margin, _ in patients], dtype=np.float64)
    labels = np.array([label for _, label in patients], dtype=np.int64)
    return SiteStatistics.from_margins(margins, labels, bins=bins, threshold=threshold)


def test_four_patients_counted_by_hand() -> None:
    statistics = statistics_of([(-10.0, 0), (0.0, 0), (0.0, 1), (math.inf, 1)])

    assert statistics.num_patients == (2, 2)
    assert statistics.histogram == ((0, 1, 0, 0, 1, 0, 0, 0), (0, 0, 0, 0, 1, 0, 0, 1))
    assert statistics.confusion is not None
    assert statistics.to_integers()["confusion"] == [2, 1, 1, 0]
    sums = statistics.calibration
    assert sums.tenth_patients == (1, 0, 0, 0, 0, 2, 0, 0, 0, 1)
    assert sums.tenth_necrosis == (0, 0, 0, 0, 0, 1, 0, 0, 0, 1)
    assert sums.p_necrosis == ONE // 2 + ONE
    assert sums.p == 2 * (ONE // 2) + ONE + round(ONE / (1 + math.exp(10)))
    assert abs(statistics.loss_sum / ONE - 2 * math.log(2)) < 1e-4


def test_loss_of_a_patient_is_capped_so_that_no_sum_is_infinite() -> None:
    assert statistics_of([(-math.inf, 1)]).loss_sum == 1024 * ONE


@given(patients=cohorts, cuts=st.lists(st.integers(0, 40), max_size=4), data=st.data())
def test_any_split_in_any_order_adds_up_to_the_whole(
    patients: list[tuple[float, int]], cuts: list[int], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(patients))
    ends = [0, *sorted(cuts), len(shuffled)]
    parts = [shuffled[start:end] for start, end in itertools.pairwise(ends)]
    split = [patient for part in parts for patient in part]

    total = SiteStatistics.zero(BINS, has_threshold=True)
    for part in data.draw(st.permutations(parts)):
        total = total + statistics_of(part)

    assert total == statistics_of(split)


@given(patients=cohorts, threshold=st.none() | st.floats(allow_nan=False))
def test_what_is_sent_is_read_back_as_it_was(patients: list[tuple[float, int]], threshold: float | None) -> None:
    sent = statistics_of(patients, threshold=threshold)

    read = SiteStatistics.from_integers(sent.to_integers(), bins=BINS, has_threshold=threshold is not None)

    assert read == sent


def test_message_has_the_lists_and_lengths_of_its_schema() -> None:
    message = statistics_of([(1.0, 1)]).to_integers()

    assert {name: len(items) for name, items in message.items()} == schema(BINS, has_threshold=True)


def test_an_empty_site_sends_zeros() -> None:
    assert statistics_of([]) == SiteStatistics.zero(BINS, has_threshold=True)


def test_nan_scores_are_refused_and_counted_before_anything_is_sent() -> None:
    with pytest.raises(DataError, match="1 of 2 are NaN"):
        statistics_of([(math.nan, 0), (1.0, 1)])


def test_nan_threshold_is_refused() -> None:
    with pytest.raises(DataError, match="threshold is NaN"):
        statistics_of([(0.0, 0)], threshold=math.nan)


def test_labels_other_than_0_and_1_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 are neither 0 nor 1"):
        statistics_of([(0.0, 2), (1.0, 1)])


def test_as_many_labels_as_scores_are_needed() -> None:
    with pytest.raises(DataError, match=r"shape \(2,\) for labels of shape \(1,\)"):
        SiteStatistics.from_margins(np.zeros(2), np.zeros(1, dtype=np.int64), bins=BINS, threshold=None)


def test_statistics_on_other_bins_do_not_add() -> None:
    with pytest.raises(ProtocolError, match="differ"):
        statistics_of([]) + statistics_of([], bins=MarginBins(num_bins=8, limit=5.0))


def test_statistics_with_and_without_threshold_do_not_add() -> None:
    assert (statistics_of([], threshold=None) + statistics_of([], threshold=None)).confusion is None
    with pytest.raises(ProtocolError, match="threshold"):
        statistics_of([], threshold=None) + statistics_of([])


def _from_a_peer(message: object) -> Mapping[str, Sequence[int]]:
    """Claims to be what was asked for, as a peer does."""
    return cast("Mapping[str, Sequence[int]]", message)


def _set(name: str, value: object) -> Callable[[dict[str, object]], None]:
    def change(message: dict[str, object]) -> None:
        message[name] = value

    return change


def _add(name: str, place: int, amount: int) -> Callable[[dict[str, object]], None]:
    def change(message: dict[str, object]) -> None:
        items = message[name]
        assert isinstance(items, list)
        items[place] += amount

    return change


def _drop(name: str) -> Callable[[dict[str, object]], None]:
    def change(message: dict[str, object]) -> None:
        del message[name]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(_drop("loss_sum"), "loss_sum is NoneType", id="missing list"),
        pytest.param(_set("extra", [1]), "1 unknown names", id="unknown list"),
        pytest.param(_set("num_patients", [1, 2, 3]), "num_patients has 3 values, expected 2", id="length"),
        pytest.param(_set("num_patients", "12"), "num_patients is str", id="text"),
        pytest.param(_set("num_patients", [2.0, 2.0]), "something else than integers", id="floats"),
        pytest.param(_set("num_patients", [True, True]), "something else than integers", id="booleans"),
        pytest.param(_set("loss_sum", [-1]), "something else than integers from 0", id="negative"),
        pytest.param(_set("loss_sum", [2**70]), "something else than integers from 0", id="too large for the wire"),
        pytest.param(_set("loss_sum", [10**14]), "loss_sum exceeds", id="loss"),
        pytest.param(_add("histogram_recurrence", 0, 1), "histogram_recurrence does not add up", id="histogram 0"),
        pytest.param(_add("histogram_necrosis", 0, 1), "histogram_necrosis does not add up", id="histogram 1"),
        pytest.param(_add("confusion", 0, 1), "confusion has another number .* necrosis", id="confusion 1"),
        pytest.param(_add("confusion", 1, 1), "confusion has another number .* recurrence", id="confusion 0"),
        pytest.param(_add("calibration_tenth_p", 9, 1), "calibration_tenth_p does not add up", id="tenth p"),
        pytest.param(_add("calibration_tenth_patients", 0, 1), "calibration_tenth_patients", id="tenth patients"),
        pytest.param(_add("calibration_tenth_necrosis", 0, 1), "tenth_necrosis does not add", id="tenth necrosis"),
        pytest.param(_add("calibration_sums", 2, ONE), "sum of p·y is not possible", id="p·y high"),
        pytest.param(_add("calibration_sums", 2, -ONE // 2), "sum of p·y is not possible", id="p·y low"),
        pytest.param(_add("calibration_sums", 1, 4 * ONE), "sum of p² exceeds", id="p² high"),
        pytest.param(_set("calibration_sums", [1572912, 0, 1572864]), "p² is smaller", id="p² low"),
    ],
)
def test_a_message_that_no_cohort_can_send_is_refused(change: Callable[[dict[str, object]], None], says: str) -> None:
    message: dict[str, object] = dict(statistics_of([(-10.0, 0), (0.0, 0), (0.0, 1), (20.0, 1)]).to_integers())
    change(message)

    with pytest.raises(ProtocolError, match=says):
        SiteStatistics.from_integers(_from_a_peer(message), bins=BINS, has_threshold=True)


def test_a_billion_patients_are_refused() -> None:
    billion = SiteStatistics.zero(BINS, has_threshold=False).to_integers() | {
        "num_patients": [10**9, 0],
        "histogram_recurrence": [10**9, 0, 0, 0, 0, 0, 0, 0],
        "calibration_tenth_patients": [10**9, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    }

    with pytest.raises(ProtocolError, match=f"expected at most {MAX_PATIENTS}"):
        SiteStatistics.from_integers(billion, bins=BINS, has_threshold=False)


def test_a_threshold_that_was_asked_for_must_be_answered() -> None:
    without = statistics_of([], threshold=None).to_integers()

    with pytest.raises(ProtocolError, match="confusion is NoneType"):
        SiteStatistics.from_integers(without, bins=BINS, has_threshold=True)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
small_lists = {
    name: st.lists(st.integers(-1, 3) | st.sampled_from([ONE // 2, ONE, 3 * ONE]), min_size=length, max_size=length)
    for name, length in schema(BINS, has_threshold=True).items()
}


@settings(max_examples=300)
@given(
    anything
    | st.dictionaries(st.sampled_from(list(small_lists)), anything)
    | st.dictionaries(st.integers(), anything, max_size=2)
    | st.fixed_dictionaries(small_lists)
)
def test_nonsense_is_refused_or_consistent_and_never_raises_anything_else(nonsense: object) -> None:
    try:
        read = SiteStatistics.from_integers(_from_a_peer(nonsense), bins=BINS, has_threshold=True)
    except ProtocolError:
        return
    assert read.faults() == []
    assert read.to_integers() == nonsense


def _consistent(read: SiteStatistics) -> None:
    """The rules once more, written down independently of the code under test."""
    recurrence, necrosis = read.num_patients
    sums, counts = read.calibration, read.confusion
    assert [sum(row) for row in read.histogram] == [recurrence, necrosis]
    assert counts is not None
    assert (counts.false_positive + counts.true_negative, counts.true_positive + counts.false_negative) == (
        recurrence,
        necrosis,
    )
    assert sum(sums.tenth_patients) == recurrence + necrosis
    assert sum(sums.tenth_necrosis) == necrosis
    assert sum(sums.tenth_p) == sums.p
    for which, (p, y, n) in enumerate(zip(sums.tenth_p, sums.tenth_necrosis, sums.tenth_patients, strict=True)):
        assert 0 <= y <= n
        assert which / 10 * n <= p / ONE + 1e-9
        assert p / ONE <= (which + 1) / 10 * n + 1e-9
    assert 0 <= sums.p_necrosis <= necrosis * ONE
    assert 0 <= sums.p - sums.p_necrosis <= recurrence * ONE
    assert sums.p_squared <= sums.p
    assert 0 <= read.loss_sum <= 1024 * ONE * (recurrence + necrosis)


@given(
    patients=cohorts,
    changes=st.lists(
        st.tuples(st.sampled_from(list(small_lists)), st.integers(0, 9), st.integers(-2, 2) | st.integers(-ONE, ONE)),
        min_size=1,
        max_size=3,
    ),
)
def test_a_changed_message_is_refused_unless_it_is_still_possible(
    patients: list[tuple[float, int]], changes: list[tuple[str, int, int]]
) -> None:
    message = statistics_of(patients).to_integers()
    for name, place, amount in changes:
        message[name][place % len(message[name])] += amount

    try:
        read = SiteStatistics.from_integers(message, bins=BINS, has_threshold=True)
    except ProtocolError:
        return
    _consistent(read)


def test_fixed_point_is_within_a_millionth_of_the_mean() -> None:
    margins: NDArray[np.float64] = np.linspace(-4.0, 4.0, 81)
    labels = (np.arange(81) % 3 == 0).astype(np.int64)
    p = 1.0 / (1.0 + np.exp(-margins))

    sums = SiteStatistics.from_margins(margins, labels, bins=BINS, threshold=None).calibration

    np.testing.assert_allclose(
        np.array([sums.p, sums.p_squared, sums.p_necrosis]) / ONE / 81,
        np.array([p.sum(), (p**2).sum(), (p * labels).sum()]) / 81,
        atol=1e-6,
    )
