"""How much anybody may ask of the gateway: sizes, times, rates, and the memory that bodies may take together."""

import asyncio
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from starlette.types import Receive

from common.errors import GliornError
from common.hello import HELLO_PATH
from server.flower_private import MAX_REPLY_BYTES

_KIB, _MIB = 2**10, 2**20

FLEET = "/v1/fleet/"
MAX_BODY: Mapping[str, int] = MappingProxyType(
    {
        HELLO_PATH: 16 * _KIB,
        FLEET + "activate-node": 16 * _KIB,
        FLEET + "deactivate-node": 16 * _KIB,
        FLEET + "send-node-heartbeat": 16 * _KIB,
        FLEET + "pull-messages": 16 * _KIB,
        FLEET + "push-messages": 16 * _MIB,
        FLEET + "get-run": 16 * _KIB,
        FLEET + "get-fab": 16 * _KIB,
        FLEET + "push-object": 16 * _MIB,
        FLEET + "pull-object": 16 * _KIB,
        FLEET + "confirm-message-received": 16 * _KIB,
    }
)
"""The calls that exist, and the most bytes each may bring.

An object is a chunk of an array: 1 MiB from sites of ours, 5 MiB from Flower as it comes. A message is described by
about 100 bytes for each array and each chunk. Flower's two calls that make and unmake nodes are left out.
"""

MAX_HEADER = 16 * _KIB
"""Bytes of a request's first line and headers; a site's take less than 1 KiB."""

HEADER_TIMEOUT_S = 15.0
"""From the end of the handshake, or from the first byte of a request, to the end of its headers."""

BODY_TIMEOUT_S = 180.0
"""For a whole body; 1 MiB passes at 50 kbit/s."""

BODY_PAUSE_S = 30.0
"""Between two pieces of a body."""

KEEP_ALIVE_S = 65
"""An idle connection is closed after this; a SuperNode asks every 3 s, and its connections live 5 s unused."""

MAX_CONNECTIONS = 2000
MAX_CONNECTIONS_PER_ADDRESS = 256
"""A site uses up to five. Sites behind one proxy or one address share this."""

RESERVED_CONNECTIONS = MAX_CONNECTIONS // 4
"""Of them, those that only addresses get from which an admitted site called lately: strangers with many addresses
cannot take these."""

MAX_CALLS = 64
"""Calls that are at the SuperLink at one time; more wait. Those whose bodies are still on their way do not count."""

MAX_CALLS_PER_SITE = 16
MAX_BODIES_BYTES = 512 * _MIB
"""All bodies in memory at one time."""

STRANGERS_PER_S, STRANGERS_BURST = 0.5, 30.0
"""Requests from one address that no admitted key has signed, and that are answered with a reason."""

CALLS_PER_S, CALLS_BURST = 500.0, 2000.0
"""Requests of one site. Many small arrays take many calls; a site makes two at a time."""

HELLOS_PER_S, HELLOS_BURST = 0.5, 20.0
"""Hellos of one site. It says one when it connects and every ten minutes after; `gliorn-client check` a few."""

_MOST_BUCKETS = 10_000
_IPV6_NETWORK_BITS = 64


def network_of(address: str) -> str:
    """What an address counts as: itself in IPv4; in IPv6 its /64, of which one machine may use every address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, ipaddress.IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:  # a socket that listens for both sees IPv4 so
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_NETWORK_BITS), strict=False))


class TokenBuckets:
    """Lets each name do something at a steady rate, and a burst of it at once.

    Args:
        per_s: Tokens that a name gets per second.
        burst: Tokens that it has at first and at most.
        clock: Seconds that only grow.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> bool:
        """Take a token; False if there is none left."""
        now = self._clock()
        tokens, since = self._buckets.get(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_s)
        if name not in self._buckets and len(self._buckets) >= _MOST_BUCKETS:
            self._forget_full_ones(now)
        self._buckets[name] = (max(tokens - 1.0, 0.0) if tokens >= 1.0 else tokens, now)
        return tokens >= 1.0

    def _forget_full_ones(self, now: float) -> None:
        """A full bucket is as good as none. Where all are in use, the oldest goes, so that memory stays bounded."""
        for name, (tokens, since) in list(self._buckets.items()):
            if tokens + (now - since) * self._per_s >= self._burst:
                del self._buckets[name]
        if len(self._buckets) >= _MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]


def _nobody(_name: str) -> bool:
    return False


class Places:
    """A number of places in all and for each name, taken for as long as something lasts.

    Args:
        most: Places in all.
        most_per_name: Places that one name may take.
        reserved: Of all, the places that only known names get.
        known: Whether a name is known; it is asked only where the other places are taken.
    """

    def __init__(
        self, most: int, most_per_name: int, *, reserved: int = 0, known: Callable[[str], bool] = _nobody
    ) -> None:
        self._most, self._most_per_name = most, most_per_name
        self._reserved, self._known = reserved, known
        self._taken: dict[str, int] = {}
        self._total = 0

    def take(self, name: str) -> bool:
        """Take a place; False if there is none."""
        taken = self._taken.get(name, 0)
        if self._total >= self._most or taken >= self._most_per_name:
            return False
        if self._total >= self._most - self._reserved and not self._known(name):
            return False
        self._taken[name] = taken + 1
        self._total += 1
        return True

    def give_back(self, name: str) -> None:
        """Give a place back."""
        self._total -= 1
        self._taken[name] -= 1
        if not self._taken[name]:
            del self._taken[name]


class Memory:
    """Bytes that may be in memory at one time."""

    def __init__(self, most: int = MAX_BODIES_BYTES) -> None:
        self._most, self.taken = most, 0

    @contextmanager
    def lease(self) -> Iterator[Callable[[int], bool]]:
        """Within it, the function takes bytes, or returns False if there are not enough; at its end they are back."""
        mine = 0

        def take(num_bytes: int) -> bool:
            nonlocal mine
            if self.taken + num_bytes > self._most:
                return False
            mine += num_bytes
            self.taken += num_bytes
            return True

        try:
            yield take
        finally:
            self.taken -= mine


class Uploads:
    """Bytes that each site has uploaded since it was last handed a message: no site fills the coordinator's disk."""

    def __init__(self, most: int = MAX_REPLY_BYTES) -> None:
        self._most = most
        self._of_site: dict[str, int] = {}

    def take(self, site: str, num_bytes: int) -> bool:
        """Count bytes as uploaded; False if they are more than the site may upload."""
        uploaded = self._of_site.get(site, 0) + num_bytes
        if uploaded > self._most:
            return False
        self._of_site[site] = uploaded
        return True

    def give_back(self, site: str, num_bytes: int) -> None:
        """Bytes were not stored after all. They may be those of an earlier message."""
        self._of_site[site] = max(self._of_site.get(site, 0) - num_bytes, 0)

    def begin(self, site: str) -> None:
        """The site is handed a message."""
        self._of_site.pop(site, None)


class BodyTooLargeError(GliornError):
    """A body is larger than the call allows. It was read to its end, or to eight times that, and thrown away."""

    code = "body-too-large"


class BodyTooSlowError(GliornError):
    """A body did not come in time, or its sender went away."""

    code = "body-too-slow"


class NoMemoryError(GliornError):
    """Too many bodies are in memory."""

    code = "no-memory"


async def read_body(receive: Receive, *, most: int, take: Callable[[int], bool]) -> bytes:
    """The body of a request.

    Args:
        receive: Of the request.
        most: Bytes that it may have. What is more is read and thrown away, so that the peer hears the answer.
        take: Takes bytes of memory, or says that there are none.

    Raises:
        BodyTooLargeError: If it has more.
        BodyTooSlowError: If it does not come in time, or not to its end.
        NoMemoryError: If there is no memory for it now.
    """
    pieces: list[bytes] = []
    length, no_memory = 0, False
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            more = True
            while more and length <= 8 * most:
                message = await asyncio.wait_for(receive(), BODY_PAUSE_S)
                if message["type"] == "http.disconnect":
                    raise BodyTooSlowError("the peer went away")
                piece: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                length += len(piece)
                if length > most or no_memory:
                    pieces.clear()
                elif take(len(piece)):
                    pieces.append(piece)
                else:
                    no_memory = True
                    pieces.clear()
    except TimeoutError:
        raise BodyTooSlowError("the body did not come in time") from None
    if length > most:
        raise BodyTooLargeError(f"more than {most} bytes")
    if no_memory:
        raise NoMemoryError("too many bodies at one time")
    return b"".join(pieces)
