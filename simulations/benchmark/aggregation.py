"""The weighted mean of many model states, against adding them up plainly, which memory alone limits."""

import math
from collections.abc import Sequence

import numpy as np

from common.model_state import Array, ModelState
from common.models import initial_state
from common.study import ModelSpec
from server.aggregation import weighted_mean
from simulations.benchmark.ratios import medians_in_turns
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options

LEAST_SHARE = 0.6
"""Of the speed of plain additions."""

Numbers = np.ndarray[tuple[int], np.dtype[np.float32]]


def measure(options: Options) -> BenchmarkResult:
    """Measure 32 states of the full-width ResNet10; a small model and 8 states if quick."""
    model = ModelSpec(width=0.25, num_groups=4) if options.quick else ModelSpec()
    num_states = 8 if options.quick else 32
    reference = initial_state(model, num_sequences=3, seed=0)
    states = [(_moved(reference, by=number), 10.0 + number) for number in range(num_states)]
    size = sum(array.nbytes for array in reference.values())
    plain = [np.full(size // 4, number, dtype=np.float32) for number in range(num_states)]
    total = np.zeros(size // 4, dtype=np.float32)
    seconds = medians_in_turns(
        {
            "mean": lambda: weighted_mean(states, reference=reference),
            "plain": lambda: _add_up(plain, into=total),
        },
        repeats=options.repeats,
    )
    share = seconds["plain"] / seconds["mean"]
    gigabytes = num_states * size / 1e9
    return BenchmarkResult(
        "aggregation",
        (
            Measurement("weighted mean", seconds["mean"], "s", note="in float64, on all cores, four at most"),
            Measurement("plain additions", seconds["plain"], "s", note="total += state, in float32, on one core"),
            Measurement("states read by the weighted mean", gigabytes / seconds["mean"], "GB/s"),
            Measurement("states read by plain additions", gigabytes / seconds["plain"], "GB/s"),
            Measurement(
                "weighted mean's share of the speed of plain additions",
                100 * share,
                "%",
                target=f">= {100 * LEAST_SHARE:.0f} %",
                reached=share >= LEAST_SHARE,
            ),
        ),
        {"states": num_states, "megabytes a state": math.floor(size / 1e5) / 10},
    )


def _moved(reference: ModelState, *, by: int) -> dict[str, Array]:
    return {name: array + np.asarray(by, dtype=array.dtype) for name, array in reference.items()}


def _add_up(arrays: Sequence[Numbers], *, into: Numbers) -> None:
    for array in arrays:
        np.add(into, array, out=into)


BENCHMARK = Benchmark("aggregation", "The weighted mean of many model states, against plain additions", measure)
