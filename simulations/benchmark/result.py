"""What a benchmark takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Options:
    """How a benchmark is run.

    Attributes:
        work: An empty folder for what it writes; removed afterwards.
        quick: Whether a small size suffices, to see that it works.
        repeats: How often each side of a ratio is measured; the sides take turns and the median counts.
    """

    work: Path
    quick: bool = False
    repeats: int = 3


@dataclass(frozen=True)
class Measurement:
    """One measured figure.

    Attributes:
        name: What it is, with its unit's subject: "step, plain loop".
        value: As measured.
        unit: "s", "ms", "MiB", "x" for a ratio, "%" for a share.
        target: The bound it should keep, as text, or None.
        reached: Whether it kept it; None without a target.
        note: What a reader has to know beside it.
    """

    name: str
    value: float
    unit: str
    target: str | None = None
    reached: bool | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if (self.target is None) != (self.reached is None):
            raise ValueError(f"measurement {self.name!r}: target and reached come together, or neither")


@dataclass(frozen=True)
class BenchmarkResult:
    """The figures of one benchmark.

    Attributes:
        settings: Sizes and settings that the figures hold for.
    """

    name: str
    measurements: tuple[Measurement, ...]
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that can be asked for by name.

    Attributes:
        name: As typed: lower case, words joined by hyphens.
        what: What it measures, in a sentence.
        run: Measures.
    """

    name: str
    what: str
    run: Callable[[Options], BenchmarkResult]
