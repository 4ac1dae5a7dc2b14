"""Runs Flower's SuperExec, which starts a ClientApp for every task, as a child that ends with its parent.

Run as `python -m client.superexec PARENT BELL ARGUMENT…`, with the file by which the SuperNode tells of tasks and the
arguments of `flower-superexec`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from client.pauses import Bell
from client.processes import end_with_parent


class _Starter:
    """Starts ClientApps as copies where it can."""

    def __init__(self) -> None:
        from client.forked_tasks import ForkedTasks

        self._tasks = ForkedTasks.prepared()

    def start(self, arguments: Sequence[str]) -> bool:
        """See `TaskStarter`."""
        return self._tasks is not None and self._tasks.start(arguments)

    def tend(self) -> None:
        """See `TaskStarter`."""
        if self._tasks is not None:
            self._tasks.tend()


def main(arguments: Sequence[str]) -> None:
    """Run the SuperExec until it is ended."""
    end_with_parent(int(arguments[0]))
    from client.flower_private import run_superexec

    run_superexec(arguments[2:], _Starter(), Bell(Path(arguments[1])).rest)


if __name__ == "__main__":
    main(sys.argv[1:])
