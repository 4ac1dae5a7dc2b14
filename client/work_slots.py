"""Lets a few sites of one machine work at a time, so that what one sends is on its way while the next one computes.

Sites that all compute at once end at once too, and all of the machine then waits for their replies to be passed on. A
site that waits has not yet taken its task from its SuperNode, where it may lie for any time.
"""

import fcntl
import os
import time
from pathlib import Path

WORK_SLOTS_VARIABLE = "GLIORN_WORK_SLOTS"
"""Environment variable with the folder of the slots; absent at hospitals, each of which has its machine to itself."""


def make_work_slots(folder: Path, count: int) -> None:
    """Make a folder of so many slots."""
    folder.mkdir(mode=0o700)
    for number in range(count):
        (folder / str(number)).touch(mode=0o600)


class WorkSlots:
    """The slots as one site sees them.

    A slot is a file that is locked. Copies of this process (`fork`) hold it too, and so for as long as the last one of
    those lives that were made while it was held.

    Args:
        folder: Of the slots.
        look_s: Seconds between two looks for one that is free.
    """

    def __init__(self, folder: Path, *, look_s: float = 0.02) -> None:
        self._paths = sorted(folder.iterdir())
        self._look_s = look_s
        self._held: int | None = None

    def take(self) -> None:
        """Hold a slot from here on, as soon as one is free."""
        assert self._held is None, "one at a time"
        while (held := self._free_one()) is None:
            time.sleep(self._look_s)
        self._held = held

    def let_go(self) -> None:
        """Leave the slot, if one is held, to the copies that were made meanwhile."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _free_one(self) -> int | None:
        for path in self._paths:
            slot = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(slot)
            else:
                return slot
        return None
