"""Runs Flower's SuperExec, which starts a ClientApp for every task, as a child that ends with its parent.

Run as `python -m client.superexec PARENT BELL ARGUMENT…`, with the file by which the SuperNode tells of tasks and the
arguments of `flower-superexec`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from client.pauses import Bell
from client.processes import end_with_parent
from client.work_slots import WORK_SLOTS_VARIABLE, WorkSlots


class _Starter:
    """Starts ClientApps as copies where it can, and only while there is a slot where sites share a machine."""

    def __init__(self, bell: Bell, slots: WorkSlots | None) -> None:
        from client.forked_tasks import ForkedTasks

        self._bell, self._slots = bell, slots
        self._tasks = ForkedTasks.prepared()

    def start(self, arguments: Sequence[str]) -> bool:
        """See `TaskStarter`."""
        return self._tasks is not None and self._tasks.start(arguments)

    def tend(self) -> None:
        """See `TaskStarter`."""
        if self._tasks is not None:
            self._tasks.tend()

    def rest(self, most: float) -> None:
        """Wait until there may be a task, and room for its work."""
        if self._slots is None:
            self._bell.rest(most)
            return
        self._slots.let_go()  # a ClientApp that was started holds it still
        self._bell.rest(most)
        self._slots.take()


def main(arguments: Sequence[str]) -> None:
    """Run the SuperExec until it is ended."""
    end_with_parent(int(arguments[0]))
    from client.flower_private import run_superexec

    folder = os.environ.get(WORK_SLOTS_VARIABLE)
    starter = _Starter(Bell(Path(arguments[1])), WorkSlots(Path(folder)) if folder else None)
    run_superexec(arguments[2:], starter, starter.rest)


if __name__ == "__main__":
    main(sys.argv[1:])
