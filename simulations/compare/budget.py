"""What a comparison will cost, told before it begins: runs, gradient steps, minutes by a timed step."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from client.training import build_optimizer
from common.models import build_model
from common.study import Study
from simulations.compare.arms import ArmRun, num_batches_of_run

TIMED_S = 0.5


@dataclass(frozen=True)
class Budget:
    """A comparison's cost.

    Attributes:
        num_runs: Runs of all arms and seeds.
        num_left: Those without a result yet.
        steps_by_arm: Batches that are trained on, by arm, over all seeds.
        minutes: Of those left, side by side; training alone, evaluation comes on top.
        workers: Runs side by side.
    """

    num_runs: int
    num_left: int
    steps_by_arm: Mapping[str, int]
    minutes: float
    workers: int

    def lines(self) -> list[str]:
        """What a person reads."""
        steps = ", ".join(f"{arm} {number}" for arm, number in self.steps_by_arm.items())
        time_left = f"{self.minutes:.0f} minutes" if self.minutes < 120 else f"{self.minutes / 60:.1f} hours"
        return [
            f"Budget: {self.num_runs} runs, {self.num_left} of them left; batches trained on by arm: {steps}.",
            f"About {time_left} of training for what is left, {self.workers} runs side by side, from a timed step.",
        ]


def budget_of(
    runs: Sequence[ArmRun], left: Sequence[ArmRun], base: Study, *, num_sites: int, workers: int, step_s: float
) -> Budget:
    """The cost of some runs.

    Args:
        runs: All of them.
        left: Those without a result.
        base: Their common study.
        num_sites: Sites of the federated ones.
        workers: Runs side by side.
        step_s: Seconds of one training step on one thread.
    """
    steps: dict[str, int] = {}
    for run in runs:
        steps[run.arm] = steps.get(run.arm, 0) + num_batches_of_run(base, run.arm, num_sites)
    to_do = sum(num_batches_of_run(base, run.arm, num_sites) for run in left)
    return Budget(len(runs), len(left), steps, math.ceil(to_do * step_s / workers) / 60, workers)


def timed_step_s(study: Study) -> float:
    """Mean seconds of a training step on a batch of noise on one thread; the first one is not counted."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        model = build_model(study.model, num_sequences=len(study.sequences), generator=generator)
        optimizer = build_optimizer(model, study.training, learning_rate=study.training.learning_rate)
        shape = (study.training.batch_size, len(study.sequences), *study.preprocessing.size_voxels)
        images, labels = torch.randn(shape, generator=generator), torch.arange(shape[0]) % 2
        started, count = 0.0, -1
        while count < 1 or time.perf_counter() - started < TIMED_S:
            if count == 0:
                started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            count += 1
        return (time.perf_counter() - started) / count
    finally:
        torch.set_num_threads(before)
