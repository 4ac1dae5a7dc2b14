"""The benchmarks by name; none is imported before it is asked for."""

from collections.abc import Sequence
from importlib import import_module

from common.errors import ConfigError
from simulations.benchmark.result import Benchmark

MODULES = {
    "step": "simulations.benchmark.step",
    "data": "simulations.benchmark.data",
    "prepare": "simulations.benchmark.prepare",
    "aggregation": "simulations.benchmark.aggregation",
    "statistics": "simulations.benchmark.statistics",
    "round": "simulations.benchmark.round",
    "bytes": "simulations.benchmark.bytes",
    "virtual": "simulations.benchmark.virtual",
    "hospitals": "simulations.benchmark.hospitals",
    "server-memory": "simulations.benchmark.server_memory",
}
"""Module of each benchmark, in the order in which all of them are run. Each has a BENCHMARK."""


def chosen(names: Sequence[str]) -> list[str]:
    """The names, or all of them where none is given.

    Raises:
        ConfigError: If one is unknown.
    """
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        raise ConfigError(f"benchmark: there is no {', '.join(unknown)}; name some of {', '.join(MODULES)}, or none")
    return list(dict.fromkeys(names)) or list(MODULES)


def load(module: str) -> Benchmark:
    """Import a benchmark."""
    benchmark = import_module(module).BENCHMARK
    assert isinstance(benchmark, Benchmark), f"{module}.BENCHMARK is no Benchmark"
    return benchmark
