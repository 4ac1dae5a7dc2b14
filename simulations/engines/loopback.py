"""What Flower's programs are told where all of them run on one machine and meet on its loopback address."""

from collections.abc import Mapping

from client.flower_programs import CHUNK_VARIABLE

POLL_INTERVAL_S = "1"
"""How often a SuperExec looks for tasks at least."""

CHUNK_BYTES = str(16 * 2**20)
"""Size of the pieces in which states travel; on loopback each costs a call and nothing else."""

_MEMORY_IS_KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""Else glibc gives the memory of each piece of a state back to the system, whose fresh pages cost more than the bytes.

32 MiB is the largest threshold that glibc takes. Hospitals and coordinators, which run for weeks, give theirs back.
"""


def on_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of one of Flower's programs, with what makes it quick on loopback."""
    pace = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_INTERVAL_S, CHUNK_VARIABLE: CHUNK_BYTES}
    return dict(environment) | pace | _MEMORY_IS_KEPT
