"""Ends work that takes longer than the coordinator waits for, so that a hanging site is free for the next round."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common.errors import GliornError

_LONGEST_S = 1e8
"""Some three years; the system's timer takes no number without end."""


class TimeLimitError(GliornError):
    """The work was not done in the time the coordinator waits."""

    code = "timeout"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitError in the block once the time is over.

    Works by SIGALRM and so only in a process's main thread, which is where Flower runs a ClientApp; in other threads
    the block runs without a limit, and whoever started the thread has to keep one. A timer that runs already goes on
    after the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise TimeLimitError(f"not done within {seconds:.0f} s; give the study a longer round_timeout_s")

    started = time.monotonic()
    previous = signal.signal(signal.SIGALRM, end)
    left_before, _ = signal.setitimer(signal.ITIMER_REAL, min(max(seconds, 0.001), _LONGEST_S))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if left_before > 0:
            signal.setitimer(signal.ITIMER_REAL, max(left_before - (time.monotonic() - started), 0.001))
