"""How long a site's programs wait before they look again: a share of the time that they have waited already, or until
they are told.

Flower's own pauses are fixed: 3 s for a message, half a second for a ClientApp's answer. They are long beside a round
of seconds and nothing beside one of an hour. A share of the wait makes a round later by at most that share, and lets a
site that has been idle for long ask as seldom as Flower does.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class GrowingPause:
    """Pauses that grow with the time since something happened last.

    Args:
        share: Of the time waited so far.
        least: Shortest pause, seconds.
        clock: Seconds on a clock that only goes forward.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        *,
        share: float,
        least: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._share, self._least = share, least
        self._clock, self._sleep = clock, sleep
        self._since = clock()

    def restart(self) -> None:
        """Something happened: the wait begins anew."""
        self._since = self._clock()

    def rest(self, most: float) -> None:
        """Wait, at most for so many seconds."""
        self._sleep(min(most, max(self._least, self._share * (self._clock() - self._since))))


class Bell:
    """A file by which one process tells another that there is something to do; who hears nothing looks in the end.

    A look at the file costs microseconds, a call that asks a SuperNode for a task milliseconds at both ends.

    Args:
        path: The file; it is made where it is absent.
        look_s: Seconds between two looks at it.
    """

    def __init__(self, path: Path, *, look_s: float = 0.02) -> None:
        self._path, self._look_s = path, look_s
        path.touch(mode=0o600)
        self._heard = self._rung()

    def ring(self) -> None:
        """Tell whoever listens."""
        with suppress(OSError):  # nobody depends on it
            os.utime(self._path)

    def rest(self, most: float) -> None:
        """Wait until it has rung since the last wait, at most for so many seconds."""
        end = time.monotonic() + most
        while self._rung() == self._heard and (left := end - time.monotonic()) > 0:
            time.sleep(min(self._look_s, left))
        self._heard = self._rung()

    def _rung(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
