"""Processes that engines start, and how they are stopped with all their children."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path


def stop_group(process: "subprocess.Popen[bytes]", *, patience_s: float = 5.0) -> None:
    """Stop a process that leads a process group, and everything below it: first by SIGTERM, then by SIGKILL.

    A child can outlive its leader, so the group is signalled even if the leader has ended. Flower 1.41 starts its apps
    as leaders of sessions of their own (`flwr/supercore/utils.py`), so what descends from the process is found by
    parent, where the system tells (`/proc`).
    """
    below = descendants(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    end = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    _signal_group(process.pid, signal.SIGKILL)
    for child in below:
        _signal(child, signal.SIGKILL)
    process.wait()


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
