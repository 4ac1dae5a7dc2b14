"""Sites of one machine that take turns."""

import os
import time
from pathlib import Path

import pytest

from client.work_slots import WorkSlots, make_work_slots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_work_slots(tmp_path / "slots", 2)
    return tmp_path / "slots"


def seconds_to_take(slots: WorkSlots, *, at_most: float) -> float | None:
    """Measured in a process of its own, which ends afterwards; None if it took too long."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        slots.take()
        os._exit(0)
    while time.monotonic() - began < at_most:
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            return time.monotonic() - began
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def test_as_many_work_at_a_time_as_there_are_slots(folder: Path) -> None:
    first, second, third = (WorkSlots(folder) for _ in range(3))

    first.take()
    second.take()

    assert seconds_to_take(third, at_most=0.5) is None
    second.let_go()
    assert seconds_to_take(third, at_most=30.0) is not None


def test_slot_is_held_until_the_copies_that_were_made_meanwhile_have_ended(folder: Path) -> None:
    first, second, third = (WorkSlots(folder) for _ in range(3))
    second.take()
    first.take()
    reading, writing = os.pipe()
    copy = os.fork()
    if copy == 0:
        os.close(writing)
        os.read(reading, 1)  # until the pipe is closed
        os._exit(0)
    os.close(reading)

    first.let_go()
    while_it_works = seconds_to_take(third, at_most=0.5)
    os.close(writing)
    os.waitpid(copy, 0)

    assert while_it_works is None
    assert seconds_to_take(third, at_most=30.0) is not None


def test_slot_is_free_again_however_its_holder_ended(folder: Path) -> None:
    for _ in range(3):  # each ends without letting go
        assert seconds_to_take(WorkSlots(folder), at_most=30.0) is not None
