"""The training step: a plain loop with MONAI's network, ours in float32, and ours by the plan that is measured fastest.

Data lie in memory and are not augmented here. All sides take turns at the steps of one round, so that what a site does
once a round counts as it does there; times are those of one step.
"""

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from monai.networks.nets.resnet import resnet10
from torch import nn

from client.acceleration.calibration import measure
from client.acceleration.plan import PLAIN, StepPlan
from client.acceleration.small_convolutions import SmallConvolutions
from client.site import find_device
from client.training import TrainingSet, build_optimizer, round_generator, train_locally
from common.models import build_model
from common.study import AugmentationSpec, ModelSpec, Study, TrainingSpec
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options, Setting

NO_AUGMENTATION = AugmentationSpec(
    flip_probability=0, rotation_degrees=0, scaling=0, translation_mm=0, intensity=0, noise=0
)
LEAST_SPEED_UP, LEAST_SPEED_UP_GPU, MOST_OVER_CONVOLUTIONS = 2.0, 3.0, 1.25
STEPS_OF_ROUND = 6
"""As a site with 24 training patients takes in an epoch of batches of 4."""
_SPEC = ModelSpec()
_LEARNING_RATE = 1e-5

Action = Callable[[], object]


def study_of_steps(batch_size: int, size: int) -> Study:
    """A study with ResNet10 as a study has it by default, long enough that measuring plans pays."""
    return Study.model_validate(
        {
            "name": "benchmark",
            "seed": 0,
            "rounds": 100,
            "preprocessing": {"spacing_mm": (1, 1, 1), "size_voxels": (size,) * 3, "crop": "lesion"},
            "training": {
                "learning_rate": _LEARNING_RATE,
                "batch_size": batch_size,
                "local_steps": 100,
                "precision": "auto",
            },
            "participation": {"min_sites": 1},
        }
    )


def patients_of_steps(num_exams: int, size: int) -> TrainingSet:
    """Noise in place of images."""
    images = torch.randn(num_exams, 3, size, size, size, generator=torch.Generator().manual_seed(0))
    return TrainingSet(images, torch.arange(num_exams) % 2, (1.0, 1.0, 1.0))


def plain_loop(patients: TrainingSet, device: torch.device) -> Action:
    """One step as MONAI's tutorials write it: its ResNet10, float32, the optimiser's defaults, the loss asked for."""
    model = resnet10(spatial_dims=3, n_input_channels=3, num_classes=2, conv1_t_stride=2).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    criterion = nn.CrossEntropyLoss()

    def step() -> float:
        images, labels = patients.images[:].to(device), patients.labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def our_step(
    patients: TrainingSet,
    device: torch.device,
    plan: StepPlan,
    *,
    augmentation: AugmentationSpec = NO_AUGMENTATION,
    batch_size: int | None = None,
) -> Action:
    """The steps of a round of local training by a plan: the code that a site runs.

    Args:
        patients: Who is trained on.
        device: Where.
        plan: How.
        augmentation: Of their images.
        batch_size: Of a step; all of them without one.
    """
    training = TrainingSpec(
        learning_rate=_LEARNING_RATE, batch_size=batch_size or len(patients.labels), local_steps=STEPS_OF_ROUND
    )
    model = build_model(_SPEC, num_sequences=3).to(device)
    optimizer = build_optimizer(model, training, learning_rate=_LEARNING_RATE, fused=plan.fused)
    generator = round_generator(seed=0, site="benchmark", round=1)
    return lambda: train_locally(
        model,
        optimizer,
        patients,
        training=training,
        augmentation=augmentation,
        class_weights=(1.0, 1.0),
        generator=generator,
        plan=plan,
    )


def convolutions_alone(patients: TrainingSet, device: torch.device, plan: StepPlan) -> Action:
    """Forward and backward of every convolution of ResNet10 at the shapes it has there, in the plan's precision."""
    dtype = torch.bfloat16 if plan.bf16 else torch.float32
    model = build_model(_SPEC, num_sequences=3)
    jobs: list[tuple[nn.Conv3d, torch.Tensor, torch.Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv3d)
        images = torch.randn(inputs[0].shape).to(device, dtype)
        if plan.channels_last:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        images.requires_grad_(bool(jobs))  # nothing asks for the gradient of the network's own input
        jobs.append((layer, images, torch.randn(output.shape).to(device, dtype)))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Conv3d)]
    with torch.no_grad():
        model(patients.images)
    for hook in hooks:
        hook.remove()
    model.to(device, dtype)

    def convolve() -> None:
        for layer, images, pull in jobs:
            if plan.products:
                with SmallConvolutions():
                    output = layer(images)
            else:
                output = layer(images)
            wanted = [values for values in (images, layer.weight) if values.requires_grad]
            torch.autograd.grad(output, wanted, pull)

    return convolve


Name = TypeVar("Name", bound=Hashable)


def medians(
    actions: Mapping[Name, Action], *, repeats: int, device: torch.device, clock: Callable[[], float]
) -> dict[Name, float]:
    """Median time of each of some actions, which take turns, after one turn that does not count."""
    seconds: dict[Name, list[float]] = {name: [] for name in actions}
    for turn in range(1 + repeats):
        for name, action in actions.items():
            started = clock()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 1:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def for_a_round(step: Action) -> Action:
    """The same as often as a round has steps."""

    def steps() -> None:
        for _ in range(STEPS_OF_ROUND):
            step()

    return steps


def clock_for(threads: int, device: torch.device) -> Callable[[], float]:
    """The time of the processor for one thread on it, which other programs change little; else that of the wall."""
    return time.process_time if threads == 1 and device.type == "cpu" else time.perf_counter


def _figures(batch_size: int, size: int, threads: int, device: torch.device, repeats: int) -> list[Measurement]:
    torch.set_num_threads(threads)
    patients = patients_of_steps(batch_size, size)
    choice = measure(study_of_steps(batch_size, size), num_exams=batch_size, device=device)
    times = medians(
        {
            "plain": for_a_round(plain_loop(patients, device)),
            "fp32": our_step(patients, device, PLAIN),
            "auto": our_step(patients, device, choice.plan),
            "fp32 convolutions": for_a_round(convolutions_alone(patients, device, PLAIN)),
            "auto convolutions": for_a_round(convolutions_alone(patients, device, choice.plan)),
        },
        repeats=repeats,
        device=device,
        clock=clock_for(threads, device),
    )
    times = {name: seconds / STEPS_OF_ROUND for name, seconds in times.items()}
    where = f"{batch_size} x 3 x {size}^3, " + ("GPU" if device.type == "cuda" else f"threads {threads}")
    least = LEAST_SPEED_UP_GPU if device.type == "cuda" else LEAST_SPEED_UP
    plan = f"by the plan {choice.plan.name}"
    speed_up = times["plain"] / times["auto"]
    figures = [
        Measurement(f"step, plain loop, {where}", 1e3 * times["plain"], "ms"),
        Measurement(f"step, fp32, {where}", 1e3 * times["fp32"], "ms"),
        Measurement(f"step, auto, {where}", 1e3 * times["auto"], "ms", note=plan),
        Measurement(f"plain loop / fp32, {where}", times["plain"] / times["fp32"], "x"),
        Measurement(f"plain loop / auto, {where}", speed_up, "x", f">= {least:g} x", speed_up >= least, note=plan),
    ]
    for name in ("fp32", "auto"):
        ratio = times[name] / times[f"{name} convolutions"]
        figures.append(
            Measurement(
                f"step / its convolutions alone, {name}, {where}",
                ratio,
                "x",
                f"<= {MOST_OVER_CONVOLUTIONS:g} x",
                ratio <= MOST_OVER_CONVOLUTIONS,
            )
        )
    if device.type == "cuda":
        figures.append(Measurement(f"auto, {where}", batch_size / times["auto"], "volumes/s"))
    return figures


def run(options: Options) -> BenchmarkResult:
    """Measure at the study's size and a larger one, by one thread and by two."""
    device = find_device("auto")
    sizes = [(4, 32)] if options.quick else [(8, 48), (4, 64)]
    most = 1 if options.quick or device.type == "cuda" else min(2, os.cpu_count() or 1)
    before = torch.get_num_threads()
    figures: list[Measurement] = []
    try:
        for threads in range(1, most + 1):
            for batch_size, size in sizes:
                figures += _figures(batch_size, size, threads, device, options.repeats)
    finally:
        torch.set_num_threads(before)
    settings: dict[str, Setting] = {"network": "resnet10", "stem stride": _SPEC.stem_stride, "device": device.type}
    return BenchmarkResult("step", tuple(figures), settings)


BENCHMARK = Benchmark("step", "the training step against a plain loop and against its convolutions alone", run)
