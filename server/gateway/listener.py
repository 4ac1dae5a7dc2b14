"""The gateway's socket and its connections: how many there may be, and how long one may wait with its request."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import ConfigError
from server.gateway.limits import (
    HEADER_TIMEOUT_S,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_ADDRESS,
    RESERVED_CONNECTIONS,
    Places,
    network_of,
)

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
"""The answer to everything that is not one of the calls, byte for byte."""


class _CountedConnection(socket.socket):
    """A connection that says when it is closed, also one whose TLS handshake never ended."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        on_close, self.on_close = self.on_close, None
        super().close()
        if on_close is not None:
            on_close()


class CountingListener(socket.socket):
    """A listening socket that closes at once what is more than the connections allowed."""

    places: Places

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that there is a place for."""
        while True:
            accepted, peer = super().accept()
            network = network_of(str(peer[0]))
            if not self.places.take(network):
                accepted.close()
                continue
            connection = _CountedConnection(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
            connection.on_close = partial(self.places.give_back, network)
            return connection, peer


def listen(address: str, port: int, *, known: Callable[[str], bool]) -> CountingListener:
    """Listen on an address and a port.

    Args:
        address: Of this machine.
        port: 0 takes a free one.
        known: Whether an admitted site called lately from a network, as `network_of` gives it.

    Raises:
        ConfigError: If that is not possible.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = CountingListener(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror}; mend `listen` in federation.yaml") from None
    listener.places = Places(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, reserved=RESERVED_CONNECTIONS, known=known)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(place)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {address} port {port}: {error.strerror}; see who uses it with `ss -ltnp`, "
            "or take another `port` in federation.yaml"
        ) from None
    listener.setblocking(False)
    return listener


class GatewayProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn 0.49, with three differences.

    What is no HTTP gets the answer that everything unknown gets; no connection becomes a WebSocket; and a request that
    does not come to the end of its headers in time is hung up on.
    """

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A handshake has ended."""
        super().connection_made(transport)
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._header_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        if self._between_requests():
            if self._header_timer is None:
                self._expect_header()
        else:
            self._header_is_here()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(NOT_FOUND)
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_header(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._hang_up)

    def _header_is_here(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _hang_up(self) -> None:
        self._header_timer = None
        if self._between_requests():
            self.transport.abort()
