"""Time and memory of a command with all that it starts."""

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.processes import descendants, stop_group

_LOOK_EVERY_S = 0.3


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: From its start to its end.
        peak_bytes: The most memory that it and its descendants had at a time; pages that several share count once.
    """

    seconds: float
    peak_bytes: int


def cost_of(command: Sequence[str], *, environment: Mapping[str, str], log: Path, timeout_s: float) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: If it fails or takes too long; says the end of its output.
    """
    with log.open("wb") as file:
        started = time.monotonic()
        process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        watcher = _Watcher(process.pid)
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            seconds = time.monotonic() - started
            watcher.end()
            stop_group(process)
    if code != 0:
        how = f"did not end within {timeout_s:.0f} s" if code is None else f"ended with code {code}"
        raise RuntimeError(f"{' '.join(command[:3])} {how}: {log.read_text(errors='replace')[-1500:]}")
    return Cost(seconds, watcher.peak_bytes)


class _Watcher:
    """Looks at the memory of a process tree until it is told to end."""

    def __init__(self, root: int) -> None:
        self.peak_bytes = 0
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            total = sum(_proportional_bytes(process) for process in (self._root, *descendants(self._root)))
            self.peak_bytes = max(self.peak_bytes, total)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def _proportional_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it ended while we looked
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
