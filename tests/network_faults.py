"""A network that fails as a test tells it to: proxies on loopback that sites reach the coordinator through."""

import asyncio
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

HOST = "127.0.0.1"
_PIECE = 65536
_LINGER_NOT = struct.pack("ii", 1, 0)

T = TypeVar("T")
Direction = Literal["up", "down"]
Cut = Literal["reset", "close", "silence"]
"""How a connection ends: by a reset, as by an ordinary end, or so that neither side is told anything."""


@dataclass(frozen=True)
class Sample:
    """Bytes that came through at a moment, in one direction; "up" is to the coordinator."""

    at: float
    direction: Direction
    num_bytes: int


@dataclass(eq=False)
class _Connection:
    site: asyncio.StreamWriter
    coordinator: asyncio.StreamWriter
    silent: bool = False
    ended: bool = False

    def end(self, how: Cut) -> None:
        if how == "silence":
            self.silent = True
            return
        self.ended = True
        for writer in (self.site, self.coordinator):
            if how == "reset":
                _reset(writer)
            else:
                writer.close()


@dataclass
class _Planned:
    """A cut that is to come.

    Attributes:
        left: Bytes to the coordinator that still come through before it.
    """

    left: int
    how: Cut


@dataclass
class TcpProxy:
    """Passes connections on to a port of loopback, until told otherwise. Use it as a context.

    What is done to it may be done from any thread, and counts from that moment on.

    Attributes:
        target: The port passed on to.
        latency_s: How much later than it came each piece is passed on.
        samples: What has come through.
        connections: How many were opened.
        cuts: How many planned cuts have happened.
    """

    target: int = 0
    latency_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    connections: int = 0
    cuts: int = 0
    _state: Literal["open", "silent", "closed"] = "open"
    _bytes_per_s: float | None = None
    _open: set[_Connection] = field(default_factory=set)
    _planned: list[_Planned] = field(default_factory=list)
    _port: int = 0

    # --- what a test does ---------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where sites connect to; known before the proxy runs, and free until then."""
        return self._port

    def __post_init__(self) -> None:
        """Take a port."""
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind((HOST, 0))
        self._listening.listen(64)
        self._port = int(self._listening.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        """Begin to pass on."""
        self._thread.start()
        self._loop.call_soon_threadsafe(self._spawn, self._accept())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        self._in_loop(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listening.close()

    def cut(self) -> None:
        """Lose everything in both directions from now on, and tell nobody; new connections come to nothing."""
        self._in_loop(lambda: self._set("silent", "silence"))

    def refuse(self) -> None:
        """Reset all connections, and each new one."""
        self._in_loop(lambda: self._set("closed", "reset"))

    def mend(self) -> None:
        """Pass on new connections again. Those that fell silent stay silent, as after a firewall's restart."""
        self._in_loop(lambda: self._set("open", None))

    def end_connections(self, how: Cut = "reset") -> None:
        """End the connections of this moment; new ones are passed on."""

        def end() -> None:
            for connection in self._open:
                connection.end(how)

        self._in_loop(end)

    def plan_cut(self, after_bytes: int, how: Cut) -> None:
        """End the connection that brings the n-th byte to the coordinator, counted from the cut planned before it.

        Bytes of TLS count like any others. The n-th byte is passed on, the next is not.
        """
        self._in_loop(lambda: self._planned.append(_Planned(after_bytes, how)))

    def throttle(self, bytes_per_s: float | None) -> None:
        """Let so many bytes through in a second, in each direction of each connection; None is no limit."""
        self._bytes_per_s = bytes_per_s

    def num_bytes(self, direction: Direction) -> int:
        """How much has come through."""
        return sum(sample.num_bytes for sample in list(self.samples) if sample.direction == direction)

    # --- what happens in the loop -------------------------------------------------------------------------------------

    def _in_loop(self, act: Callable[[], T]) -> T:
        async def acted() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(acted(), self._loop).result(timeout=30)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self) -> None:
        for connection in list(self._open):
            connection.end("reset")
        for task in list(self._tasks):
            task.cancel()

    def _set(self, state: Literal["open", "silent", "closed"], how: Cut | None) -> None:
        self._state = state
        if how is not None:
            for connection in self._open:
                connection.end(how)

    async def _accept(self) -> None:
        async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Of the loop's own, so that the end of the proxy is the end of each.
            self._spawn(self._serve(reader, writer))

        self._listening.setblocking(False)
        server = await asyncio.start_server(begin, sock=self._listening, ssl=self._presented())
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection: _Connection | None = None
        try:
            if self._state == "closed":
                _reset(writer)
                return
            if self._state == "silent":
                await _swallow(reader)
                return
            opened = await self._open_onward(reader, writer)
            if opened is None:
                return
            back, onward = opened
            connection = _Connection(writer, onward)
            self._open.add(connection)
            await asyncio.gather(
                self._pass_on(reader, onward, connection, "up"), self._pass_on(back, writer, connection, "down")
            )
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()
            if connection is not None:
                connection.coordinator.close()
                self._open.discard(connection)

    async def _open_onward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        return await asyncio.open_connection(HOST, self.target)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection, direction: Direction
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                self._saw(connection, direction, piece)
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                for part in self._parts(piece):
                    if connection.ended:
                        return
                    if connection.silent:
                        continue
                    ended = self._due_cut(part) if direction == "up" else None
                    passed = part if ended is None else part[: ended.left]
                    writer.write(passed)
                    self.samples.append(Sample(time.monotonic(), direction, len(passed)))
                    if ended is not None:
                        self.cuts += 1
                        await asyncio.sleep(0.02)  # the last bytes leave before the end
                        connection.end(ended.how)
                        continue
                    await writer.drain()
                    if self._bytes_per_s is not None:
                        await asyncio.sleep(len(part) / self._bytes_per_s)
            if not connection.silent:
                writer.close()

    def _presented(self) -> ssl.SSLContext | None:
        """What this proxy ends TLS with; None passes it on unopened."""
        return None

    def _saw(self, connection: _Connection, direction: Direction, piece: bytes) -> None:
        """Is told of all that comes."""

    def _parts(self, piece: bytes) -> list[bytes]:
        """A piece in parts that take at most a quarter of a second each."""
        size = len(piece) if self._bytes_per_s is None else max(int(self._bytes_per_s / 4), 1)
        return [piece[begin : begin + size] for begin in range(0, len(piece), size)]

    def _due_cut(self, part: bytes) -> _Planned | None:
        """The planned cut that falls into these bytes to the coordinator, if there is one."""
        if not self._planned:
            return None
        first = self._planned[0]
        if first.left > len(part):
            first.left -= len(part)
            return None
        return self._planned.pop(0)


@dataclass
class ConnectProxy(TcpProxy):
    """An HTTP proxy that knows CONNECT alone; its target is of no matter.

    Attributes:
        names: The port of loopback behind each `host:port` that it lets through; all else is forbidden.
        asked: What it was asked for, in order.
    """

    target: int = 0
    names: Mapping[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def _open_onward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split()
        self.asked.append(" ".join(request[:2]))
        port = self.names.get(request[1]) if request[0] == "CONNECT" else None
        if port is None:
            writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return None
        opened = await asyncio.open_connection(HOST, port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()
        return opened


@dataclass
class Eavesdropper(TcpProxy):
    """Ends TLS with the coordinator's own key, as nobody should be able to, and notes every request that passes.

    Attributes:
        key: The coordinator's private key, PEM.
        certificate: Its certificate, PEM.
        authority: What the coordinator is checked against, PEM.
        requests: Path and whole text of each request, in order.
    """

    key: Path = field(default_factory=Path)
    certificate: Path = field(default_factory=Path)
    authority: Path = field(default_factory=Path)
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    _heard: dict[_Connection, bytes] = field(default_factory=dict)

    def say_again(self, request: bytes) -> int:
        """Send a request once more over a connection of its own; returns the status of the answer."""
        with (
            socket.create_connection((HOST, self.target), timeout=60) as plain,
            self._trust().wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(request)
            answer = b""
            while b"\r\n" not in answer and (piece := connection.recv(4096)):
                answer += piece
            return int(answer.split()[1])

    def _presented(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    async def _open_onward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(HOST, self.target, ssl=self._trust(), server_hostname="localhost")

    def _saw(self, connection: _Connection, direction: Direction, piece: bytes) -> None:
        if direction == "down":
            return
        heard = self._heard.pop(connection, b"") + piece
        while (head_end := heard.find(b"\r\n\r\n")) >= 0:
            head = heard[: head_end + 4]
            length = re.search(rb"content-length: *(\d+)", head, flags=re.IGNORECASE)
            end = len(head) + (int(length[1]) if length else 0)
            if len(heard) < end:
                break
            self.requests.append((head.split()[1].decode(), heard[:end]))
            heard = heard[end:]
        self._heard[connection] = heard


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset, as a firewall does."""
    raw = writer.get_extra_info("socket")
    with suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(_PIECE):
        continue
