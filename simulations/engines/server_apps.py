"""Runs the coordinator's SuperExec on one machine, which starts the ServerApp as a copy of itself where it can.

A coordinator's own starts a new program for each run, which takes seconds of hours, and needs less memory at rest. Here
the memory is that of the process that it is itself a copy of.

Run as `python -m simulations.engines.server_apps PARENT ARGUMENT…`, with the arguments of `flower-superexec`.
"""

import sys
from collections.abc import Sequence

from client.pauses import GrowingPause
from client.processes import end_with_parent

PROGRAM = "flwr-serverapp"
SHARE_OF_WAIT, LEAST_PAUSE_S = 0.02, 0.05


def main(arguments: Sequence[str]) -> None:
    """Run the SuperExec until it is ended."""
    end_with_parent(int(arguments[0]))
    from client.flower_private import run_superexec
    from client.forked_tasks import ForkedTasks
    from server.guard import main as carry_run

    pause = GrowingPause(share=SHARE_OF_WAIT, least=LEAST_PAUSE_S)
    tasks = ForkedTasks(carry_run, name=PROGRAM)
    run_superexec(arguments[1:], tasks, pause.rest, program=PROGRAM)


if __name__ == "__main__":
    main(sys.argv[1:])
