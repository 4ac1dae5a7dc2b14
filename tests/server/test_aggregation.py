"""FedAvg: the mean by weight, the same bytes in any order of arrival, and the step that pooled training would take."""

import itertools
import weakref
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client.training import TrainingSet, build_optimizer, train_locally
from common.model_state import Array, state_digest, update_norm
from common.models import build_model, get_state, initial_state, set_state
from common.study import AugmentationSpec, ModelSpec, TrainingSpec
from server.aggregation import aggregation_weight, balanced_class_weights, weighted_mean

SMALL = ModelSpec(width=0.125, num_groups=4)


def state(*values: float) -> dict[str, Array]:
    return {"w": np.array(values, dtype=np.float32)}


def test_site_with_three_times_the_weight_pulls_three_times_as_hard() -> None:
    mean = weighted_mean([(state(0, 8), 1.0), (state(4, 0), 3.0)], reference=state(0, 0))

    np.testing.assert_array_equal(mean["w"], np.array([3, 2], dtype=np.float32))
    assert mean["w"].dtype == np.float32


@given(st.integers(1, 9), st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_identical_sites_give_back_their_own_bytes(num_values: int, weights: list[float], seed: int) -> None:
    same = {"w": np.random.default_rng(seed).standard_normal(num_values).astype(np.float32)}

    mean = weighted_mean([(same, weight) for weight in weights], reference=same)

    assert state_digest(mean) == state_digest(same)


def test_identical_models_give_back_the_model() -> None:
    same = initial_state(SMALL, num_sequences=3, seed=1)

    mean = weighted_mean([(same, 0.1), (same, 7.3), (same, 111.0)], reference=same)

    assert state_digest(mean) == state_digest(same)


def test_sums_are_in_float64() -> None:
    # In float32, 1e8 + 1 is 1e8, and the mean would be 0.
    mean = weighted_mean([(state(1e8), 1.0), (state(1), 1.0), (state(-1e8), 1.0)], reference=state(0))

    assert mean["w"][0] == np.float32(1 / 3)


def test_sites_go_in_by_name_so_that_any_order_of_replies_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    replies = {name: ({"w": rng.standard_normal(50).astype(np.float32)}, rng.uniform(1, 9)) for name in "abcd"}
    reference = {"w": np.zeros(50, dtype=np.float32)}

    digests = {
        state_digest(weighted_mean([reply for _, reply in sorted(order)], reference=reference))
        for order in itertools.permutations(replies.items())
    }

    assert len(digests) == 1


def test_counter_of_batches_is_rounded_and_stays_a_whole_number_without_dimensions() -> None:
    counts = [({"n": np.array(n, dtype=np.int64)}, 1.0) for n in (3, 4, 4)]

    mean = weighted_mean(counts, reference=counts[0][0])

    assert mean["n"] == 4
    assert mean["n"].dtype == np.int64
    assert mean["n"].shape == ()
    assert isinstance(mean["n"], np.ndarray)


@given(st.lists(st.tuples(st.floats(0, 2**100, width=32), st.floats(1e-3, 1e6)), min_size=1, max_size=9))
def test_mean_of_variances_is_never_negative(variances: list[tuple[float, float]]) -> None:
    states = [({"running_var": np.array([v], dtype=np.float32)}, weight) for v, weight in variances]

    mean = weighted_mean(states, reference=states[0][0])

    assert mean["running_var"][0] >= 0


def test_mean_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one state of positive weight"):
        weighted_mean([], reference=state(0))


class Watched(dict[str, Array]):
    """A state on disk: gives a new array whenever it is asked, and remembers which are still held."""

    held: ClassVar[list[weakref.ref[Array]]] = []

    def __getitem__(self, name: str) -> Array:
        assert all(array() is None for array in self.held)
        array = super().__getitem__(name).copy()
        self.held.append(weakref.ref(array))
        return array


def test_one_array_of_one_reply_at_a_time_is_held() -> None:
    replies = [(Watched(state(number, 1)), 1.0) for number in range(3)]

    mean = weighted_mean(replies, reference=state(0, 0))

    np.testing.assert_array_equal(mean["w"], [1, 1])
    assert len(Watched.held) == 3


def test_long_array_is_averaged_in_parts_like_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    replies = [({"w": row}, 0.3 + index) for index, row in enumerate(numbers)]
    whole = weighted_mean(replies, reference=replies[0][0])

    monkeypatch.setattr("server.aggregation.mean._NUMBERS_AT_A_TIME", 7)
    monkeypatch.setattr("server.aggregation.mean._NUMBERS_IN_CACHE", 3)

    np.testing.assert_array_equal(weighted_mean(replies, reference=replies[0][0])["w"], whole["w"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64])
def test_mean_has_the_bytes_of_sums_in_float64_in_the_order_of_the_sites(dtype: type[np.generic]) -> None:
    numbers = (1e3 * np.random.default_rng(1).normal(size=(5, 40_000))).astype(dtype)
    weights = [0.1, 3.7, 12.0, 1e-3, 250.0]
    sums = np.zeros(40_000)
    for row, weight in zip(numbers, weights, strict=True):
        sums = sums + weight * row.astype(np.float64)
    expected = sums / sum(weights)

    mean = weighted_mean(
        [({"w": row}, w) for row, w in zip(numbers, weights, strict=True)], reference={"w": numbers[0]}
    )

    rounded = np.rint(expected) if dtype is np.int64 else expected
    assert mean["w"].tobytes() == rounded.astype(dtype).tobytes()


# --- weights ----------------------------------------------------------------------------------------------------------


def test_classes_of_the_whole_federation_weigh_the_same() -> None:
    assert balanced_class_weights((82, 18)) == (100 / 164, 100 / 36)
    assert balanced_class_weights((5, 5)) == (1.0, 1.0)


def test_class_without_patients_has_no_weight() -> None:
    assert balanced_class_weights((7, 0)) == (0.5, 0.0)
    assert balanced_class_weights((0, 0)) == (0.0, 0.0)


def test_weight_of_a_site_is_the_sum_over_its_patients() -> None:
    assert aggregation_weight((10, 2), (0.5, 3.0)) == 11.0
    assert aggregation_weight((10, 2), (1.0, 1.0)) == 12.0


# --- one step at every site is the step on all patients ---------------------------------------------------------------

COUNTS = [(5, 1), (2, 3), (1, 4)]
STEP = TrainingSpec.model_validate(
    {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1, "batch_size": 256}
    | {"local_steps": 1}
)
NO_AUGMENTATION = AugmentationSpec(
    flip_probability=0, rotation_degrees=0, scaling=0, translation_mm=0, intensity=0, noise=0
)


def patients(counts: tuple[int, int], *, seed: int) -> TrainingSet:
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    images = torch.randn(len(labels), 2, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    return TrainingSet(images + labels[:, None, None, None, None], labels, (4.0, 4.0, 4.0))


def after_one_step(
    start: dict[str, Array], training_set: TrainingSet, weights: tuple[float, float]
) -> dict[str, Array]:
    model: nn.Module = build_model(SMALL, num_sequences=2)
    set_state(model, start)
    train_locally(
        model,
        build_optimizer(model, STEP, learning_rate=STEP.learning_rate),
        training_set,
        training=STEP,
        augmentation=NO_AUGMENTATION,
        class_weights=weights,
        generator=torch.Generator().manual_seed(0),
    )
    return get_state(model)


def largest_difference(one: dict[str, Array], other: dict[str, Array]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_one_full_step_at_every_site_is_the_pooled_step_by_sum_of_class_weights_and_not_by_number() -> None:
    start = initial_state(SMALL, num_sequences=2, seed=1)
    sites = [patients(counts, seed=seed) for seed, counts in enumerate(COUNTS)]
    pooled = TrainingSet(torch.cat([s.images[:] for s in sites]), torch.cat([s.labels for s in sites]), (4.0, 4.0, 4.0))
    weights = balanced_class_weights((82, 18))
    step = partial(after_one_step, start, weights=weights)
    replies = [step(site) for site in sites]

    together = step(pooled)
    by_weight = weighted_mean(
        [(reply, aggregation_weight(c, weights)) for reply, c in zip(replies, COUNTS, strict=True)], reference=start
    )
    by_number = weighted_mean(
        [(reply, float(sum(c))) for reply, c in zip(replies, COUNTS, strict=True)], reference=start
    )

    assert largest_difference(by_weight, together) < 1e-6
    assert update_norm(by_number, together) > 0.01 * update_norm(together, start)


def test_without_class_weights_the_number_of_patients_is_the_weight() -> None:
    start = initial_state(SMALL, num_sequences=2, seed=1)
    sites = [patients(counts, seed=seed) for seed, counts in enumerate(COUNTS)]
    pooled = TrainingSet(torch.cat([s.images[:] for s in sites]), torch.cat([s.labels for s in sites]), (4.0, 4.0, 4.0))

    together = after_one_step(start, pooled, (1.0, 1.0))
    mean = weighted_mean(
        [
            (after_one_step(start, site, (1.0, 1.0)), aggregation_weight(counts, (1.0, 1.0)))
            for site, counts in zip(sites, COUNTS, strict=True)
        ],
        reference=start,
    )

    assert largest_difference(mean, together) < 1e-6
