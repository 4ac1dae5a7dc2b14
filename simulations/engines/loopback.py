"""What Flower's programs are told where all of them run on one machine and meet on its loopback address."""

from collections.abc import Mapping

from client.flower_programs import CHUNK_VARIABLE

POLL_INTERVAL_S = "0.2"
"""How often Flower's programs look for work; its own default is a second."""

CHUNK_BYTES = str(16 * 2**20)
"""Size of the pieces in which states travel; on loopback each costs a call and nothing else."""


def on_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of one of Flower's programs, with what makes it quick on loopback."""
    return dict(environment) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_INTERVAL_S, CHUNK_VARIABLE: CHUNK_BYTES}
