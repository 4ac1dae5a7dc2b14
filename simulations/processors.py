"""How many processors there are to work with."""

import os


def default_workers() -> int:
    """As many as this process may use, and at least two, so that one hanging site does not keep the others waiting."""
    return max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)
