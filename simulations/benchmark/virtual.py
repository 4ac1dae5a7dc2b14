"""A whole federation on one machine, from the start of the program to its end, beside others on the same work.

Each side is a program of its own, started anew: the plain loop, ours in one process and over real processes, and a
stock Flower app on its simulation engine. Images are prepared and the ways to train are measured before, as preparation
does; nothing is augmented.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import yaml

from client.acceleration.ahead import measure_ahead
from client.prepare import prepare_site
from common.flower_environment import flower_environment
from common.study import Study, parse_study
from simulations.benchmark.made_up_hospitals import write_made_up_hospital
from simulations.benchmark.process_tree import Cost, cost_of
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options, Setting
from simulations.single_machine import read_sites

MOST_S, MOST_GIB, MOST_NETWORK_S, TIMES_FASTER, MOST_TO_STEP_S = 25.0, 2.0, 80.0, 3.0, 6.0
TIMEOUT_S = 3600.0
TO_STEP = "ours, in one process, auto, until the first step is to be taken"
OURS, OURS_OVER_PROCESSES = "ours, in one process, auto", "ours, network engine, auto"
NO_AUGMENTATION = dict.fromkeys(
    ("flip_probability", "rotation_degrees", "scaling", "translation_mm", "intensity", "noise"), 0.0
)


def study_of_size(*, rounds: int, size: int, width: float, precision: str = "fp32") -> Study:
    """The study that all sides train."""
    values = {
        "name": "virtual",
        "seed": 1,
        "rounds": rounds,
        "preprocessing": {"spacing_mm": [2.0] * 3, "size_voxels": [size] * 3, "crop": "lesion"},
        "model": {"width": width},
        "augmentation": NO_AUGMENTATION,
        "training": {"learning_rate": 3e-4, "batch_size": 4, "local_epochs": 1, "precision": precision},
        "participation": {"min_sites": 1, "round_timeout_s": 1800, "join_timeout_s": 600},
        "evaluation": {"min_pooled_sites": 1},
    }
    return parse_study(yaml.safe_dump(values), origin="the benchmark's study")


def write_federation(folder: Path, study: Study, *, num_sites: int, patients: int) -> tuple[list[Path], list[Path]]:
    """Write and prepare the hospitals; returns each one's site.yaml and the file that the other programs read.

    What a study measures of its device beforehand is measured as well.
    """
    configs, files = [], []
    for number in range(num_sites):
        splits = [("train", patients // 2), ("validation", 1), ("test", 1)]
        path = write_made_up_hospital(folder, f"site-{number:02d}", splits=splits, seed=number)
        ((_, config),) = read_sites([path]).values()
        cohort = prepare_site(config, study)
        measure_ahead(config, study, num_exams=cohort.splits["train"].num_exams)
        train, validation = cohort.splits["train"], cohort.splits["validation"]
        file = path.with_name("prepared.npz")
        np.savez(
            file,
            images=train.images[:].numpy(),
            labels=train.labels.numpy(),
            val_images=validation.images[:].numpy(),
            val_labels=validation.labels.numpy(),
        )
        configs.append(path)
        files.append(file)
    return configs, files


def our_command(study: Path, configs: Sequence[Path], *, engine: str, out: Path, workers: int) -> list[str]:
    """The command that a user types."""
    sites = [part for path in configs for part in ("--site", str(path))]
    return [
        str(Path(sys.executable).with_name("gliorn-simulate")),
        "--study",
        str(study),
        *sites,
        "--engine",
        engine,
        "--workers",
        str(workers),
        "--out",
        str(out),
    ]


def measure(options: Options) -> BenchmarkResult:
    """Measure 4 sites with 24 training patients of 3 × 48³ in 5 rounds; far less if quick."""
    num_sites, patients, size, rounds, width = (2, 8, 16, 2, 0.25) if options.quick else (4, 24, 48, 5, 1.0)
    study = study_of_size(rounds=rounds, size=size, width=width, precision="auto")
    configs, files = write_federation(options.work / "hospitals", study, num_sites=num_sites, patients=patients)
    studies = {}
    for precision in ("fp32", "auto"):
        studies[precision] = options.work / f"study-{precision}.yaml"
        values = study_of_size(rounds=rounds, size=size, width=width, precision=precision).model_dump(mode="json")
        studies[precision].write_text(yaml.safe_dump(values), encoding="utf-8")
    numbers = iter(range(10**6))

    def run(command: Sequence[str]) -> Cost:
        home = options.work / f"flower-{next(numbers)}"
        home.mkdir()
        environment = flower_environment(os.environ, home=str(home), programs=str(Path(sys.executable).parent))
        return cost_of(command, environment=environment, log=options.work / "output.log", timeout_s=TIMEOUT_S)

    def ours(engine: str, precision: str) -> Callable[[], Cost]:
        def once() -> Cost:
            out = options.work / f"run-{engine}-{next(numbers)}"
            return run(our_command(studies[precision], configs, engine=engine, out=out, workers=2))

        return once

    def other(module: str) -> Callable[[], Cost]:
        command = [sys.executable, "-m", f"simulations.benchmark.{module}", str(studies["fp32"]), *map(str, files)]
        return lambda: run(command)

    def until_first_step() -> Cost:
        out = options.work / f"run-first-{next(numbers)}"
        command = our_command(studies["auto"], configs, engine="in-process", out=out, workers=2)
        return run([sys.executable, "-m", "simulations.benchmark.first_step", *command[1:]])

    sides = {
        "plain loop": other("plain_loop"),
        "ours, in one process, fp32": ours("in-process", "fp32"),
        OURS: ours("in-process", "auto"),
        TO_STEP: until_first_step,
    }
    if find_spec("ray") is not None:
        sides["stock Flower app, simulation engine"] = other("flower_ray")
    sides[OURS_OVER_PROCESSES] = ours("network", "auto")
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(1 if options.quick else options.repeats):
        for name, side in sides.items():
            costs[name].append(side())
    settings: dict[str, Setting] = {
        "sites": num_sites,
        "training patients a site": patients,
        "voxels": f"3 × {size}³",
        "rounds": rounds,
    }
    return BenchmarkResult("virtual", tuple(_figures(costs, is_full=not options.quick)), settings | {"width": width})


def _figures(costs: dict[str, list[Cost]], *, is_full: bool) -> list[Measurement]:
    """Targets are those of the full size alone."""
    seconds = {name: median(cost.seconds for cost in several) for name, several in costs.items()}
    gibibytes = {name: max(cost.peak_bytes for cost in several) / 2**30 for name, several in costs.items()}
    most_s = {OURS: MOST_S, OURS_OVER_PROCESSES: MOST_NETWORK_S, TO_STEP: MOST_TO_STEP_S} if is_full else {}
    figures = []
    for name, value in seconds.items():
        most = most_s.get(name)
        target, reached = (None, None) if most is None else (f"< {most:g} s", value < most)
        what = name if name == TO_STEP else f"{name}, start to end"
        figures.append(Measurement(what, value, "s", target, reached))
        if name == TO_STEP:
            continue  # its memory is that of a run which has not trained yet
        limit = f"< {MOST_GIB:g} GiB" if is_full and name == OURS else None
        reached = None if limit is None else gibibytes[name] < MOST_GIB
        figures.append(Measurement(f"{name}, peak memory", gibibytes[name], "GiB", limit, reached))
    rivals = {name: value for name, value in seconds.items() if not name.startswith("ours")}
    fastest = min(rivals, key=lambda name: rivals[name])
    ratio = rivals[fastest] / seconds[OURS]
    target = f">= {TIMES_FASTER:g} x" if is_full else None
    reached = None if target is None else ratio >= TIMES_FASTER
    return [
        *figures,
        Measurement(f"{OURS}, against the fastest other", ratio, "x", target, reached, fastest),
    ]


BENCHMARK = Benchmark("virtual", "A whole federation on one machine, beside others on the same work", measure)
