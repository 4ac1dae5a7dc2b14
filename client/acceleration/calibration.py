"""Measuring which plan a device trains fastest by, once for each device, network and size of batch."""

import hashlib
import json
import logging
import math
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch.nn import functional

from client.acceleration.plan import PLAIN, StepPlan, possible_plans
from client.private_files import make_private_folder, write_atomically
from client.training import build_optimizer
from common.models import build_model
from common.study import Study

log = logging.getLogger(__name__)

NUM_WARM, NUM_TIMED = 2, 3
"""Steps of every plan before the clock counts, and those that are timed, in turns; their median counts."""
LEAST_GAIN = 0.05
"""A plan that is not this much faster than a simpler one is not worth it."""
LEAST_STEPS = 100
"""A run with fewer steps at a site is over before measuring pays, unless that was done before it."""
_WAYS_VERSION = 2
"""Rises when what a plan's name stands for becomes faster or slower, so that it is measured anew."""
_LEARNING_RATE = 1e-7  # so that all plans are timed on the same weights
_TOLERANCE = 0.05
"""How far a plan's first loss may lie from that of plain float32, relative, or absolute below 1."""


@dataclass(frozen=True)
class StepChoice:
    """Which plan was chosen.

    Attributes:
        plan: By which the site trains.
        seconds: What a step took by each plan, by its name; empty where nothing was measured.
        dropped: Why a plan was not taken into account, by its name.
    """

    plan: StepPlan = PLAIN
    seconds: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def speed_up(self) -> float:
        """How many times as fast as plain float32 the chosen plan was."""
        return self.seconds[PLAIN.name] / self.seconds[self.plan.name] if self.seconds else 1.0

    def without(self, plan: StepPlan, reason: str) -> "StepChoice":
        """Plain float32 instead, because a plan failed after it was chosen."""
        return replace(self, plan=PLAIN, dropped={**self.dropped, plan.name: reason})


class StepChoices:
    """The choices of a site, kept in its cache folder, and shared with the other sites of this process.

    Args:
        cache: The site's cache folder.
    """

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "step_plans"

    def choose(self, study: Study, *, num_exams: int, device: torch.device, however_short: bool = False) -> StepChoice:
        """The plan for the training of a study: the fastest one that was measured, where the study asks for it.

        Args:
            study: What is trained.
            num_exams: Training exams of the site.
            device: Where.
            however_short: Measure also for a run of fewer than `LEAST_STEPS`, as is done before a run.
        """
        if study.training.precision == "fp32":
            return StepChoice()
        key = _key(study, num_exams, device)
        with _measuring:  # one at a time: two that measure side by side measure each other
            known = _known.get(key)
            choice = known or self._read(key)
            if choice is None:
                if num_steps_of_run(study, num_exams) < LEAST_STEPS and not however_short:
                    return StepChoice()
                choice = measure(study, num_exams=num_exams, device=device)
            if known is None or not self._path(key).exists():
                self._write(key, choice)
            _known[key] = choice
        return choice

    def drop(
        self, study: Study, choice: StepChoice, reason: str, *, num_exams: int, device: torch.device
    ) -> StepChoice:
        """Train by plain float32 from here on; gives the choice that is left."""
        key, plain = _key(study, num_exams, device), choice.without(choice.plan, reason)
        with _measuring:
            _known[key] = plain
        self._write(key, plain)
        return plain

    def _read(self, key: str) -> StepChoice | None:
        try:
            values = json.loads(self._path(key).read_text(encoding="ascii"))
            plan = StepPlan(**{name: bool(value) for name, value in values["plan"].items()})
            seconds = {str(name): float(value) for name, value in values["seconds"].items()}
            dropped = {str(name): str(reason) for name, reason in values["dropped"].items()}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("what this site measured of its device is damaged and is measured anew")
            return None
        return StepChoice(plan, seconds, dropped)

    def _write(self, key: str, choice: StepChoice) -> None:
        make_private_folder(self._folder)
        write_atomically(self._path(key), json.dumps(asdict(choice)).encode("ascii"))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"


_known: dict[str, StepChoice] = {}
_measuring = threading.Lock()


def num_steps_of_run(study: Study, num_exams: int) -> int:
    """Steps of a site with so many training exams over all rounds."""
    training = study.training
    per_epoch = math.ceil(num_exams / training.batch_size)
    return study.rounds * (training.local_steps or (training.local_epochs or 0) * per_epoch)


def _batch_size(study: Study, num_exams: int) -> int:
    return min(study.training.batch_size, num_exams)


def _key(study: Study, num_exams: int, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else dict(torch.cpu.get_capabilities())
    facts = {
        "device": [device.type, name, torch.get_num_threads(), torch.__version__],
        "plans": [_WAYS_VERSION, *(plan.name for plan in possible_plans(device))],
        "model": study.model.model_dump(mode="json"),
        "optimizer": study.training.optimizer,
        "images": [_batch_size(study, num_exams), len(study.sequences), *study.preprocessing.size_voxels],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def measure(study: Study, *, num_exams: int, device: torch.device) -> StepChoice:
    """Train a few steps on noise by every plan, in turns, and choose.

    A plan that raises, that gives a number that is not finite, or whose loss is not that of plain float32, is dropped.
    """
    trial = _Trial(study, num_exams=num_exams, device=device)
    expected = math.nan
    seconds: dict[StepPlan, list[float]] = {}
    dropped: dict[str, str] = {}
    for plan in possible_plans(device):
        loss, reason = trial.warm_up(plan)
        if plan == PLAIN:
            expected = loss
        elif not reason and abs(loss - expected) > _TOLERANCE * max(1.0, abs(expected)):
            reason = f"its loss was {loss:.3f}, that of fp32 {expected:.3f}"
        if not reason:
            seconds[plan] = []
            continue
        dropped[plan.name] = reason
        if plan == PLAIN:
            return StepChoice(dropped=dropped)  # the round itself will say what is wrong
    for _ in range(NUM_TIMED):
        for plan, times in seconds.items():
            times.append(trial.time_of_step(plan))
    medians = {plan: statistics.median(times) for plan, times in seconds.items()}
    return StepChoice(fastest(medians), {plan.name: median for plan, median in medians.items()}, dropped)


def fastest(seconds: Mapping[StepPlan, float]) -> StepPlan:
    """The fastest plan, where each has to beat the simpler ones before it by `LEAST_GAIN`."""
    best = PLAIN
    for plan, value in seconds.items():
        if value < (1 - LEAST_GAIN) * seconds[best]:
            best = plan
    return best


class _Trial:
    """Steps on noise. All plans share one network, so that measuring takes little more memory than training."""

    def __init__(self, study: Study, *, num_exams: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (_batch_size(study, num_exams), len(study.sequences), *study.preprocessing.size_voxels)
        self._device = device
        self._images = torch.randn(shape, generator=generator).to(device)
        self._labels = (torch.arange(shape[0]) % 2).to(device)
        self._model = build_model(study.model, num_sequences=shape[1], generator=generator).to(device).train()
        self._start = {name: values.clone() for name, values in self._model.state_dict().items()}
        self._training = study.training
        self._optimizers: dict[bool, torch.optim.Optimizer] = {}

    def warm_up(self, plan: StepPlan) -> tuple[float, str]:
        """The first steps from the same weights: the first loss, and why the plan is dropped, or nothing."""
        self._model.load_state_dict(self._start)
        try:
            losses = [self._step(plan) for _ in range(NUM_WARM)]
        except RuntimeError as error:  # what torch raises, for want of memory too; its text may name files
            self._optimizers.clear()
            return math.nan, f"it failed ({type(error).__name__})"
        if not all(map(math.isfinite, losses)) or not self._is_finite():
            self._optimizers.clear()
            return losses[0], "it gave numbers that are not finite"
        return losses[0], ""

    def time_of_step(self, plan: StepPlan) -> float:
        """Seconds."""
        started = time.perf_counter()
        self._step(plan)
        return time.perf_counter() - started

    def _step(self, plan: StepPlan) -> float:
        """One step; gives its loss."""
        if plan.fused not in self._optimizers:
            self._optimizers[plan.fused] = build_optimizer(
                self._model, self._training, learning_rate=_LEARNING_RATE, fused=plan.fused
            )
        loss = functional.cross_entropy(plan.logits(self._model, self._images), self._labels)
        self._optimizers[plan.fused].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizers[plan.fused].step()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return loss.item()

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(values).all()) for values in self._model.state_dict().values())
