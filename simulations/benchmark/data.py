"""Loading and augmentation: what they add to a step of training, in float32 and by the fastest plan."""

import time

import torch

from client.acceleration.calibration import measure
from client.acceleration.plan import PLAIN
from client.augmentation import augment
from client.site import find_device
from common.study import AugmentationSpec
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options, Setting
from simulations.benchmark.step import (
    NO_AUGMENTATION,
    STEPS_OF_ROUND,
    clock_for,
    medians,
    our_step,
    patients_of_steps,
    study_of_steps,
)

MOST_PERCENT = 5.0
NUM_EXAMS = 32


def run(options: Options) -> BenchmarkResult:
    """Measure one batch out of a site's exams in memory, by one thread, beside the step it is for."""
    device = find_device("auto")
    batch_size, size = (4, 32) if options.quick else (8, 48)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(options.repeats, batch_size, size, device)
    finally:
        torch.set_num_threads(before)


def _measured(repeats: int, batch_size: int, size: int, device: torch.device) -> BenchmarkResult:
    exams, patients = patients_of_steps(NUM_EXAMS, size), patients_of_steps(batch_size * STEPS_OF_ROUND, size)
    generator, spec = torch.Generator().manual_seed(0), AugmentationSpec()
    near = exams.images[:].to(device)
    choice = measure(study_of_steps(batch_size, size), num_exams=batch_size, device=device)

    def load() -> torch.Tensor:
        return near[torch.randperm(NUM_EXAMS, generator=generator)[:batch_size].to(device)]

    batch = load()
    costs = medians(
        {"load": load, "augment": lambda: augment(batch, spec, spacing_mm=exams.spacing_mm, generator=generator)},
        repeats=repeats,
        device=device,
        clock=clock_for(1, device),
    )
    plans = {"fp32": PLAIN, "auto": choice.plan}
    rounds = medians(
        {
            (name, what): our_step(patients, device, plan, augmentation=how, batch_size=batch_size)
            for name, plan in plans.items()
            for what, how in (("augmented", spec), ("as they are", NO_AUGMENTATION))
        },
        repeats=repeats,
        device=device,
        clock=time.perf_counter,
    )
    figures = [
        Measurement("batch out of memory", 1e3 * costs["load"], "ms"),
        Measurement("augmentation of a batch", 1e3 * costs["augment"], "ms", note="the study's defaults"),
    ]
    for name, plan in plans.items():
        with_it, without = rounds[name, "augmented"], rounds[name, "as they are"]
        step = with_it / STEPS_OF_ROUND
        share = 100 * (with_it + STEPS_OF_ROUND * costs["load"] - without) / with_it
        note = f"of {1e3 * step:.0f} ms" + ("" if name == "fp32" else f", by the plan {plan.name}")
        figures.append(
            Measurement(
                f"what loading and augmentation add to a step, {name}",
                share,
                "%",
                f"< {MOST_PERCENT:g} %",
                share < MOST_PERCENT,
                note=note + "; wall time" + (", with a core to spare" if device.type == "cpu" else ""),
            )
        )
        work = 100 * (costs["load"] + costs["augment"]) / step
        figures.append(Measurement(f"their work as a share of a step, {name}", work, "%", note="no core to spare"))
    settings: dict[str, Setting] = {"batch": f"{batch_size} x 3 x {size}^3", "exams": NUM_EXAMS, "device": device.type}
    return BenchmarkResult("data", tuple(figures), settings)


BENCHMARK = Benchmark("data", "loading and augmentation as a share of the training step", run)
