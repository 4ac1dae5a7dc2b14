"""How long a site's programs wait before they look again: a share of the time that they have waited already.

Flower's own pauses are fixed: 3 s for a message, half a second for a ClientApp's answer. They are long beside a round
of seconds and nothing beside one of an hour. A share of the wait makes a round later by at most that share, and lets a
site that has been idle for long ask as seldom as Flower does.
"""

import time
from collections.abc import Callable


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
