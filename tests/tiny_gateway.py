"""A gateway that answers hellos with whatever a test wants, over real TLS on loopback, and proxies before it."""

import socket
import ssl
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

from common.bundle import bundle_digest, installed_bundle
from common.hello import HELLO_PATH, HelloFault, HelloRefusal, HelloReply
from server.provisioning import CertificateAuthority, make_server_certificate

YEAR = timedelta(days=365)
FEDERATION_ID = "0123456789abcdef0123456789abcdef"


@dataclass
class TinyGateway:
    """What answers a hello, and how."""

    authority: CertificateAuthority
    port: int = 0
    fault: HelloFault | None = None
    status: int | None = None
    ahead: timedelta = timedelta(0)
    changes: dict[str, object] = field(default_factory=dict)

    def answer(self) -> tuple[int, str]:
        time = (datetime.now(UTC) + self.ahead).isoformat()
        if self.status is not None:
            return self.status, "{}"
        if self.fault is not None:
            return 401, HelloRefusal(fault=self.fault, time=time).model_dump_json()
        reply = HelloReply(
            federation="one",
            federation_id=FEDERATION_ID,
            site="a",
            time=time,
            version=version("gliorn"),
            bundle_digest=bundle_digest(installed_bundle()),
            authorities=self.authority.certificate.decode(),
            studies=(),
        )
        return 200, reply.model_copy(update=self.changes).model_dump_json()


class _Server(ThreadingHTTPServer):
    """Serves over TLS where it has a context; a handshake that fails ends that connection alone."""

    context: ssl.SSLContext | None = None

    def finish_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if self.context is None:
            super().finish_request(request, client_address)
            return
        with self.context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is expected here."""


class TinyServers:
    """Starts servers on free ports of the loopback address, and stops all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[_Server, threading.Thread]] = []

    def https(
        self,
        gateway: TinyGateway,
        *,
        signed_by: CertificateAuthority | None = None,
        begin: timedelta = timedelta(days=-1),
        lifetime: timedelta = YEAR,
        hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
    ) -> TinyGateway:
        certificate, key = make_server_certificate(
            signed_by or gateway.authority, hosts=list(hosts), now=datetime.now(UTC) + begin, lifetime=lifetime
        )
        chain = self._folder / f"chain{len(self._running)}.pem"
        chain.write_bytes(certificate + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        gateway.port = self._start(_hello_handler(gateway), context)
        return gateway

    def http(self, gateway: TinyGateway) -> TinyGateway:
        gateway.port = self._start(_hello_handler(gateway), None)
        return gateway

    def proxy(self, *, refusal: str | None = None) -> tuple[int, list[str]]:
        """A proxy that tunnels, or refuses with a status line; its port, and what it was asked for."""
        asked: list[str] = []
        return self._start(_proxy_handler(asked, refusal), None), asked

    def _start(self, handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None) -> int:
        server = _Server(("127.0.0.1", 0), handler)
        server.context = context
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        self._running.append((server, thread))
        return int(server.server_address[1])

    def stop(self) -> None:
        for server, thread in self._running:
            server.shutdown()
            server.server_close()
            thread.join()


def _hello_handler(gateway: TinyGateway) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, text = gateway.answer() if self.path == HELLO_PATH else (404, "")
            self.send_response(status)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _proxy_handler(asked: list[str], refusal: str | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(f"{self.path} {self.headers.get('proxy-authorization', 'nobody')}")
            if refusal is not None:
                self.wfile.write(f"HTTP/1.1 {refusal}\r\ncontent-length: 0\r\n\r\n".encode())
                return
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as onward:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(onward, self.connection), daemon=True)
                back.start()
                _pump(self.connection, onward)
                back.join(timeout=10)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
