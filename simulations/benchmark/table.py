"""The figures of benchmarks as a table on a terminal, as Markdown and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.table import Table

from simulations.benchmark.result import Measurement
from simulations.benchmark.run import Suite

COLUMNS = ("measurement", "value", "unit", "target", "reached", "note")


def value_text(value: float) -> str:
    """Three significant digits, and never fewer than the whole number."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def rich_table(measurements: Iterable[Measurement], *, title: str) -> Table:
    """One benchmark's figures for a terminal."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column == "value" else "left")
    for measurement in measurements:
        table.add_row(*_cells(measurement))
    return table


def markdown(suite: Suite) -> str:
    """All figures, with what they hold for."""
    machine = suite.machine
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    size = "small sizes (--quick), to see that they work" if suite.quick else "full sizes"
    lines = [
        f"{machine.cores} cores of {machine.processor}, {machine.memory_gib:g} GiB, {machine.gpu or 'no GPU'}, "
        f"{machine.system}; {versions}.",
        f"Load average {suite.load[0]:g} before and {suite.load[1]:g} after; {size}, {suite.repeats} repeats.",
    ]
    for outcome in suite.outcomes:
        lines += ["", f"## {outcome.name}", ""]
        if outcome.result is None:
            lines.append(f"Failed: {outcome.failure}")
            continue
        if outcome.result.settings:
            lines += [", ".join(f"{name} {value}" for name, value in outcome.result.settings.items()) + ".", ""]
        lines += [_line(COLUMNS), _line(["---", "---:", "---", "---", "---", "---"])]
        lines += [_line(_cells(measurement)) for measurement in outcome.result.measurements]
    return "\n".join(lines) + "\n"


def as_json(suite: Suite) -> dict[str, Any]:
    """All figures as plain values."""
    return {
        "format": 1,
        "machine": asdict(suite.machine),
        "quick": suite.quick,
        "repeats": suite.repeats,
        "load_average": {"before": suite.load[0], "after": suite.load[1]},
        "benchmarks": [
            {
                "name": outcome.name,
                "seconds": round(outcome.seconds, 1),
                "failure": outcome.failure or None,
                "settings": {} if outcome.result is None else dict(outcome.result.settings),
                "measurements": []
                if outcome.result is None
                else [asdict(measurement) for measurement in outcome.result.measurements],
            }
            for outcome in suite.outcomes
        ],
    }


def _cells(measurement: Measurement) -> list[str]:
    reached = {None: "", True: "yes", False: "NO"}[measurement.reached]
    return [
        measurement.name,
        value_text(measurement.value),
        measurement.unit,
        measurement.target or "",
        reached,
        measurement.note,
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
