"""Locks that end with the process that holds them, and say which process that is."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from server.processes import start_time

_LOOKS = 3
PATIENCE_S = 2.0
"""A look at a lock holds it for a moment; whoever wants it waits that out."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    started: str


@contextmanager
def hold(path: Path, *, otherwise: str, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold a lock for the time of a block.

    Args:
        path: The lock's file; made where it is absent, and left there.
        otherwise: Message of the error where another process holds it.
        patience_s: Seconds to wait for it.

    Raises:
        ConfigError: If another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + patience_s
        while not _taken(descriptor):
            if time.monotonic() >= end:
                raise ConfigError(otherwise)
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {start_time(os.getpid())}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock right now."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        for _ in range(_LOOKS):  # another one's look at the lock holds it for a moment, too
            if _taken(descriptor):
                return False
            time.sleep(0.01)
        return True
    finally:
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """The process that holds the lock; None if nobody does, or it has just begun to."""
    if not is_held(path):
        return None
    words = path.read_text(encoding="utf-8").split()
    if len(words) != 2 or start_time(int(words[0])) != words[1]:
        return None
    return Holder(int(words[0]), words[1])


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
