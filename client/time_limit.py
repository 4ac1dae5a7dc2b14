"""Ends work that takes longer than the coordinator waits for, so that a hanging site is free for the next round."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common.errors import GliornError


class TimeLimitError(GliornError):
    """The work was not done in the time the coordinator waits."""

    code = "timeout"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitError in the block once the time is over.

    Works by SIGALRM and so only in a process's main thread, which is where Flower runs a ClientApp; in other threads
    the block runs without a limit, and whoever started the thread has to keep one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        raise TimeLimitError(f"not done within {seconds:.0f} s; give the study a longer round_timeout_s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
