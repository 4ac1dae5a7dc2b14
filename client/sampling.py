"""Which training exams a step sees."""

import itertools
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
    classes = None
    if training.sampling == "class_balanced" and has_both_classes(labels):
        classes = _Classes(labels, generator)
    while epochs_left > 0:
        parts = batches(len(labels), batch_size=training.batch_size, generator=generator)
        for indices in parts if classes is None else map(classes.draw, parts):
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

    The pass is cut into `num_batches` parts of nearly equal size.
    """
    order = torch.randperm(num_exams, generator=generator)
    return iter(torch.tensor_split(order, num_batches(num_exams, batch_size=batch_size)))


def num_batches(num_exams: int, *, batch_size: int) -> int:
    """Batches of one pass: ceil(n / batch_size), or one less where an exam would be alone in one.

    Batch norm cannot tell anything of a single exam. It is left over in batches of two from an odd number of exams, of
    which one batch has three then. Batches are of one exam alone where the study says so, or where a site has no other.
    """
    parts = math.ceil(num_exams / batch_size)
    return max(1, min(parts, num_exams // 2)) if batch_size > 1 else parts


class _Classes:
    """Exams of both classes, each in passes of its own over a whole round.

    The order of a pass is new each time: the rarer class begins anew when it is through.
    """

    def __init__(self, labels: Tensor, generator: torch.Generator) -> None:
        self._exams = [_endless((labels == label).nonzero().flatten(), generator) for label in (0, 1)]
        self._left_over = itertools.cycle((0, 1))
        self._generator = generator

    def draw(self, shuffled: Tensor) -> Tensor:
        """A batch as large as this one with both classes alike; what an odd one has left goes to each in turn."""
        numbers = [len(shuffled) // 2] * 2
        if len(shuffled) % 2:
            numbers[next(self._left_over)] += 1
        drawn = [next(exams) for exams, number in zip(self._exams, numbers, strict=True) for _ in range(number)]
        return torch.tensor(drawn)[torch.randperm(len(drawn), generator=self._generator)]


def _endless(indices: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from indices[torch.randperm(len(indices), generator=generator)].tolist()
