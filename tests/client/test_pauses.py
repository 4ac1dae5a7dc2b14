"""Pauses between two looks: short after something has happened, and never longer than they were."""

import threading
import time
from pathlib import Path

from client.pauses import Bell, GrowingPause


def test_pause_is_a_share_of_the_wait_between_its_bounds() -> None:
    now, slept = [0.0], list[float]()
    pause = GrowingPause(share=0.1, least=0.25, clock=lambda: now[0], sleep=slept.append)

    for at in (0.0, 2.0, 10.0, 1000.0):
        now[0] = at
        pause.rest(3.0)

    assert slept == [0.25, 0.25, 1.0, 3.0]


def test_pause_is_short_again_once_something_has_happened() -> None:
    now, slept = [1000.0], list[float]()
    pause = GrowingPause(share=0.1, least=0.25, clock=lambda: now[0], sleep=slept.append)
    now[0] = 2000.0

    pause.restart()
    now[0] = 2005.0
    pause.rest(3.0)

    assert slept == [0.5]


def test_bell_ends_the_wait_of_another_that_listens(tmp_path: Path) -> None:
    rings, hears = Bell(tmp_path / "bell"), Bell(tmp_path / "bell")
    threading.Timer(0.2, rings.ring).start()

    began = time.monotonic()
    hears.rest(60.0)

    assert 0.15 < time.monotonic() - began < 30.0


def test_bell_that_rang_before_the_wait_is_heard_once(tmp_path: Path) -> None:
    rings, hears = Bell(tmp_path / "bell"), Bell(tmp_path / "bell")
    rings.ring()

    began = time.monotonic()
    hears.rest(60.0)
    heard_s = time.monotonic() - began
    hears.rest(0.3)

    assert heard_s < 30.0
    assert time.monotonic() - began - heard_s >= 0.3


def test_bell_without_its_file_lets_everybody_look_as_often_as_before(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "bell")
    bell.rest(0.0)
    (tmp_path / "bell").unlink()

    bell.ring()
    bell.rest(0.0)
    began = time.monotonic()
    bell.rest(0.2)

    assert time.monotonic() - began >= 0.2
