"""A round's work in a process of its own, as Flower starts one for every task: open the site, train some steps.

It leaves nothing behind but prepared exams: no weights, no optimiser state, no line in the journal. Started by
`client.rehearsal.computing`; the study's text comes on standard input, the result goes as JSON to standard output.
"""

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import client.app  # noqa: F401 - a round's process imports it, so its time and memory belong to the measurement
from client.config import SiteConfig, read_site_config
from client.evaluation import margins_of_exams
from client.exam_images import promised_bytes
from client.own_layers import names_that_stay
from client.prepare import prepare_site
from client.site import Site, find_device
from client.training import (
    Penalty,
    TrainingSet,
    build_optimizer,
    proximal_penalty,
    round_generator,
    train_locally,
    trainable_parameters,
)
from common.errors import GliornError
from common.models import build_model, initial_state, set_state
from common.schedule import learning_rate_in_round
from common.study import Study, parse_study

MAX_STEPS, ENOUGH_S = 5, 20.0
"""After a first step, at most this many are timed; none is begun once they took this long together."""


@dataclass(frozen=True)
class Trial:
    """What was measured. All times in seconds.

    Attributes:
        imported_at: The system's monotonic clock when the imports were done, to compare with the starting process's.
        open_s: Finding the prepared patients.
        first_step_s: The first step, in which libraries warm up.
        step_s: Median of the steps after it.
        num_timed: How many those were.
        loss: Mean loss of all steps.
        validation_s: Evaluation of all validation patients, from one batch of them.
        num_training: Training exams.
        num_validation: Validation exams.
        device: Kind and name of the device.
        peak_bytes: Most main memory the process had in use, with the images that a round would keep besides; None where
            the system does not say.
        gpu_peak_bytes: Most memory torch held on the CUDA device; None on the CPU.
        gpu_free_bytes: What was free on it before the model came; None on the CPU.
    """

    imported_at: float
    open_s: float
    first_step_s: float
    step_s: float
    num_timed: int
    loss: float
    validation_s: float
    num_training: int
    num_validation: int
    device: str
    peak_bytes: int | None
    gpu_peak_bytes: int | None
    gpu_free_bytes: int | None


def main() -> int:
    """Do the trial and print its result, or what the user has to mend."""
    imported_at = time.monotonic()
    site_file = Path(sys.argv[1])
    result: dict[str, object]
    try:
        study = parse_study(sys.stdin.read(), origin="study")
        result = asdict(run_trial(read_site_config(site_file), study, imported_at=imported_at))
    except GliornError as error:
        result = {"fault": str(error)}
    except torch.OutOfMemoryError:
        result = {"fault": "the device has too little memory for a step of this study; give it a larger one, or cpu"}
    except RuntimeError as error:  # torch's own word for all that a device or a shape does not allow
        result = {"fault": f"torch cannot compute a step of this study: {str(error).splitlines()[0]}"}
    json.dump(result, sys.stdout)
    return 0


def run_trial(config: SiteConfig, study: Study, *, imported_at: float) -> Trial:
    """Train some steps of the first round on the site's own patients and evaluate a batch, all in memory.

    Raises:
        GliornError: If the data, the device or the training is not as it must be.
    """
    started = time.monotonic()
    site = Site(config, study, prepare_site(config, study, check=False), find_device(config.device))
    site.describe()  # also sets the site's number of threads
    open_s = time.monotonic() - started
    on_gpu = site.device.type == "cuda"
    gpu_free = torch.cuda.mem_get_info(site.device)[0] if on_gpu else None
    model = build_model(study.model, num_sequences=len(study.sequences))
    set_state(model, initial_state(study.model, num_sequences=len(study.sequences), seed=study.seed))
    model = model.to(site.device)
    step = _step_of(site, model)
    first_s, first_loss = _timed(step)
    timed: list[float] = []
    losses = [first_loss]
    while len(timed) < MAX_STEPS and (not timed or sum(timed) < ENOUGH_S):
        seconds, loss = _timed(step)
        timed.append(seconds)
        losses.append(loss)
    return Trial(
        imported_at=imported_at,
        open_s=open_s,
        first_step_s=first_s,
        step_s=sorted(timed)[len(timed) // 2],
        num_timed=len(timed),
        loss=sum(losses) / len(losses),
        validation_s=_validation_s(site, model),
        num_training=site.cohort.splits["train"].num_exams,
        num_validation=site.cohort.splits["validation"].num_exams,
        device=torch.cuda.get_device_name(site.device) if on_gpu else f"cpu, torch threads: {torch.get_num_threads()}",
        peak_bytes=_peak_bytes(),
        gpu_peak_bytes=torch.cuda.max_memory_reserved(site.device) if on_gpu else None,
        gpu_free_bytes=gpu_free,
    )


def _step_of(site: Site, model: nn.Module) -> Callable[[], float]:
    """One step of the study's first round: a batch of training patients, forward, backward, update; gives the loss.

    With Ditto the site's own model takes a step beside the global one's.
    """
    spec, stay = site.study.training, names_that_stay(site.study)
    shared = trainable_parameters(model, without=stay)
    penalty = proximal_penalty(spec.fedprox_mu, shared) if spec.fedprox_mu > 0 else None
    correction = None
    if spec.control_variates:
        correction = {name: torch.zeros_like(parameter) for name, parameter in shared.items()}
    personal = copy.deepcopy(model) if site.study.personalization.method == "ditto" else None
    step = _training_of(site, model, penalty, correction)
    if personal is None:
        return step
    step_beside = _training_of(site, personal, proximal_penalty(site.study.personalization.ditto_lambda, shared), None)

    def both() -> float:
        step_beside()
        return step()

    return both


def _training_of(
    site: Site, model: nn.Module, penalty: Penalty | None, correction: Mapping[str, Tensor] | None
) -> Callable[[], float]:
    """One step of a model; gives the loss."""
    spec, split = site.study.training, site.cohort.splits["train"]
    learning_rate = learning_rate_in_round(spec, round=1, num_rounds=site.study.rounds)
    optimizer = build_optimizer(model, spec, learning_rate=learning_rate)
    generator = round_generator(seed=site.study.seed, site=site.config.name, round=1)
    training_set = TrainingSet(split.images, split.labels, site.study.preprocessing.spacing_mm)

    def step() -> float:
        return train_locally(
            model,
            optimizer,
            training_set,
            training=spec.model_copy(update={"local_steps": 1, "local_epochs": None}),
            augmentation=site.study.augmentation,
            class_weights=(1.0, 1.0),
            generator=generator,
            penalty=penalty,
            correction=correction,
        ).mean_loss

    return step


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    """Seconds and loss of a step; the loss is a number, so the device has finished."""
    started = time.monotonic()
    loss = step()
    return time.monotonic() - started, loss


def _validation_s(site: Site, model: nn.Module) -> float:
    images, size = site.cohort.splits["validation"].images, site.study.training.batch_size
    if not len(images):
        return 0.0
    margins_of_exams(model, images[:1], batch_size=size)
    started = time.monotonic()
    margins_of_exams(model, images[:size], batch_size=size)
    return (time.monotonic() - started) * math.ceil(len(images) / size)


def _peak_bytes() -> int | None:
    """Most memory this process had in use: VmHWM of Linux, in which, other than in getrusage, no parent counts.

    With it the images that were not asked for yet and are kept when they are.
    """
    try:
        status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="ascii")
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 + promised_bytes() if kilobytes else None
