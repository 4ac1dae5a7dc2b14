"""Which training exams a step sees."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from common.study import TrainingSpec


def batches_of_round(training: TrainingSpec, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the batches of a site's round: as many passes, or steps, and in the order that the study says.

    A site whose exams are all of one class has nothing to balance; they are shuffled.

    Args:
        training: Batch size, length and order.
        labels: Of the training exams; shape (N,).
        generator: On the CPU; decides the order.
    """
    steps_left = training.local_steps if training.local_steps is not None else math.inf
    epochs_left = training.local_epochs if training.local_epochs is not None else math.inf
    draws = None
    if training.sampling == "class_balanced" and has_both_classes(labels):
        draws = [_endless((labels == label).nonzero().flatten(), generator) for label in (0, 1)]
    while epochs_left > 0:
        if draws is None:
            parts = batches(len(labels), batch_size=training.batch_size, generator=generator)
        else:
            parts = balanced_batches(len(labels), draws, batch_size=training.batch_size, generator=generator)
        for indices in parts:
            if steps_left <= 0:
                return
            yield indices
            steps_left -= 1
        epochs_left -= 1


def has_both_classes(labels: Tensor) -> bool:
    """Whether there is an exam of each class."""
    return 0 < int(labels.sum()) < len(labels)


def batches(num_exams: int, *, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the batches of one pass in random order.

    The pass is cut into ceil(n / batch_size) parts of nearly equal size, so that no batch of a single exam is left
    over, on which batch norm would fail.
    """
    order = torch.randperm(num_exams, generator=generator)
    return iter(torch.tensor_split(order, math.ceil(num_exams / batch_size)))


def balanced_batches(
    num_exams: int, draws: list[Iterator[int]], *, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Batches as many and as large as those of `batches`, each with both classes alike.

    The exam that an odd batch has left goes to each class in turn.

    Args:
        num_exams: Exams of both classes together.
        draws: For each class an endless source of indices.
        batch_size: Exams of a batch at most.
        generator: Decides the order inside a batch.
    """
    sizes = [len(part) for part in torch.tensor_split(torch.arange(num_exams), math.ceil(num_exams / batch_size))]
    for number, size in enumerate(sizes):
        num_positive = (size + number % 2) // 2
        drawn = [next(draws[0]) for _ in range(size - num_positive)] + [next(draws[1]) for _ in range(num_positive)]
        yield torch.tensor(drawn)[torch.randperm(size, generator=generator)]


def _endless(indices: Tensor, generator: torch.Generator) -> Iterator[int]:
    """Passes over a class's exams, each in an order of its own: the rarer class begins anew when it is through."""
    while True:
        yield from indices[torch.randperm(len(indices), generator=generator)].tolist()
