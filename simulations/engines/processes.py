"""Processes that engines start, and how they are stopped with all their children."""

import os
import signal
import socket
import subprocess
import time


def stop_group(process: "subprocess.Popen[bytes]", *, patience_s: float = 5.0) -> None:
    """Stop a process that leads a process group, and everything in the group: first by SIGTERM, then by SIGKILL.

    A child can outlive its leader, so the group is signalled even if the leader has ended.
    """
    _signal_group(process.pid, signal.SIGTERM)
    end = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
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
