"""Processes of a site that end with the one that started them, and locks that tell whether a process is alive."""

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_LOOK_S = 0.5


def end_with_parent(parent: int) -> None:
    """Have this process killed as soon as the one that started it is gone, however that ended.

    Args:
        parent: The process that started this one, as it knows itself.
    """
    if sys.platform == "linux":
        # The signal comes when the thread that started us ends, so processes are started in main threads.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before we asked
        os._exit(os.EX_UNAVAILABLE)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(os.EX_UNAVAILABLE)


def name_process(name: str) -> None:
    """Have the system call this process by another name, of at most 15 bytes, in its list of processes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])


def descendants(ancestor: int) -> list[int]:
    """Numbers of all processes that descend from one, as far as the system tells."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field is the command in parentheses, which may hold anything; two fields on is the parent.
            parent = int(status.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it ended while we looked
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found: list[int] = []
    waiting = [ancestor]
    while waiting:
        new = children.get(waiting.pop(), [])
        found += new
        waiting += new
    return found


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it is still there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def signal_each(processes: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes, if they are still there."""
    for process in processes:
        try:
            os.kill(process, number)
        except (ProcessLookupError, PermissionError):
            continue


class ProcessLock:
    """A file that one process at a time holds. The system frees it with the process, however that ends.

    A lock of a process (`fcntl.lockf`): children that it forks do not hold it, so it says whether this one is alive.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; it is made where it is absent.

        Raises:
            OSError: If it cannot be opened.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self, *, wait: bool = False) -> bool:
        """Hold the lock from here on; False if another process holds it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def is_held(self) -> bool:
        """Whether another process holds the lock right now."""
        if not self.take():
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Give the lock up."""
        os.close(self._file)
