"""What happens when the coordinator's disk is full: the run waits for room instead of being lost."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S = 5.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the system's errors that say so."""


def once_there_is_room(write: Callable[[], T], *, pause: Callable[[float], None] = time.sleep) -> T:
    """Write something, again and again until the disk has room for it.

    Args:
        write: Writes, from the beginning at every call, and leaves nothing behind when it fails.
        pause: Called with the seconds to wait before each further try.

    Raises:
        OSError: Any other than that there is no room, or no quota left.
    """
    waited = False
    while True:
        try:
            result = write()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if not waited:
                log.warning("the coordinator's disk is full: the run waits until there is room; make some")
            waited = True
            pause(PAUSE_S)
            continue
        if waited:
            log.info("the disk has room again, the run goes on")
        return result
