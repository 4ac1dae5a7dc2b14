"""Hello over real TLS, to a little gateway in a thread, straight and through a proxy."""

import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from client.config import SiteConfig, parse_site_config
from client.coordinator import HelloError, clock_difference, say_hello
from client.kit import Kit
from common.authorities import certificate_digest, certificates_in
from common.bundle import bundle_digest, installed_bundle
from common.errors import ConfigError
from common.site_signature import verified_key
from server.provisioning import make_certificate_authority, make_server_certificate, make_site_key_pair

NOW = datetime.now(UTC)
FEDERATION_ID = "f" * 32


@dataclass
class Gateway:
    """What the little gateway answers, and what it was sent."""

    port: int = 0
    status: int = 200
    reply: dict[str, Any] | bytes = field(
        default_factory=lambda: {
            "federation": "necrosis",
            "federation_id": FEDERATION_ID,
            "site": "hospital-a",
            "time": NOW.isoformat(),
            "version": "0.1.0",
            "bundle_digest": "b" * 64,
            "authorities": "",
            "studies": [],
            "of a newer version": 1,
        }
    )
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def a_kit(folder: Path, address: str, ca: bytes) -> Kit:
    pair = make_site_key_pair()
    (folder / "ca.crt").write_bytes(ca)
    (folder / "site.key").write_bytes(pair.private_key)
    (folder / "site.pub").write_bytes(pair.public_key)
    return Kit(address, folder / "ca.crt", folder / "site.key", "necrosis", FEDERATION_ID)


AUTHORITY = make_certificate_authority("one", now=NOW - timedelta(days=2), lifetime=timedelta(days=9))
CONFIG: SiteConfig = parse_site_config(
    "name: hospital-a\ndata: {table: t.tsv}\nlabel_map: {n: 1, r: 0}\ncache: cache\n", origin="site.yaml"
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def a_gateway(folder: Path, *, hosts: list[str], lifetime: timedelta) -> tuple[Gateway, ThreadingHTTPServer]:
    gateway = Gateway()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            gateway.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            reply = gateway.reply if isinstance(gateway.reply, bytes) else json.dumps(gateway.reply).encode()
            self.send_response(gateway.status)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    certificate, key = make_server_certificate(AUTHORITY, hosts=hosts, now=NOW - timedelta(days=2), lifetime=lifetime)
    (folder / "server.crt").write_bytes(certificate)
    (folder / "server.key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # refused handshakes
    gateway.port = server.server_address[1]
    return gateway, server


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway, server = a_gateway(tmp_path, hosts=["127.0.0.1"], lifetime=timedelta(days=9))
    with served(server):
        yield gateway


@pytest.fixture
def kit(tmp_path: Path, gateway: Gateway) -> Kit:
    return a_kit(tmp_path, f"127.0.0.1:{gateway.port}", AUTHORITY.certificate)


def test_hello_is_signed_with_the_site_s_key_and_says_what_is_installed(kit: Kit, gateway: Gateway) -> None:
    reply = say_hello(kit, CONFIG, now=NOW - timedelta(seconds=30))

    assert (reply.federation, reply.site) == ("necrosis", "hospital-a")
    assert clock_difference(reply, now=NOW - timedelta(seconds=30)) == timedelta(seconds=30)
    [(path, headers, body)] = gateway.requests
    assert path == "/v1/gliorn/hello"
    assert verified_key(headers, NOW) == load_ssh_public_key((kit.folder / "site.pub").read_bytes())
    said = json.loads(body)
    assert said["site"] == "hospital-a"
    assert said["federation_id"] == FEDERATION_ID
    assert said["bundle_digest"] == bundle_digest(installed_bundle())
    [trusted] = certificates_in(AUTHORITY.certificate, origin="ca")
    assert said["authorities"] == [certificate_digest(trusted)]


def test_site_that_trusts_two_authorities_names_both_and_reaches_a_coordinator_of_either(
    kit: Kit, gateway: Gateway
) -> None:
    other = make_certificate_authority("two", now=NOW, lifetime=timedelta(days=9))
    kit.ca_certificate.write_bytes(other.certificate + AUTHORITY.certificate)

    say_hello(kit, CONFIG, now=NOW)

    assert len(json.loads(gateway.requests[0][2])["authorities"]) == 2


def test_kit_from_another_federation_fails_by_what_the_coordinator_says(kit: Kit, gateway: Gateway) -> None:
    assert isinstance(gateway.reply, dict)
    gateway.reply["federation_id"] = "0" * 32

    with pytest.raises(HelloError, match="a kit from another federation; ask the coordinator") as error:
        say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == "other-federation"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unknown-key", r"has not admitted this site's key \(SHA256:.*; send it the request"),
        ("revoked", "has revoked this site's key .*; ask it why"),
        ("other-federation", "a kit from another federation"),
        ("clock", r"differ by 900 s; set this machine's clock \(NTP\)"),
        ("forged", r"does not accept this site's signature \(forged\)"),
    ],
)
def test_refusal_says_what_to_do(kit: Kit, gateway: Gateway, fault: str, words: str) -> None:
    gateway.status, gateway.reply = 401, {"fault": fault, "time": NOW.isoformat()}

    with pytest.raises(HelloError, match=words) as error:
        say_hello(kit, CONFIG, now=NOW + timedelta(seconds=900))

    assert error.value.fault == fault
    assert error.value.clock_difference == timedelta(seconds=-900)


@pytest.mark.parametrize(
    ("status", "reply", "fault"),
    [
        (404, b"", "not-a-gateway"),
        (200, b"<html>hello</html>", "not-a-gateway"),
        (200, {"federation": "necrosis"}, "not-a-gateway"),
        (200, b" " * (9 * 2**20), "not-a-gateway"),
        (401, b"", "not-a-gateway"),
        (302, b"", "not-a-gateway"),
        (503, b"", "unavailable"),
        (429, b"", "unavailable"),
    ],
)
def test_answer_of_something_else_is_told_from_a_coordinator_that_is_not_ready(
    kit: Kit, gateway: Gateway, status: int, reply: bytes | dict[str, Any], fault: str
) -> None:
    gateway.status, gateway.reply = status, reply

    with pytest.raises(HelloError) as error:
        say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == fault


def test_answer_that_would_forge_lines_in_a_terminal_is_refused_and_not_repeated(kit: Kit, gateway: Gateway) -> None:
    assert isinstance(gateway.reply, dict)
    gateway.reply |= {"version": "0.2\nconnected", "federation": "\x1b[2K", "studies": [{"\x1b[31m": 1}]}

    with pytest.raises(HelloError, match="its answer is unreadable: federation, studies, version") as error:
        say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == "not-a-gateway"
    assert str(error.value).isprintable()


def test_site_that_trusts_many_authorities_names_the_first_of_them(kit: Kit, gateway: Gateway) -> None:
    kit.ca_certificate.write_bytes(AUTHORITY.certificate * 9)

    say_hello(kit, CONFIG, now=NOW)

    assert len(json.loads(gateway.requests[0][2])["authorities"]) == 8


def test_authority_that_the_kit_does_not_know_is_refused_before_anything_is_said(kit: Kit, gateway: Gateway) -> None:
    other = make_certificate_authority("two", now=NOW, lifetime=timedelta(days=9))
    kit.ca_certificate.write_bytes(other.certificate)

    with pytest.raises(HelloError, match=r"is not the coordinator that .* vouches for .*proxy that opens TLS") as error:
        say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == "certificate"
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("hosts", "lifetime", "words"),
    [
        (["127.0.0.1"], timedelta(days=1), "certificate has expired"),
        (["elsewhere.org"], timedelta(days=9), "IP address mismatch"),
    ],
)
def test_certificate_that_has_expired_or_is_for_another_host_is_named(
    tmp_path: Path, hosts: list[str], lifetime: timedelta, words: str
) -> None:
    gateway, server = a_gateway(tmp_path, hosts=hosts, lifetime=lifetime)
    kit = a_kit(tmp_path, f"127.0.0.1:{gateway.port}", AUTHORITY.certificate)

    with served(server), pytest.raises(HelloError, match=words) as error:
        say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == "certificate"


def test_nobody_at_the_address_is_unreachable(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        kit = a_kit(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}", AUTHORITY.certificate)

        with pytest.raises(HelloError, match=r"cannot be reached .*firewall") as error:
            say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == "unreachable"


def test_plain_http_at_the_address_is_not_taken_for_the_coordinator(tmp_path: Path) -> None:
    class Plain(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    kit = a_kit(tmp_path, f"127.0.0.1:{server.server_address[1]}", AUTHORITY.certificate)

    with served(server), pytest.raises(HelloError) as error:
        say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == "unreachable"


class Tunnel(BaseHTTPRequestHandler):
    """A proxy that opens tunnels to wherever it is asked."""

    asked: list[str]
    status = 200

    def do_CONNECT(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.end_headers()
        if self.status != 200:
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            ends: dict[socket.socket, socket.socket] = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    piece = end.recv(65536)
                    if not piece:
                        return
                    ends[end].sendall(piece)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def start_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[str]]]:
    stops = []

    def start(status: int) -> list[str]:
        asked: list[str] = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("ATunnel", (Tunnel,), {"asked": asked, "status": status}))
        running = served(server)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{running.__enter__()}")
        stops.append(running)
        return asked

    yield start
    for running in stops:
        running.__exit__(None, None, None)


def test_proxy_of_the_environment_is_used_and_sees_only_a_tunnel(
    kit: Kit, start_proxy: Callable[[int], list[str]]
) -> None:
    asked = start_proxy(200)

    say_hello(kit, CONFIG, now=NOW)

    assert asked == [kit.address]


def test_proxy_that_refuses_is_named_as_the_cause(kit: Kit, start_proxy: Callable[[int], list[str]]) -> None:
    start_proxy(407)

    with pytest.raises(HelloError, match=r"proxy that the environment names did not let .* through \(407") as error:
        say_hello(kit, CONFIG, now=NOW)

    assert error.value.fault == "proxy"


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_proxy_that_cannot_be_used_is_a_fault_of_the_environment(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    with pytest.raises(HelloError, match=r"cannot be used .* write it as http://host:port in HTTPS_PROXY"):
        say_hello(kit, CONFIG, now=NOW)


def test_encrypted_or_foreign_key_file_is_refused(kit: Kit) -> None:
    kit.private_key.write_text("-----BEGIN NOTHING-----\n")

    with pytest.raises(ConfigError, match=r"site.key: not a site's key, expected an unencrypted ECDSA key"):
        say_hello(kit, CONFIG, now=NOW)
