"""The limit on what a site sends and receives, against a clock of its own."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from client.bandwidth import BandwidthLimit


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_first_block_goes_at_once_and_the_next_waits_until_it_is_paid_off() -> None:
    clock = Clock()
    limit = BandwidthLimit(8.0, clock=clock, sleep=clock.sleep)  # a million bytes per second

    limit.wait_for(2_000_000)
    first = clock.now
    limit.wait_for(1)

    assert (first, clock.now) == (0.0, 2.0)


def test_bytes_received_are_paid_for_by_those_sent_after() -> None:
    clock = Clock()
    limit = BandwidthLimit(8.0, clock=clock, sleep=clock.sleep)

    limit.account(3_000_000)
    limit.wait_for(1)

    assert clock.now == 3.0


def test_time_without_traffic_is_not_saved_up() -> None:
    clock = Clock()
    limit = BandwidthLimit(8.0, clock=clock, sleep=clock.sleep)
    clock.now = 100.0

    limit.wait_for(1_000_000)
    limit.wait_for(1_000_000)
    limit.wait_for(1_000_000)

    assert clock.now == 102.0


@given(blocks=st.lists(st.integers(0, 10**7), min_size=1, max_size=30), rate=st.floats(0.5, 1000.0))
def test_no_more_than_the_rate_goes_through_on_average(blocks: list[int], rate: float) -> None:
    clock = Clock()
    limit = BandwidthLimit(rate, clock=clock, sleep=clock.sleep)

    for block in blocks:
        limit.wait_for(block)

    assert clock.now >= sum(blocks[:-1]) * 8 / (rate * 1e6) * (1 - 1e-9)


def test_threads_share_one_rate() -> None:
    waited: list[float] = []
    limit = BandwidthLimit(8.0, clock=lambda: 0.0, sleep=waited.append)

    threads = [threading.Thread(target=limit.wait_for, args=(1_000_000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(waited) == [1.0, 2.0, 3.0]
