"""Loading and augmentation: their share of a step of training, in float32 and by the plan that is measured fastest."""

import torch

from client.acceleration.calibration import measure
from client.acceleration.plan import PLAIN
from client.augmentation import augment
from client.site import find_device
from common.study import AugmentationSpec
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options, Setting
from simulations.benchmark.step import STEPS_OF_ROUND, clock_for, medians, our_step, patients_of_steps, study_of_steps

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
    exams, patients = patients_of_steps(NUM_EXAMS, size), patients_of_steps(batch_size, size)
    generator, spec = torch.Generator().manual_seed(0), AugmentationSpec()
    near = exams.images[:].to(device)
    choice = measure(study_of_steps(batch_size, size), num_exams=batch_size, device=device)

    def load() -> torch.Tensor:
        return near[torch.randperm(NUM_EXAMS, generator=generator)[:batch_size].to(device)]

    batch = load()
    times = medians(
        {
            "load": load,
            "augment": lambda: augment(batch, spec, spacing_mm=exams.spacing_mm, generator=generator),
            "fp32": our_step(patients, device, PLAIN, augmentation=spec),
            "auto": our_step(patients, device, choice.plan, augmentation=spec),
        },
        repeats=repeats,
        device=device,
        clock=clock_for(1, device),
    )
    figures = [
        Measurement("batch out of memory", 1e3 * times["load"], "ms"),
        Measurement("augmentation of a batch", 1e3 * times["augment"], "ms", note="the study's defaults"),
    ]
    for name in ("fp32", "auto"):
        step = times[name] / STEPS_OF_ROUND
        share = 100 * (times["load"] + times["augment"]) / step
        figures.append(
            Measurement(
                f"loading and augmentation in a step, {name}",
                share,
                "%",
                f"< {MOST_PERCENT:g} %",
                share < MOST_PERCENT,
                note=f"of {1e3 * step:.0f} ms" + ("" if name == "fp32" else f", by the plan {choice.plan.name}"),
            )
        )
    settings: dict[str, Setting] = {"batch": f"{batch_size} x 3 x {size}^3", "exams": NUM_EXAMS, "device": device.type}
    return BenchmarkResult("data", tuple(figures), settings)


BENCHMARK = Benchmark("data", "loading and augmentation as a share of the training step", run)
