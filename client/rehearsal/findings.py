"""What a rehearsal found, and how it is said."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Part = Literal["kit", "connection", "consent", "data", "computing"]
Level = Literal["ok", "warning", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        part: What it belongs to.
        name: What was tried, in a word or two.
        level: "warning" does not keep the site from taking part now; "FAIL" does.
        found: What was found.
        advice: What to do; empty where all is well.
        study: Name of the study it is about; empty where it is about the site alone.
    """

    part: Part
    name: str
    level: Level
    found: str
    advice: str = ""
    study: str = ""


def count_levels(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many findings there are of each level."""
    counts = Counter(finding.level for finding in findings)
    return {"ok": counts["ok"], "warning": counts["warning"], "FAIL": counts["FAIL"]}


def shown_bytes(count: float) -> str:
    """A size as a person reads it, such as `57.6 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def shown_seconds(seconds: float) -> str:
    """A duration as a person reads it, such as `2 min 5 s`, or `1 h`."""
    if 0 < seconds < 0.001:
        return "under 1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
