"""Runs Flower's SuperExec, which starts a ClientApp for every task, as a child that ends with its parent.

Run as `python -m client.superexec PARENT ARGUMENT…`, with the arguments of `flower-superexec`.
"""

import sys
from collections.abc import Sequence

from client.pauses import GrowingPause
from client.processes import end_with_parent

SHARE_OF_WAIT, LEAST_PAUSE_S = 0.02, 0.05


class _Starter:
    """Starts ClientApps as copies where it can, and lets the pauses begin anew with each."""

    def __init__(self, pause: GrowingPause) -> None:
        from client.forked_tasks import ForkedTasks

        self._pause = pause
        self._tasks = ForkedTasks.prepared()

    def start(self, arguments: Sequence[str]) -> bool:
        """See `TaskStarter`."""
        self._pause.restart()
        return self._tasks is not None and self._tasks.start(arguments)

    def tend(self) -> None:
        """See `TaskStarter`."""
        if self._tasks is not None:
            self._tasks.tend()


def main(arguments: Sequence[str]) -> None:
    """Run the SuperExec until it is ended."""
    end_with_parent(int(arguments[0]))
    from client.flower_private import run_superexec

    pause = GrowingPause(share=SHARE_OF_WAIT, least=LEAST_PAUSE_S)
    run_superexec(arguments[1:], _Starter(pause), pause.rest)


if __name__ == "__main__":
    main(sys.argv[1:])
