"""Sides of a ratio measured in turns, so that what else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def medians_in_turns(sides: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, and a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}
