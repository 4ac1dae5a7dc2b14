"""Keeps the bytes that a site sends and receives below a rate, on average."""

import threading
import time
from collections.abc import Callable


class BandwidthLimit:
    """Lets bytes through at a rate; who brings more waits. Safe to use from several threads.

    A debt is allowed: a block is let through whole and what follows waits until it is paid off, so a block may be of
    any size.
    """

    def __init__(
        self,
        megabits_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin with nothing saved up.

        Args:
            megabits_per_second: The rate; positive.
            clock: Seconds that never run backwards.
            sleep: Waits for seconds.
        """
        self._bytes_per_s = megabits_per_second * 1e6 / 8
        self._clock, self._sleep = clock, sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def wait_for(self, num_bytes: int) -> None:
        """Wait until earlier bytes are paid off, then take these into account."""
        with self._lock:
            now = self._clock()
            pause = max(self._free_at - now, 0.0)
            self._free_at = now + pause + num_bytes / self._bytes_per_s
        if pause > 0:
            self._sleep(pause)

    def account(self, num_bytes: int) -> None:
        """Take bytes into account that have come already; what follows waits for them."""
        with self._lock:
            self._free_at = max(self._free_at, self._clock()) + num_bytes / self._bytes_per_s
