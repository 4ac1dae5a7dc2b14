"""What a table will cost: cells, patients, gradient steps, and the minutes that timed steps let expect."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from client.cohort import part_sizes
from client.training import build_optimizer
from common.models import build_model
from common.study import Study
from server.report.wording import count
from simulations.paper.cells import HOSPITALS_OF_ARM, Arm, Cell
from simulations.paper.hospitals import published_parts
from simulations.phantom.spec import HOSPITALS, PhantomOptions, draw_labels

Parts = tuple[int, int, int]
"""Patients who train, validate and test."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one batch on one thread: a step of training, and an evaluation."""

    training_s: float
    evaluation_s: float


@dataclass(frozen=True)
class Work:
    """Batches of one cell."""

    num_steps: int
    num_evaluated: int

    def seconds(self, step: StepTime) -> float:
        """How long they take on one thread."""
        return self.num_steps * step.training_s + self.num_evaluated * step.evaluation_s


@dataclass(frozen=True)
class Budget:
    """A whole table.

    Attributes:
        num_finished: Cells that are there already.
        patients: Patients by arm.
        minutes: Of training and evaluation in the cells that are left, side by side.
        workers: Cells side by side.
    """

    num_cells: int
    num_finished: int
    patients: Mapping[Arm, int]
    num_steps: int
    minutes: float
    workers: int

    def line(self) -> str:
        """One line for a person."""
        finished = f", {self.num_finished} of them finished" if self.num_finished else ""
        who = " and ".join(
            f"{count(number, 'patient')} at {'one hospital' if arm == 'one' else 'five hospitals'}"
            for arm, number in self.patients.items()
        )
        steps = count(self.num_steps, "gradient step")
        return (
            f"Budget: {count(self.num_cells, 'cell')}{finished}; {who}; {steps}, about {minutes_text(self.minutes)} "
            f"of training with {self.workers} at a time, from a timed step of each model"
        )


def minutes_text(minutes: float) -> str:
    """Minutes, or hours where they are many."""
    if minutes < 1:
        return "1 minute"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def parts_of_arm(arm: Arm, study: Study, counts: Mapping[str, int], options: PhantomOptions) -> list[Parts]:
    """Patients of every site of an arm by part, before those without all sequences are left out."""
    sites = []
    for letter in HOSPITALS_OF_ARM[arm]:
        labels = draw_labels(HOSPITALS[letter], counts[letter], options)
        by_class = [labels.count(label) for label in (0, 1)]
        if arm == "one":
            parts = [published_parts(n, label, study.split.validation) for label, n in enumerate(by_class)]
        else:
            parts = [part_sizes(n, study.split) for n in by_class]
        train, validation, test = (sum(sizes) for sizes in zip(*parts, strict=True))
        sites.append((train, validation, test))
    return sites


def work_of(study: Study, sites: Sequence[Parts]) -> Work:
    """Batches of a run: every round evaluates and trains; the end evaluates the last state and tests the best one."""

    def num_batches(num_patients: int) -> int:
        return math.ceil(num_patients / study.training.batch_size)

    steps = evaluated = 0
    for train, validation, test in sites:
        epochs = study.training.local_epochs
        of_round = study.training.local_steps if epochs is None else epochs * num_batches(train)
        assert of_round is not None, "a study has epochs or steps"
        steps += study.rounds * of_round
        evaluated += (study.rounds + 2) * num_batches(validation) + num_batches(test)
    return Work(steps, evaluated)


def time_steps(studies: Mapping[Cell, Study]) -> dict[str, StepTime]:
    """A timed step of every model, at the largest number of sequences it has; about a second or more each."""
    largest: dict[str, Study] = {}
    for cell, study in studies.items():
        if cell.model not in largest or len(study.sequences) > len(largest[cell.model].sequences):
            largest[cell.model] = study
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {model: time_step(study) for model, study in largest.items()}
    finally:
        torch.set_num_threads(before)


def time_step(study: Study) -> StepTime:
    """Time one step of training and one evaluation of a batch of noise; the first of each is not counted."""
    model = build_model(study.model, num_sequences=len(study.sequences), generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, study.training, learning_rate=study.training.learning_rate)
    shape = (study.training.batch_size, len(study.sequences), *study.preprocessing.size_voxels)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(images)) % 2

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    return StepTime(training_s=_seconds(train), evaluation_s=_seconds(evaluate))


def _seconds(action: Callable[[], None]) -> float:
    """Mean time of an action that is done once before, then for a third of a second."""
    action()
    started, num_done = time.perf_counter(), 0
    while num_done == 0 or time.perf_counter() - started < 0.3:
        action()
        num_done += 1
    return (time.perf_counter() - started) / num_done
