"""Processes that are started here, how they are stopped with all their children, and how they are found again."""

import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Process(Protocol):
    """A child of this process; what is needed of it here."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """The exit status; None while it runs."""

    def wait(self) -> int:
        """The exit status, once it has ended."""


def stop_group(process: Process, *, patience_s: float = 5.0) -> None:
    """Stop a process that leads a process group, and everything below it: first by SIGTERM, then by SIGKILL.

    A child can outlive its leader, so the group is signalled even if the leader has ended. Flower 1.41 starts its apps
    as leaders of sessions of their own (`flwr/supercore/utils.py`), so what descends from the process is found by
    parent, where the system tells (`/proc`).
    """
    below = descendants(process.pid)
    terminate_group(process.pid)
    end = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    kill_now(process.pid, below)
    process.wait()


def terminate_group(leader: int) -> None:
    """Ask a process group to end."""
    _signal_group(leader, signal.SIGTERM)


def kill_now(leader: int, below: Iterable[int]) -> None:
    """End a process group and other processes at once; whoever is gone already is left out."""
    _signal_group(leader, signal.SIGKILL)
    for each in below:
        _signal(each, signal.SIGKILL)


def kill_tree(process: int) -> None:
    """End a process, its group if it leads one, and all below it, at once."""
    below = descendants(process)
    _signal_group(process, signal.SIGKILL)
    for each in (process, *below):
        _signal(each, signal.SIGKILL)


def wait_for_end(process: int, started: str, *, patience_s: float = 5.0) -> None:
    """Wait until a process is gone that was killed, so that its ports and locks are free."""
    end = time.monotonic() + patience_s
    while start_time(process) == started and time.monotonic() < end:
        time.sleep(0.05)


def start_time(process: int) -> str:
    """When a process began, in a form of the system's own; empty where it is gone or the system does not tell.

    Number and start time together are never those of another process.
    """
    try:
        # The second field is the command in parentheses, which may hold anything; the first one after it is the state.
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""


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


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except (ProcessLookupError, PermissionError):
        return


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
