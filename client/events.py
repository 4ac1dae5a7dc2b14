"""What the process of the SuperNode tells the one that supervises it: JSON lines through a pipe, and how it ended."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

EXIT_DEAF = 75
"""The SuperNode's main loop has ended by itself."""
EXIT_HEARTBEAT = 76
"""The SuperNode no longer tells the coordinator that it is here."""

EventName = Literal["connected", "lost", "regained", "refused", "busy", "idle", "sent", "crashed", "ended"]


@dataclass(frozen=True)
class Event:
    """Something happened to the SuperNode.

    Attributes:
        name: "connected" (as a node), "lost" and "regained" (the connection), "refused" (the coordinator answered with
            an error that ends the SuperNode), "busy" and "idle" (a task came; nothing is left to do), "sent" (an answer
            went out), "crashed" (a ClientApp died over its task), "ended" (the SuperNode is deaf and ends).
        node: The coordinator's number for this site; with "connected".
        reason: In a word or two; with "lost", "refused" and "ended".
        status: HTTP status; with "refused".
        code: Flower's number of the error; with "refused", where it told one.
        num_bytes: Size of what went out; with "sent".
        complete: Whether all of it went out; with "sent".
    """

    name: EventName
    node: int | None = None
    reason: str = ""
    status: int | None = None
    code: int | None = None
    num_bytes: int = 0
    complete: bool = True


class EventWriter:
    """Writes events to a pipe; used from several threads. A pipe that nobody reads any more swallows them."""

    def __init__(self, descriptor: int) -> None:
        """Write to a file descriptor."""
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """Tell an event."""
        line = json.dumps(asdict(event)).encode() + b"\n"
        with self._lock:
            try:
                os.write(self._descriptor, line)
            except OSError:
                return


class EventReader:
    """Reads events from the other end of a pipe, without waiting for them."""

    def __init__(self, descriptor: int) -> None:
        """Read from a file descriptor, which belongs to the reader from here on."""
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._rest = b""

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._descriptor

    def new_events(self) -> Iterator[Event]:
        """All that has come since the last call."""
        while True:
            try:
                piece = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return
            if not piece:
                return
            *lines, self._rest = (self._rest + piece).split(b"\n")
            for line in lines:
                values: dict[str, Any] = json.loads(line)
                yield Event(**values)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._descriptor)
