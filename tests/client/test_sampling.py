"""Batches that draw both classes alike: as many and as large as shuffled ones, and the same for the same seed."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.sampling import batches, batches_of_round, num_batches
from common.study import TrainingSpec


def spec(**settings: Any) -> TrainingSpec:
    length = {} if "local_steps" in settings else {"local_epochs": 1}
    balanced = {"sampling": "class_balanced", "class_weighting": "none"}
    return TrainingSpec.model_validate({"learning_rate": 1e-2, "batch_size": 4} | length | balanced | settings)


def labels_of(num_negative: int, num_positive: int) -> torch.Tensor:
    return torch.tensor([0] * num_negative + [1] * num_positive)


def drawn(training: TrainingSpec, labels: torch.Tensor, *, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [part.tolist() for part in batches_of_round(training, labels, generator)]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_every_batch_draws_both_classes_alike_and_an_epoch_is_as_long_as_ever(
    num_negative: int, num_positive: int, batch_size: int, epochs: int, seed: int
) -> None:
    labels, total = labels_of(num_negative, num_positive), num_negative + num_positive

    parts = drawn(spec(batch_size=batch_size, local_epochs=epochs), labels, seed=seed)

    generator = torch.Generator().manual_seed(seed)
    shuffled = [len(part) for part in batches(total, batch_size=batch_size, generator=generator)]
    assert [len(part) for part in parts] == shuffled * epochs
    for part in parts:
        positive = int(labels[part].sum())
        assert abs(2 * positive - len(part)) <= 1
    assert abs(2 * sum(int(labels[part].sum()) for part in parts) - epochs * total) <= 1


def test_exams_of_a_class_are_drawn_as_often_as_each_other() -> None:
    labels = labels_of(12, 3)

    times = Counter(index for part in drawn(spec(local_epochs=4), labels) for index in part)

    assert sum(times.values()) == 60
    assert {times[index] for index in range(12)} <= {2, 3}
    assert [times[index] for index in range(12, 15)] == [10, 10, 10]


def test_steps_are_counted_as_ever() -> None:
    assert len(drawn(spec(local_steps=7), labels_of(6, 2))) == 7


def test_same_seed_draws_the_same_and_another_one_does_not() -> None:
    one, again, other = (drawn(spec(), labels_of(12, 4), seed=seed) for seed in (1, 1, 2))

    assert one == again
    assert one != other


@pytest.mark.parametrize("labels", [labels_of(9, 0), labels_of(0, 9)], ids=["recurrence alone", "necrosis alone"])
def test_exams_of_one_class_are_shuffled(labels: torch.Tensor) -> None:
    assert drawn(spec(), labels) == drawn(spec(sampling="shuffled"), labels)


@given(st.integers(2, 60), st.integers(2, 9))
def test_no_exam_is_ever_alone_in_a_batch(num_exams: int, batch_size: int) -> None:
    parts = list(batches(num_exams, batch_size=batch_size, generator=torch.Generator().manual_seed(0)))

    assert min(len(part) for part in parts) >= 2
    assert sorted(torch.cat(parts).tolist()) == list(range(num_exams))
    assert max(len(part) for part in parts) <= batch_size + (batch_size == 2 and num_exams % 2)


@given(st.integers(1, 60), st.integers(1, 9))
def test_batches_are_cut_as_ever_where_no_exam_would_be_alone(num_exams: int, batch_size: int) -> None:
    ceiling = -(-num_exams // batch_size)

    found = num_batches(num_exams, batch_size=batch_size)

    assert found == ceiling - (batch_size == 2 and num_exams % 2 == 1 and num_exams > 1)
