"""Flower's Grid for a round loop that must outlast a SuperLink that is away, busy or failing.

Flower's own Grid (flwr 1.41, `HttpGrid`) tries for ever while nobody listens or a proxy answers 502 to 504. Everything
else it raises: a full disk or a locked database (500), a connection cut within TLS. None of these ends a run here.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from common.flower_private import NodeInfo, ObjectPushError
from server.flower_private import (
    UnreadableReplyError,
    end_turn,
    fetch_one_reply_at_a_time,
    fetch_until,
    has_turn,
)

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
OUTAGE_S = 15.0
"""A call that takes longer than this has waited for the SuperLink."""

_T = TypeVar("_T")
_FAILURES = (httpx.HTTPStatusError, httpx.TransportError, ObjectPushError)


class Pull:
    """One request for replies, on a thread of its own.

    The request lasts while the site is still uploading its reply, or pretends to; if the site died, until the SuperLink
    forgets the reply, three minutes after its last part came; and never longer than until it is closed. Meanwhile the
    loop looks after the other sites.

    Args:
        grid: Flower's Grid.
        message_ids: The messages to which replies are asked for.
        news: Set when the request is done.
    """

    def __init__(self, grid: Grid, message_ids: Sequence[str], news: threading.Event) -> None:
        self._grid = grid
        self._message_ids = message_ids
        self._news = news
        self._lock = threading.Lock()
        self._messages: list[Message] = []
        self._error: BaseException | None = None
        self._is_done = self._has_turn = False
        self._is_closed = threading.Event()
        # A daemon, so that an upload that nobody waits for any more does not keep the program from ending.
        threading.Thread(target=self._run, name="pull", daemon=True).start()

    def _run(self) -> None:
        messages: list[Message] = []
        error: BaseException | None = None
        fetch_until(self._is_closed)
        try:
            messages = list(self._grid.pull_messages(list(self._message_ids)))
        except BaseException as caught:  # noqa: BLE001 - raised again in the thread that asks for the result
            error = caught
        with self._lock:
            self._is_done, self._has_turn = True, has_turn()
            if self._is_closed.is_set():
                self._end_turn()
            else:
                self._messages, self._error = messages, error
        self._news.set()

    @property
    def is_done(self) -> bool:
        """Whether it has come to its end."""
        return self._is_done

    def replies(self) -> dict[str, Message] | None:
        """What came, by the message it replies to, each once; None if the SuperLink failed and one should ask again.

        Raises:
            UnreadableReplyError: If the site that was asked has sent what is no reply to what it was asked.
        """
        messages, self._messages = self._messages, []
        if self._error is not None:
            if not _passes(self._error):
                raise self._error
            log.warning("Flower's SuperLink failed while replies were fetched (%s), asking again", _name(self._error))
            return None
        replies: dict[str, Message] = {}
        for message in messages:
            # What Flower checked stands beside the message; this is what the site has written into it.
            if message.metadata.reply_to_message_id not in self._message_ids:
                raise UnreadableReplyError("its reply is not one to what it was asked")
            replies.setdefault(message.metadata.reply_to_message_id, message)
        return replies

    def close(self) -> None:
        """Forget the request, and let the next reply into memory."""
        with self._lock:
            self._is_closed.set()
            self._messages = []
            if self._is_done:
                self._end_turn()

    def _end_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            end_turn()


class PatientGrid:
    """Calls to a Grid that are repeated until the SuperLink is well again.

    Attributes:
        lost_s: Seconds that passed in waiting for the SuperLink: no site could deliver anything in this time.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._news = threading.Event()
        self.lost_s = 0.0
        fetch_one_reply_at_a_time()

    def nodes(self) -> dict[int, NodeInfo]:
        """The connected nodes."""
        return {info.node_id: info for info in self._patiently(lambda: list(self._grid.get_nodes()))}

    def send(self, messages: Sequence[Message]) -> list[str | None]:
        """Send messages; returns their numbers, and None for one whose node Flower does not know any more.

        Flower computes the digests of a content that they share once.
        """
        # Repeating is safe: the number of a message is a digest of it, and what has arrived is not stored twice.
        numbers = self._patiently(lambda: list(self._grid.push_messages(messages)))
        return [number or None for number in numbers] or [None] * len(messages)

    def pull(self, message_ids: Sequence[str], *, patience_s: float) -> Pull:
        """Ask for replies; returns when they are there, when another request is done, or when patience is over."""
        self._news.clear()
        pull = Pull(self._grid, message_ids, self._news)
        self._news.wait(patience_s)
        return pull

    def _patiently(self, call: Callable[[], _T]) -> _T:
        started = time.monotonic()
        pause = FIRST_PAUSE_S
        while True:
            try:
                result = call()
                break
            except _FAILURES as error:
                if not _passes(error):
                    raise
                log.warning("Flower's SuperLink failed (%s), trying again in %.0f s", _name(error), pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        if (took := time.monotonic() - started) > OUTAGE_S:
            log.warning("Flower's SuperLink kept the run waiting for %.0f s", took)
            self.lost_s += took
        return result


def _passes(error: BaseException) -> bool:
    """Whether a failure is one of the SuperLink that may pass, and not the end of this run or a lasting refusal."""
    match error:
        case httpx.HTTPStatusError():
            return error.response.status_code >= 500 or error.response.status_code == httpx.codes.TOO_MANY_REQUESTS
        case httpx.TransportError():
            # A SuperLink that came back with another authority: only a new ServerApp is told of it.
            return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, ObjectPushError)


def _name(error: BaseException) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP status {error.response.status_code}"
    return type(error).__name__
