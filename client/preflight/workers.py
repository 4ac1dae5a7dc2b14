"""How many processes check exams side by side."""

import os

MAX_WORKERS = 4
"""Each holds a volume several times over; four stay below 2 GB with volumes of any head scanner."""


def num_workers(asked: int | None) -> int:
    """What was asked for, else the cores that this process may use, at most four."""
    if asked is not None:
        return asked
    affinity = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() or 1 if affinity is None else len(affinity(0))
    return min(cores, MAX_WORKERS)
