"""Pauses between two looks: short after something has happened, and never longer than they were."""

from client.pauses import GrowingPause


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
