"""`gliorn-simulate benchmark`: how fast this program is on this machine, as a table and in files."""

import argparse
import json
from datetime import datetime
from pathlib import Path

from rich.console import Console

from common.errors import ConfigError
from simulations.benchmark.registry import MODULES, chosen
from simulations.benchmark.run import Outcome, run_suite
from simulations.benchmark.table import as_json, markdown, rich_table


def benchmark_command(arguments: argparse.Namespace, console: Console) -> int:
    """Run benchmarks and show their figures. Returns 0, or 1 if one of them failed; a missed target is no failure."""
    names = chosen(arguments.names)
    if arguments.repeats < 1:
        raise ConfigError(f"--repeats {arguments.repeats}: expected a whole number from 1")
    out: Path = arguments.out or Path("runs") / f"benchmark-{datetime.now():%Y%m%d-%H%M%S}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there already; name another folder")

    def show(outcome: Outcome) -> None:
        title = f"{outcome.name}, {outcome.seconds:.0f} s"
        if outcome.result is None:
            console.print(f"{title}: failed: {outcome.failure}")
        else:
            console.print(rich_table(outcome.result.measurements, title=title))

    suite = run_suite(
        {name: MODULES[name] for name in names},
        quick=arguments.quick,
        repeats=arguments.repeats,
        on_start=lambda name: console.print(f"{name} ..."),
        on_end=show,
    )
    out.mkdir(parents=True, exist_ok=True)
    values = as_json(suite)
    (out / "results.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(markdown(suite), encoding="utf-8")
    missed = sum(
        measurement.reached is False
        for outcome in suite.outcomes
        if outcome.result is not None
        for measurement in outcome.result.measurements
    )
    console.print(f"{missed} targets missed, {len(suite.failed)} benchmarks failed; figures in {out}")
    if arguments.json:
        print(json.dumps(values, indent=1))  # noqa: T201 - what --json is for
    return 1 if suite.failed else 0
