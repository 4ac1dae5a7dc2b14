"""Very many virtual hospitals on one machine: time of one more, and memory of all of them."""

import os
import sys
from pathlib import Path
from statistics import median

import yaml

from common.flower_environment import flower_environment
from simulations.benchmark.process_tree import Cost, cost_of
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options, Setting
from simulations.benchmark.virtual import TIMEOUT_S, our_command, study_of_size, write_federation

ROUNDS, PATIENTS, SIZE, WIDTH = 3, 8, 16, 0.25
MOST_TIMES = 1.25
MOST_MIB_A_SITE = 5.0


def measure(options: Options) -> BenchmarkResult:
    """Measure 4, 16 and 64 sites; 2, 4 and 8 if quick."""
    numbers = (2, 4, 8) if options.quick else (4, 16, 64)
    study = study_of_size(rounds=ROUNDS, size=SIZE, width=WIDTH)
    path = options.work / "study.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    configs, _ = write_federation(options.work / "hospitals", study, num_sites=max(numbers), patients=PATIENTS)
    environment = flower_environment(
        os.environ, home=str(options.work / "flower"), programs=str(Path(sys.executable).parent)
    )
    turns: dict[int, list[Cost]] = {num_sites: [] for num_sites in numbers}

    def run(num_sites: int, turn: int) -> Cost:
        out = options.work / f"run-{num_sites}-{turn}"
        command = our_command(path, configs[:num_sites], engine="in-process", out=out, workers=2)
        return cost_of(command, environment=environment, log=options.work / "output.log", timeout_s=TIMEOUT_S)

    run(min(numbers), 0)  # not counted: the first run of all reads its programs from the disk
    for turn in range(1, 2 if options.quick else options.repeats + 1):
        for num_sites in numbers:
            turns[num_sites].append(run(num_sites, turn))
    costs = {
        num_sites: Cost(median(each.seconds for each in several), max(each.peak_bytes for each in several))
        for num_sites, several in turns.items()
    }
    few, some, many = numbers
    first = (costs[some].seconds - costs[few].seconds) / (some - few)
    later = (costs[many].seconds - costs[some].seconds) / (many - some)
    growth_mib = (costs[many].peak_bytes - costs[some].peak_bytes) / (many - some) / 2**20
    is_full = not options.quick
    figures = [
        each
        for num_sites, cost in costs.items()
        for each in (
            Measurement(f"{num_sites} sites, start to end", cost.seconds, "s"),
            Measurement(f"{num_sites} sites, peak memory", cost.peak_bytes / 2**20, "MiB"),
        )
    ]
    figures += [
        Measurement(f"one more site, from {few} to {some}", first, "s"),
        Measurement(
            f"one more site, from {some} to {many}",
            later,
            "s",
            target=f"<= {MOST_TIMES:g} x that from {few} to {some}" if is_full else None,
            reached=later <= MOST_TIMES * first if is_full else None,
        ),
        Measurement(
            f"memory of one more site, from {some} to {many}",
            growth_mib,
            "MiB",
            target=f"< {MOST_MIB_A_SITE:g} MiB" if is_full else None,
            reached=growth_mib < MOST_MIB_A_SITE if is_full else None,
        ),
    ]
    settings: dict[str, Setting] = {
        "patients a site": PATIENTS,
        "voxels": f"3 × {SIZE}³",
        "rounds": ROUNDS,
        "width": WIDTH,
    }
    return BenchmarkResult("hospitals", tuple(figures), settings)


BENCHMARK = Benchmark("hospitals", "Very many virtual hospitals on one machine", measure)
