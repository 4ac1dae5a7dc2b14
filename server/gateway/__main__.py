"""`python -m server.gateway FEDERATION_DIR`: run the gateway of a federation until it is told to end."""

import argparse
import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import httpx
import uvicorn

from common.bundle import bundle_digest, installed_bundle
from common.errors import ConfigError
from server.federation_folder import FederationFolder
from server.gateway.access_log import AccessLog
from server.gateway.admission import Admission, Register
from server.gateway.app import Clocks, Gateway
from server.gateway.attendance import Attendance
from server.gateway.certificate import GatewayCertificate
from server.gateway.deliveries import Deliveries
from server.gateway.hello import Reception
from server.gateway.limits import (
    CALLS_BURST,
    CALLS_PER_S,
    HELLOS_BURST,
    HELLOS_PER_S,
    KEEP_ALIVE_S,
    MAX_CALLS,
    MAX_HEADER,
    STRANGERS_BURST,
    STRANGERS_PER_S,
    TokenBuckets,
)
from server.gateway.listener import CountingListener, GatewayProtocol, listen
from server.run_folder import write_atomically

log = logging.getLogger("server.gateway")

_SUPERLINK_TIMEOUT_S = 60.0
"""A SuperNode waits for 30 s; what comes later is kept for when it asks again."""

_SUPERLINK_KEEP_ALIVE_S = 3.0
"""The SuperLink closes idle connections after 5 s; one must not be used in the moment it closes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway; returns 0 when it was told to end, 2 if the federation's folder cannot be used."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"
    )
    log.setLevel(logging.INFO)
    folder = FederationFolder(arguments.federation)
    try:
        config = folder.read_config()
        access_log = AccessLog(time.monotonic)
        attendance = Attendance(folder.sightings, access_log, clock=time.monotonic, now=_now)
        superlink_port = arguments.superlink_port or config.superlink_port
        gateway, certificate = _gateway(folder, access_log, attendance, superlink_port=superlink_port)
        address = config.listen if arguments.listen is None else arguments.listen
        listener = listen(address, config.port if arguments.port is None else arguments.port, known=attendance.knows)
    except ConfigError as error:
        log.error("%s", error)
        return 2
    with listener:
        _serve(gateway, certificate, listener, ready_file=arguments.ready_file)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.gateway", description=__doc__, allow_abbrev=False)
    parser.add_argument("federation", type=Path, metavar="FEDERATION_DIR", help="folder of the federation")
    parser.add_argument("--port", type=int, help="instead of federation.yaml's; 0 takes a free one")
    parser.add_argument("--listen", help="address to listen on, instead of federation.yaml's")
    parser.add_argument("--superlink-port", type=int, help="the SuperLink's on 127.0.0.1, instead of federation.yaml's")
    parser.add_argument("--ready-file", type=Path, help="file that gets the port as soon as the gateway listens")
    return parser


def _now() -> datetime:
    return datetime.now(UTC)


def _gateway(
    folder: FederationFolder, access_log: AccessLog, attendance: Attendance, *, superlink_port: int
) -> tuple[Gateway, GatewayCertificate]:
    config = folder.read_config()
    certificate = GatewayCertificate(folder.certificate, folder.certificate_key)
    folder.logs.mkdir(mode=0o700, exist_ok=True)
    clocks = Clocks(now=_now, elapsed_s=time.monotonic)
    gateway = Gateway(
        admission=Admission(Register(folder), TokenBuckets(STRANGERS_PER_S, STRANGERS_BURST, clocks.elapsed_s).take),
        attendance=attendance,
        deliveries=Deliveries(folder.gateway / "deliveries"),
        reception=Reception(folder, config, version=version("gliorn"), bundle_digest=bundle_digest(installed_bundle())),
        calls=TokenBuckets(CALLS_PER_S, CALLS_BURST, clocks.elapsed_s),
        hellos=TokenBuckets(HELLOS_PER_S, HELLOS_BURST, clocks.elapsed_s),
        access_log=access_log,
        certificate=certificate,
        superlink=_superlink_client(folder.superlink / "tls" / "ca.crt", superlink_port),
        clocks=clocks,
    )
    return gateway, certificate


def _superlink_client(authority: Path, port: int) -> httpx.AsyncClient:
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError):
        raise ConfigError(
            f"{authority}: no readable certificate; `gliorn-server start` makes it, so start the federation with that"
        ) from None
    return httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{port}",
        verify=context,
        trust_env=False,
        timeout=httpx.Timeout(_SUPERLINK_TIMEOUT_S, connect=5.0),
        limits=httpx.Limits(max_connections=MAX_CALLS, keepalive_expiry=_SUPERLINK_KEEP_ALIVE_S),
    )


class _Server(uvicorn.Server):
    """Says in a file that it listens."""

    def __init__(self, config: uvicorn.Config, ready_file: Path | None) -> None:
        super().__init__(config)
        self._ready_file = ready_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().set_exception_handler(_report)
        await super().startup(sockets)
        assert sockets is not None
        port = sockets[0].getsockname()[1]
        log.info("listening on port %d", port)
        if self._ready_file is not None:
            write_atomically(self._ready_file, f"{port}\n".encode())


def _report(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """One line, without a traceback, for what goes wrong below HTTP: most often a peer that goes away."""
    error = context.get("exception")
    if not isinstance(error, OSError):
        log.error("in the event loop: %s (%s)", context.get("message"), type(error).__name__)


def _serve(
    gateway: Gateway, certificate: GatewayCertificate, listener: CountingListener, *, ready_file: Path | None
) -> None:
    config = uvicorn.Config(
        gateway,
        http=GatewayProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MAX_HEADER,
        ssl_context_factory=lambda *_: certificate.context,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for name in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has ended well
        signal.signal(name, _told_to_end)
    _Server(config, ready_file).run(sockets=[listener])


def _told_to_end(*_: object) -> None:
    return None


if __name__ == "__main__":
    sys.exit(main())
