"""Runs benchmarks one after the other, each in a process of its own; one that fails does not keep the others."""

import multiprocessing
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from simulations.benchmark.machine import Machine, load_average, this_machine
from simulations.benchmark.registry import load
from simulations.benchmark.result import BenchmarkResult, Options

_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What came of one benchmark.

    Attributes:
        name: As asked for.
        seconds: From its start to its end.
        result: Its figures; None if it failed.
        failure: Why it failed, without paths; empty if it did not.
    """

    name: str
    seconds: float
    result: BenchmarkResult | None
    failure: str = ""


@dataclass(frozen=True)
class Suite:
    """What came of all benchmarks that were asked for.

    Attributes:
        machine: Where they were run.
        quick: Whether at a small size.
        repeats: How often each side of a ratio was measured.
        load: Load average before the first and after the last.
        outcomes: In the order in which they were run.
    """

    machine: Machine
    quick: bool
    repeats: int
    load: tuple[float, float]
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of those that failed."""
        return tuple(outcome.name for outcome in self.outcomes if outcome.result is None)


def run_suite(
    modules: Mapping[str, str],
    *,
    quick: bool,
    repeats: int,
    on_start: Callable[[str], None] = lambda name: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> Suite:
    """Run benchmarks.

    Args:
        modules: Module of each, by name.
        quick: Whether at a small size.
        repeats: How often each side of a ratio is measured.
        on_start: Told each name before.
        on_end: Told what came of it.
    """
    before = load_average()
    outcomes = []
    for name, module in modules.items():
        on_start(name)
        with tempfile.TemporaryDirectory(prefix="gliorn-benchmark-") as work:
            outcome = _run_one(name, module, Options(Path(work), quick, repeats))
        on_end(outcome)
        outcomes.append(outcome)
    return Suite(this_machine(), quick, repeats, (before, load_average()), tuple(outcomes))


def _run_one(name: str, module: str, options: Options) -> Outcome:
    # A process of its own, spawned: memory and torch's threads are as in a fresh program, and one that is killed
    # for want of memory does not take the others with it.
    context = multiprocessing.get_context("spawn")
    told, tells = context.Pipe(duplex=False)
    started = time.monotonic()
    process = context.Process(target=_measure, args=(module, options, tells), name=name)
    process.start()
    tells.close()
    try:
        try:
            answer = told.recv()
        except EOFError:
            process.join()
            answer = f"its process ended with code {process.exitcode} and said nothing, perhaps for want of memory"
        process.join()
    finally:
        if process.is_alive():
            _interrupt(process)
        told.close()
    seconds = time.monotonic() - started
    if isinstance(answer, BenchmarkResult):
        return Outcome(name, seconds, answer)
    return Outcome(name, seconds, None, str(answer))


def _interrupt(process: multiprocessing.process.BaseProcess) -> None:
    """End a benchmark so that it ends what it started; kill it if it does not."""
    process.terminate()
    process.join(_PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()


def _measure(module: str, options: Options, tells: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tells.send(load(module).run(options))
    except KeyboardInterrupt:
        raise SystemExit(2) from None
    except Exception as error:  # noqa: BLE001 - the border of the benchmark: the others go on
        traceback.print_exc()
        tells.send(without_paths(f"{type(error).__name__}: {error}"))


def without_paths(text: str) -> str:
    """A text with no more than the last part of every absolute path."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\",;:]+/)+([^\s/'\",;:]*)", r"\1", text)
