"""Work ends when the coordinator no longer waits for it."""

import signal
import threading
import time

import pytest

from client.time_limit import TimeLimitError, time_limit
from common.errors import GliornError


def test_work_that_hangs_is_ended_with_advice() -> None:
    with pytest.raises(TimeLimitError, match="longer round_timeout_s"), time_limit(0.05):
        time.sleep(60)

    assert issubclass(TimeLimitError, GliornError)
    assert TimeLimitError.code == "timeout"


def test_work_that_computes_without_end_is_ended() -> None:
    def compute() -> None:
        while True:
            sum(range(1000))

    with pytest.raises(TimeLimitError), time_limit(0.05):
        compute()


def test_message_whose_time_is_over_is_not_worked_on() -> None:
    with pytest.raises(TimeLimitError), time_limit(-3.0):
        time.sleep(60)


@pytest.mark.parametrize("seconds", [30.0, 1e300], ids=["half a minute", "for ever"])
def test_nothing_rings_after_work_that_was_done_in_time(seconds: float) -> None:
    before = signal.getsignal(signal.SIGALRM)

    with time_limit(seconds):
        left, _ = signal.getitimer(signal.ITIMER_REAL)

    assert left > 0
    assert signal.getsignal(signal.SIGALRM) is before


def test_timer_that_ran_before_goes_on_afterwards() -> None:
    rings: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: rings.append(number))
    left_before, _ = signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with time_limit(30.0):
            pass
        end = time.monotonic() + 30
        while not rings and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGALRM, old)
        signal.setitimer(signal.ITIMER_REAL, left_before)  # the test's own time limit

    assert rings == [signal.SIGALRM]


def test_error_of_the_work_itself_passes() -> None:
    with pytest.raises(KeyError), time_limit(30.0):
        raise KeyError("own")


def test_thread_without_signals_works_without_a_limit() -> None:
    done: list[bool] = []

    def work() -> None:
        with time_limit(0.001):
            time.sleep(0.02)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert done == [True]
