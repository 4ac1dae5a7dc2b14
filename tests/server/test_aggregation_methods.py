"""Aggregation beyond the mean: each method against its definition, and the identities that hold for all of them."""

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, MultiKrum
from flwr.serverapp.strategy.multikrum import compute_distances
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.flower_private import take_server_identity
from common.model_state import Array, ModelState, encode_state, state_digest
from common.study import AggregationSpec
from server.aggregation import (
    coordinate_median,
    initial_memory,
    krum_choice,
    mean_control,
    next_state,
    robust,
    server_optimizer,
    server_step,
    trimmed_mean,
    weighted_mean,
)
from server.stored_state import StoredState

METHODS = {
    "mean": AggregationSpec(method="mean"),
    "fedavgm": AggregationSpec(method="fedavgm"),
    "fedadam": AggregationSpec(method="fedadam"),
    "fedyogi": AggregationSpec(method="fedyogi"),
    "median": AggregationSpec(method="median"),
    "trimmed_mean": AggregationSpec(method="trimmed_mean"),
    "multi_krum": AggregationSpec(method="multi_krum"),
}
TRAINED = frozenset({"w"})


def model(seed: int, *, size: int = 60, batches: int = 7) -> dict[str, Array]:
    """A state of a parameter, a variance and a counter of batches."""
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal(size).astype(np.float32),
        "running_var": rng.uniform(0, 2, 5).astype(np.float32),
        "num_batches_tracked": np.array(batches, dtype=np.int64),
    }


def step(spec: AggregationSpec, states: list[ModelState], *, weights: list[float] | None = None) -> Any:
    """The first round from a fixed global state."""
    reference = model(99, size=states[0]["w"].size)
    memory = initial_memory(spec, reference, trained=TRAINED, control_variates=False)
    weighted = list(zip(states, weights or [1.0 + place for place in range(len(states))], strict=True))
    return next_state(spec, weighted, reference=reference, memory=memory, trained=TRAINED)


def numbers(*values: float) -> dict[str, Array]:
    return {"w": np.array(values, dtype=np.float32)}


# --- what holds for every method --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean", "median", "trimmed_mean", "multi_krum"])
@pytest.mark.parametrize("num_sites", [5, 7, 12])
def test_identical_sites_give_back_their_own_bytes(name: str, num_sites: int) -> None:
    same = model(1, size=5000)

    assert state_digest(step(METHODS[name], [same] * num_sites).state) == state_digest(same)


@pytest.mark.parametrize("name", METHODS)
def test_any_order_of_replies_gives_the_same_bytes_since_sites_go_in_by_name(name: str) -> None:
    replies = {site: model(seed) for seed, site in enumerate("abcde")}

    digests = {
        state_digest(step(METHODS[name], [state for _, state in sorted(order)]).state)
        for order in itertools.islice(itertools.permutations(replies.items()), 0, None, 11)
    }

    assert len(digests) == 1


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_robust_methods_give_the_same_bytes_in_any_order_at_all(name: str) -> None:
    states = [model(seed, size=2000) for seed in range(7)]
    rng = np.random.default_rng(0)

    digests = {
        state_digest(step(METHODS[name], [states[place] for place in rng.permutation(7)]).state) for _ in range(10)
    }

    assert len(digests) == 1


@pytest.mark.parametrize("name", METHODS)
def test_types_shapes_and_whole_numbers_stay_and_no_variance_becomes_negative(name: str) -> None:
    states: list[ModelState] = [model(seed, batches=8) for seed in range(5)]

    state = step(METHODS[name], states).state

    assert {n: (array.dtype, array.shape) for n, array in state.items()} == {
        n: (array.dtype, array.shape) for n, array in states[0].items()
    }
    assert state["num_batches_tracked"] == 8
    assert state["running_var"].min() >= 0


@pytest.mark.parametrize("name", METHODS)
def test_states_on_disk_and_in_parts_give_the_bytes_of_states_in_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [model(seed) for seed in range(5)]
    expected = step(METHODS[name], list(states))
    for place, state in enumerate(states):
        (tmp_path / str(place)).write_bytes(encode_state(state))
    stored: list[ModelState] = [StoredState(tmp_path / str(place), origin="a reply") for place in range(5)]
    monkeypatch.setattr("common.model_state._BLOCK", 7)
    monkeypatch.setattr(robust, "_NUMBERS_AT_A_TIME", 35)
    monkeypatch.setattr(server_optimizer, "_NUMBERS_AT_A_TIME", 7)

    found = step(METHODS[name], stored)

    assert state_digest(found.state) == state_digest(expected.state)
    assert {part: state_digest(values) for part, values in found.memory.items()} == {
        part: state_digest(values) for part, values in expected.memory.items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_nothing_that_was_given_is_changed(name: str) -> None:
    states: list[ModelState] = [model(seed) for seed in range(5)]
    before = [state_digest(state) for state in states]

    step(METHODS[name], states)

    assert [state_digest(state) for state in states] == before


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "multi_krum"])
def test_too_few_states_are_refused_and_not_averaged(name: str) -> None:
    spec = METHODS[name]
    few: list[ModelState] = [model(seed) for seed in range(spec.least_sites - 1)]

    with pytest.raises(ValueError, match=f"{name} needs {spec.least_sites} states, got {spec.least_sites - 1}"):
        step(spec, few)


# --- a step of the server ---------------------------------------------------------------------------------------------


def test_fedavgm_with_rate_one_and_without_momentum_is_fedavg_to_the_byte() -> None:
    spec = AggregationSpec(method="fedavgm", momentum=0.0, server_learning_rate=1.0)
    states = [({"w": model(seed, size=20_000)["w"] * 10.0 ** (seed - 3)}, 0.3 + seed) for seed in range(6)]
    reference = {"w": model(9, size=20_000)["w"] * 1e4}

    for momentum in (0.0, -3.5):
        memory = {"momentum": {"w": np.full(20_000, momentum, dtype=np.float32)}}
        after, _ = server_step(spec, states, reference=reference, memory=memory, trained=TRAINED)
        assert state_digest(after) == state_digest(weighted_mean(states, reference=reference))


def test_fedavgm_adds_up_the_updates() -> None:
    spec = AggregationSpec(method="fedavgm", momentum=0.5, server_learning_rate=2.0)
    memory = {"momentum": numbers(4.0)}

    after, remembered = server_step(
        spec, [(numbers(1.0), 1.0), (numbers(4.0), 2.0)], reference=numbers(1.0), memory=memory, trained=TRAINED
    )

    assert remembered["momentum"]["w"] == [0.5 * 4 + 2]
    assert after["w"] == [1 + 2 * 4]


@pytest.mark.parametrize(
    ("method", "square"),
    [pytest.param("fedadam", 0.75 * 16 + 0.25 * 4, id="adam"), pytest.param("fedyogi", 16 - 0.25 * 4, id="yogi")],
)
def test_adaptive_methods_follow_algorithm_two(method: Any, square: float) -> None:
    spec = AggregationSpec(method=method, momentum=0.5, second_momentum=0.75, adaptivity=0.5, server_learning_rate=0.1)
    memory = {"momentum": numbers(4.0), "square": numbers(16.0)}

    after, remembered = server_step(spec, [(numbers(3.0), 1.0)], reference=numbers(1.0), memory=memory, trained=TRAINED)

    assert remembered["momentum"]["w"] == [0.5 * 4 + 0.5 * 2]
    assert remembered["square"]["w"] == [square]
    assert after["w"][0] == pytest.approx(1 + 0.1 * 3 / (square**0.5 + 0.5), rel=1e-7)


def test_memory_begins_with_the_least_that_the_paper_allows() -> None:
    memory = initial_memory(METHODS["fedyogi"], model(0), trained=TRAINED, control_variates=True)

    assert {part: set(values) for part, values in memory.items()} == {
        "control": TRAINED,
        "momentum": TRAINED,
        "square": TRAINED,
    }
    assert set(memory["square"]["w"]) == {np.float32(1e-6)}
    assert not memory["momentum"]["w"].any()
    assert initial_memory(METHODS["median"], model(0), trained=TRAINED, control_variates=False) == {}


@given(
    st.sampled_from(["fedadam", "fedyogi"]),
    st.lists(arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=12),
)
def test_mean_of_squares_is_never_negative_and_every_step_finite(method: Any, rounds: list[Array]) -> None:
    spec = AggregationSpec(method=method)
    reference: ModelState = {"w": np.zeros(3, dtype=np.float32)}
    memory: Any = initial_memory(spec, reference, trained=TRAINED, control_variates=False)

    for update in rounds:
        reply = {"w": (reference["w"] + update).astype(np.float32)}
        reference, memory = server_step(spec, [(reply, 1.0)], reference=reference, memory=memory, trained=TRAINED)
        assert memory["square"]["w"].min() >= 0
        assert np.isfinite(reference["w"]).all()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_buffers_are_averaged_and_remembered_by_nobody(name: str) -> None:
    states = [model(seed) for seed in range(5)]

    after = step(METHODS[name], list(states), weights=[1.0] * 5)

    mean = weighted_mean([(state, 1.0) for state in states], reference=states[0])
    np.testing.assert_array_equal(after.state["running_var"], mean["running_var"])
    assert all(set(values) == TRAINED for values in after.memory.values())


# --- robust methods ---------------------------------------------------------------------------------------------------


@given(
    arrays(
        np.float32, st.tuples(st.integers(3, 9), st.integers(1, 6)), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    )
)
def test_median_and_trimmed_mean_are_those_of_numpy(values: Array) -> None:
    states = [{"w": row} for row in values]
    exact = np.sort(values.astype(np.float64), axis=0)

    median = coordinate_median(states, reference=states[0])["w"]
    trimmed = trimmed_mean(states, 1, reference=states[0])["w"]

    np.testing.assert_array_equal(median, np.median(exact, axis=0).astype(np.float32))
    np.testing.assert_allclose(trimmed, exact[1:-1].mean(axis=0), rtol=1e-6, atol=np.abs(exact).max() * 1e-7)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "multi_krum"])
@pytest.mark.parametrize("wrong", [1e6, -1e6, 0.0], ids=["far above", "far below", "nothing learned"])
def test_one_wrong_site_moves_the_state_no_further_than_the_others_lie_apart(name: str, wrong: float) -> None:
    honest = [numbers(*(10 + place / 10 for _ in range(4))) for place in range(5)]
    faulty = numbers(wrong, wrong, wrong, wrong)

    result = next_state(
        METHODS[name],
        [(state, 1.0) for state in [*honest[:2], faulty, *honest[2:]]],
        reference=honest[0],
        memory={},
        trained=TRAINED,
    )

    assert 10 <= result.state["w"].min() <= result.state["w"].max() <= np.float32(10.4)


def test_multi_krum_keeps_the_states_nearest_to_each_other_and_says_which() -> None:
    # Scores with f = 1 of six: the sum of the three nearest squared distances.
    states = [numbers(0.0), numbers(1.0), numbers(100.0), numbers(2.0), numbers(3.0), numbers(5.0)]

    assert krum_choice(states, 1) == (1, 3, 4)
    result = next_state(
        METHODS["multi_krum"], [(state, 2.0) for state in states], reference=states[0], memory={}, trained=TRAINED
    )
    assert result.weights == (0.0, 2.0, 0.0, 2.0, 2.0, 0.0)
    assert result.state["w"] == [2.0]


def test_distances_of_multi_krum_are_exact_where_squared_norms_cancel() -> None:
    base = 1000 * np.random.default_rng(0).standard_normal(500).astype(np.float32)
    states = [{"w": base.copy()} for _ in range(5)]
    for place, state in enumerate(states):
        state["w"][0] += np.float32((0, 0.001, 0.002, 0.003, 9)[place])

    assert krum_choice(states, 1) == (1, 2)


def test_counter_of_batches_is_no_distance() -> None:
    values = (0.0, 0.1, 0.15, 0.5, 0.9)
    states = [numbers(value) | {"n": np.array(10**6 * (value == 0.1), dtype=np.int64)} for value in values]

    assert krum_choice(states, 1) == (1, 2)


# --- SCAFFOLD ---------------------------------------------------------------------------------------------------------


def test_control_is_the_sum_of_the_sites_own_over_all_expected_sites_whatever_it_was() -> None:
    after = mean_control([numbers(4.0, 0.0), numbers(2.0, -3.0)], like=numbers(1.0, 2.0), num_sites=3)

    np.testing.assert_array_equal(after["w"], np.array([2, -1], dtype=np.float32))
    assert after["w"].dtype == np.float32


def test_control_is_zero_before_any_site_has_given_its_own() -> None:
    assert state_digest(mean_control([], like=numbers(1.5), num_sites=4)) == state_digest(numbers(0.0))


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "copies"),
    [
        pytest.param("mean", 1, id="mean"),
        pytest.param("fedavgm", 2, id="state and momentum"),
        pytest.param("fedadam", 3, id="state, momentum and squares"),
        pytest.param("median", 1, id="median"),
        pytest.param("multi_krum", 1, id="multi-Krum"),
    ],
)
def test_memory_holds_the_result_and_parts_whatever_the_number_of_sites(name: str, copies: int, tmp_path: Path) -> None:
    size = 2**22
    for place in range(5):
        (tmp_path / str(place)).write_bytes(encode_state({"w": np.full(size, place, dtype=np.float32)}))
    stored = [(StoredState(tmp_path / str(place), origin="a reply"), 1.0) for place in range(5)]
    spec = METHODS[name]
    memory = initial_memory(spec, stored[0][0], trained=TRAINED, control_variates=False)

    tracemalloc.start()
    result = next_state(spec, stored, reference=stored[0][0], memory=memory, trained=TRAINED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert result.state["w"].shape == (size,)
    parts = 40 * 2**20
    assert peak < copies * 4 * size + parts


# --- why these are not Flower's ---------------------------------------------------------------------------------------


def flower_reply(state: ModelState) -> Message:
    take_server_identity(run_id=1, node_id=1)
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: FlowerArray(array) for name, array in state.items()}),
            "metrics": MetricRecord({"num-examples": 3.0}),
        }
    )
    return Message(content, reply_to=Message(RecordDict(), 1, "train"))


def test_flower_s_median_still_changes_the_type_of_whole_numbers_and_empties_the_replies() -> None:
    replies = [flower_reply(model(seed)) for seed in range(3)]

    state, _ = FedMedian().aggregate_train(1, replies)

    assert state is not None
    assert state["num_batches_tracked"].numpy().dtype == np.float64
    assert [len(reply.content.array_records["arrays"]) for reply in replies] == [0, 0, 0]


def test_flower_s_trimmed_mean_still_gives_another_state_back_and_depends_on_the_order() -> None:
    same = {"w": model(0, size=20_000)["w"]}
    states = [{"w": model(seed, size=20_000)["w"]} for seed in range(7)]

    back, _ = FedTrimmedAvg(beta=0.2001).aggregate_train(1, [flower_reply(same) for _ in range(5)])
    orders = [
        FedTrimmedAvg(beta=0.144).aggregate_train(1, [flower_reply(state) for state in order])[0]
        for order in (states, states[::-1])
    ]

    assert back is not None
    assert (back["w"].numpy() != same["w"]).any()
    first, second = (order["w"].numpy() for order in orders if order is not None)
    assert (first != second).any()


def test_flower_s_multi_krum_still_loses_small_distances_and_gives_another_state_back() -> None:
    rng = np.random.default_rng(0)
    base = 1000 * rng.standard_normal(2000).astype(np.float32)
    states = [{"w": base + np.float32(0.01) * rng.standard_normal(2000).astype(np.float32)} for _ in range(6)]
    same = {"w": model(0, size=2000)["w"]}

    distances = compute_distances([ArrayRecord({"w": FlowerArray(state["w"])}) for state in states])
    back, _ = MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3).aggregate_train(
        1, [flower_reply(same) for _ in range(7)]
    )

    assert np.abs(distances - 0.4)[~np.eye(6, dtype=bool)].max() > 10
    assert back is not None
    assert (back["w"].numpy() != same["w"]).any()
