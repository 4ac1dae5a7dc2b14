"""The rehearsed connection, over real TLS on loopback: what each fault is told as, and what is said to do."""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from client.config import DataSource, ServerSpec, SiteConfig
from client.kit import Kit, kit_of
from client.rehearsal.connection import Connection, rehearse_connection
from client.rehearsal.findings import Finding
from client.rehearsal.route import Route, route_to
from common.errors import ConfigError
from common.hello import HelloFault
from server.provisioning import CertificateAuthority, make_certificate_authority, make_site_key_pair
from tests.tiny_gateway import FEDERATION_ID, YEAR, TinyGateway, TinyServers


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return make_certificate_authority("federation one", now=datetime.now(UTC) - timedelta(days=1), lifetime=YEAR)


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[TinyServers]:
    servers = TinyServers(tmp_path)
    yield servers
    servers.stop()


@dataclass(frozen=True)
class Member:
    """A site with a kit for a coordinator."""

    config: SiteConfig
    kit: Kit

    def rehearse(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Connection:
        return rehearse_connection(self.config, self.kit, environment=environment or {}, clock=clock, timeout_s=5)


@pytest.fixture
def member(tmp_path: Path) -> Callable[..., Member]:
    def make(coordinator: TinyGateway, *, host: str = "127.0.0.1", name: str = "a") -> Member:
        folder = tmp_path / "federation"
        folder.mkdir()
        (folder / "ca.crt").write_bytes(coordinator.authority.certificate)
        (folder / "site.key").write_bytes(make_site_key_pair().private_key)
        (folder / "site.key").chmod(0o600)
        config = SiteConfig(
            name=name,
            data=DataSource(table=tmp_path / "table.tsv"),
            label_map={"n": 1, "r": 0},
            cache=tmp_path / "cache",
            server=ServerSpec(
                address=f"{host}:{coordinator.port}",
                ca_certificate=folder / "ca.crt",
                private_key=folder / "site.key",
                federation="one",
                federation_id=FEDERATION_ID,
            ),
        )
        return Member(config, kit_of(config, origin=tmp_path / "site.yaml"))

    return make


def one(connection: Connection, name: str) -> Finding:
    found = [finding for finding in connection.findings if finding.name == name]
    assert len(found) == 1, connection.findings
    return found[0]


def failures(connection: Connection) -> list[str]:
    return [finding.name for finding in connection.findings if finding.level == "FAIL"]


def test_a_good_membership_passes_every_step(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority))

    connection = member(coordinator).rehearse()

    assert [(finding.name, finding.level) for finding in connection.findings] == [
        (name, "ok")
        for name in (
            *("key", "key file", "authority", "name", "TCP", "TLS"),
            *("clock", "federation", "admission", "bundle", "version"),
        )
    ]
    assert f"directly to 127.0.0.1:{coordinator.port}" in one(connection, "TCP").found
    assert "for localhost, 127.0.0.1 and valid for 363 days" in one(connection, "TLS").found
    assert connection.reply is not None


def test_a_name_that_does_not_exist_is_told(authority: CertificateAuthority, member: Callable[..., Member]) -> None:
    connection = member(TinyGateway(authority, port=9092), host="gateway.nowhere.invalid").rehearse()

    assert failures(connection) == ["name"]
    assert "gateway.nowhere.invalid" in one(connection, "name").found
    assert "not tried: the coordinator is not reached" in one(connection, "hello").found


def test_a_closed_port_is_told(authority: CertificateAuthority, member: Callable[..., Member]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        connection = member(TinyGateway(authority, port=closed.getsockname()[1])).rehearse()

    assert failures(connection) == ["TCP"]
    assert "nothing listens on port" in one(connection, "TCP").found
    assert "gliorn-server start" in one(connection, "TCP").advice


def test_a_plain_http_server_is_told_as_such(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    connection = member(serve.http(TinyGateway(authority))).rehearse()

    assert failures(connection) == ["TLS"]
    assert "a plain-HTTP server answers at 127.0.0.1:" in one(connection, "TLS").found


def test_a_server_that_hangs_up_in_the_handshake_is_told(
    authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        connection = member(TinyGateway(authority, port=listener.getsockname()[1])).rehearse()
        thread.join()

    assert failures(connection) == ["TLS"]
    assert "firewall" in one(connection, "TLS").advice


def test_an_expired_certificate_fails(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority), begin=timedelta(days=-30, hours=-1), lifetime=timedelta(days=10))

    connection = member(coordinator).rehearse()

    assert failures(connection) == ["TLS"]
    assert "expired 21 days ago" in one(connection, "TLS").found
    assert "gliorn-server certs renew" in one(connection, "TLS").advice


def test_an_authority_that_expired_fails_by_its_file(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    old = make_certificate_authority("old", now=datetime.now(UTC) - YEAR, lifetime=timedelta(days=300))

    connection = member(serve.https(TinyGateway(old))).rehearse()

    assert failures(connection) == ["authority", "TLS"]
    assert "an authority in " in one(connection, "TLS").found


def test_a_certificate_from_the_future_points_to_the_clock(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority), begin=timedelta(days=2))

    connection = member(coordinator).rehearse()

    assert failures(connection) == ["TLS"]
    assert "clock says" in one(connection, "TLS").found


def test_a_certificate_that_soon_expires_is_a_warning(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority), lifetime=timedelta(days=30))

    connection = member(coordinator).rehearse()

    assert failures(connection) == []
    assert (one(connection, "TLS").level, "28 days more" in one(connection, "TLS").found) == ("warning", True)


def test_a_certificate_of_another_host_names_its_hosts(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority), hosts=("federation.example.org",))

    connection = member(coordinator).rehearse()

    assert failures(connection) == ["TLS"]
    assert "is for federation.example.org, not for 127.0.0.1" in one(connection, "TLS").found


def test_an_intercepting_proxy_is_named_by_its_authority(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    corporate = make_certificate_authority("Corporate Proxy CA", now=datetime.now(UTC) - YEAR / 2, lifetime=YEAR)
    coordinator = serve.https(TinyGateway(authority), signed_by=corporate)

    connection = member(coordinator).rehearse()

    assert failures(connection) == ["TLS"]
    assert "issued by CN=Corporate Proxy CA was presented instead of the federation's (CN=federation one)" in (
        one(connection, "TLS").found
    )
    assert f"exempt 127.0.0.1:{coordinator.port} from TLS inspection" in one(connection, "TLS").advice


def test_another_federation_s_authority_is_told_as_such(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    other = make_certificate_authority("gliorn two CA 1", now=datetime.now(UTC) - YEAR / 2, lifetime=YEAR)

    connection = member(serve.https(TinyGateway(authority), signed_by=other)).rehearse()

    assert failures(connection) == ["TLS"]
    assert "issued by CN=gliorn two CA 1 was presented" in one(connection, "TLS").found
    assert "a kit from another federation" in one(connection, "TLS").found


def test_an_authority_of_the_same_name_is_told_as_another_federation_s(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    twin = make_certificate_authority("federation one", now=datetime.now(UTC) - YEAR / 2, lifetime=YEAR)

    connection = member(serve.https(TinyGateway(authority), signed_by=twin)).rehearse()

    assert failures(connection) == ["TLS"]
    assert "but is another one" in one(connection, "TLS").found


@pytest.mark.parametrize(
    ("fault", "name", "told"),
    [
        pytest.param("unknown-key", "admission", "has not admitted this site's key (SHA256:", id="unknown key"),
        pytest.param("revoked", "admission", "has revoked this site's key", id="revoked"),
        pytest.param("other-federation", "federation", "of another federation than this kit", id="other federation"),
        pytest.param("forged", "signature", "does not accept this site's signature", id="changed headers"),
    ],
)
def test_what_the_coordinator_knows_of_the_key_is_told(
    fault: HelloFault,
    name: str,
    told: str,
    serve: TinyServers,
    authority: CertificateAuthority,
    member: Callable[..., Member],
) -> None:
    connection = member(serve.https(TinyGateway(authority, fault=fault))).rehearse()

    assert failures(connection) == [name]
    assert told in one(connection, name).found
    assert one(connection, name).advice
    assert one(connection, "clock").level == "ok"
    assert connection.reply is None


def test_a_kit_from_another_federation_fails_by_its_id(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority, changes={"federation_id": "f" * 32, "federation": "two"}))

    connection = member(coordinator).rehearse()

    assert failures(connection) == ["federation"]
    assert "a kit from another federation" in one(connection, "federation").found


@pytest.mark.parametrize(
    ("ahead_s", "level", "told"),
    [
        pytest.param(60, "warning", "s behind the coordinator's", id="a minute behind"),
        pytest.param(-4.5, "warning", "s ahead of the coordinator's", id="seconds ahead"),
        pytest.param(400, "FAIL", "s behind the coordinator's", id="too far behind"),
        pytest.param(-60, "FAIL", "s ahead of the coordinator's", id="too far ahead"),
    ],
)
def test_a_clock_that_is_off_is_measured(
    ahead_s: float,
    level: str,
    told: str,
    serve: TinyServers,
    authority: CertificateAuthority,
    member: Callable[..., Member],
) -> None:
    coordinator = serve.https(TinyGateway(authority, ahead=timedelta(seconds=ahead_s)))

    clock = one(member(coordinator).rehearse(), "clock")

    assert clock.level == level
    assert told in clock.found
    assert "NTP" in clock.advice


def test_a_refusal_for_the_clock_is_told_once_with_the_difference(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority, fault="clock", ahead=timedelta(seconds=-120)))

    connection = member(coordinator).rehearse()

    assert failures(connection) == ["clock"]
    assert "signatures count from 5 s ahead to 300 s behind" in one(connection, "clock").found


def test_another_bundle_fails_and_another_version_alone_is_a_warning(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    coordinator = serve.https(TinyGateway(authority, changes={"version": "9.9", "bundle_digest": "b" * 64}))
    site = member(coordinator)

    other_bundle = site.rehearse()
    del coordinator.changes["bundle_digest"]
    other_version = site.rehearse()

    assert failures(other_bundle) == ["bundle"]
    assert "bbbbbbbbbbbbbbbb…" in one(other_bundle, "bundle").found
    assert "gliorn==9.9" in one(other_bundle, "bundle").advice
    assert failures(other_version) == []
    assert one(other_version, "version").level == "warning"


def test_a_key_admitted_under_another_name_fails(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    connection = member(serve.https(TinyGateway(authority, changes={"site": "b"}))).rehearse()

    assert failures(connection) == ["admission"]
    assert "write name: b in site.yaml" in one(connection, "admission").advice


@pytest.mark.parametrize("status", [404, 503])
def test_an_answer_that_is_no_hello_is_told(
    status: int, serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    connection = member(serve.https(TinyGateway(authority, status=status))).rehearse()

    assert failures(connection) == ["hello"]
    assert f"HTTP {status}" in one(connection, "hello").found


def test_a_new_authority_that_is_rolled_in_is_named(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    new = make_certificate_authority("federation one, 2nd", now=datetime.now(UTC), lifetime=YEAR)
    both = (authority.certificate + new.certificate).decode()

    connection = member(serve.https(TinyGateway(authority, changes={"authorities": both}))).rehearse()

    assert failures(connection) == []
    assert "federation one\\, 2nd" in one(connection, "authorities").found


def test_a_key_that_others_can_read_fails_though_the_rest_passes(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    site = member(serve.https(TinyGateway(authority)))
    site.kit.private_key.chmod(0o644)

    connection = site.rehearse()

    assert failures(connection) == ["key file"]
    assert "mode 0644" in one(connection, "key file").found
    assert one(connection, "key file").advice == f"chmod 600 {site.kit.private_key}"
    assert connection.reply is not None


def test_a_file_that_is_no_key_fails_and_the_way_is_walked_all_the_same(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    site = member(serve.https(TinyGateway(authority)))
    site.kit.private_key.write_text("-----BEGIN NOTHING-----\n")

    connection = site.rehearse()

    assert failures(connection) == ["key"]
    assert one(connection, "TLS").level == "ok"
    assert "the site's key cannot be used" in one(connection, "hello").found


def test_a_file_without_an_authority_fails(authority: CertificateAuthority, member: Callable[..., Member]) -> None:
    site = member(TinyGateway(authority, port=1))
    site.kit.ca_certificate.write_text("nothing\n")

    connection = site.rehearse()

    assert failures(connection) == ["authority"]
    assert "no readable certificate" in one(connection, "authority").found


def test_days_left_of_authorities_are_told(authority: CertificateAuthority, member: Callable[..., Member]) -> None:
    old = make_certificate_authority("old", now=datetime.now(UTC) - YEAR, lifetime=timedelta(days=300))
    soon = make_certificate_authority("soon", now=datetime.now(UTC), lifetime=timedelta(days=20, hours=1))
    site = member(TinyGateway(authority, port=9092), host="nowhere.invalid")
    site.kit.ca_certificate.write_bytes(authority.certificate + soon.certificate + old.certificate)

    told = [finding for finding in site.rehearse().findings if finding.name == "authority"]

    assert [(finding.level, finding.found) for finding in told] == [
        ("ok", "CN=federation one is valid for 363 days more"),
        ("warning", "CN=soon is valid for 20 days more"),
        ("warning", "CN=old expired 66 days ago"),
    ]


def test_a_proxy_that_tunnels_is_used_and_named(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = serve.https(TinyGateway(authority))
    port, asked = serve.proxy()
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass%20word@127.0.0.1:{port}")

    connection = member(coordinator).rehearse(os.environ)

    assert failures(connection) == []
    assert f"through the proxy 127.0.0.1:{port} (HTTPS_PROXY)" in one(connection, "TCP").found
    assert asked == [f"127.0.0.1:{coordinator.port} Basic dXNlcjpwYXNzIHdvcmQ="] * 2  # the probe and the hello
    assert "pass" not in one(connection, "TCP").found


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        pytest.param("403 Forbidden", "ask IT to allow CONNECT to 127.0.0.1:", id="forbidden"),
        pytest.param("407 Proxy Authentication Required", "HTTPS_PROXY=http://user:password@host:port", id="login"),
    ],
)
def test_a_proxy_that_refuses_is_told_with_its_status(
    refusal: str,
    advice: str,
    serve: TinyServers,
    authority: CertificateAuthority,
    member: Callable[..., Member],
) -> None:
    port, _ = serve.proxy(refusal=refusal)

    connection = member(TinyGateway(authority, port=9092)).rehearse({"HTTPS_PROXY": f"http://127.0.0.1:{port}"})

    assert failures(connection) == ["proxy"]
    assert one(connection, "proxy").found.endswith(f"refuses CONNECT to 127.0.0.1:9092: {refusal}")
    assert advice in one(connection, "proxy").advice


def test_a_proxy_that_intercepts_is_told_through_it(
    serve: TinyServers, authority: CertificateAuthority, member: Callable[..., Member]
) -> None:
    corporate = make_certificate_authority("Corporate Proxy CA", now=datetime.now(UTC) - YEAR / 2, lifetime=YEAR)
    coordinator = serve.https(TinyGateway(authority), signed_by=corporate)
    port, asked = serve.proxy()

    connection = member(coordinator).rehearse({"https_proxy": f"127.0.0.1:{port}"})

    assert failures(connection) == ["TLS"]
    assert "CN=Corporate Proxy CA" in one(connection, "TLS").found
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("environment", "proxied"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"HTTP_PROXY": "http://p:1"}, False, id="for plain HTTP only"),
        pytest.param({"HTTPS_PROXY": "http://p:1"}, True, id="for HTTPS"),
        pytest.param({"all_proxy": "p:1"}, True, id="for all"),
        pytest.param({"HTTPS_PROXY": "http://p:1", "https_proxy": ""}, False, id="switched off in lower case"),
        pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, False, id="nothing proxied"),
        pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.org, example.org"}, False, id="domain exempt"),
        pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example.org"}, False, id="subdomains exempt"),
        pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "ample.org"}, True, id="only an ending of letters"),
        pytest.param({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "fed.example.org:1"}, True, id="another port exempt"),
    ],
)
def test_the_environment_decides_on_the_proxy_as_it_does_for_flower_s_http_client(
    environment: dict[str, str], proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)

    route = route_to("fed.example.org:9092", environment)

    assert replace(route, proxy=None) == Route("fed.example.org", 9092, None)
    assert (route.proxy is not None) == proxied
    with httpx.Client() as flowers:
        transport = flowers._transport_for_url(httpx.URL("https://fed.example.org:9092/"))
        assert (transport is not flowers._transport) == proxied


def test_a_proxy_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY names no HTTP proxy"):
        route_to("fed.example.org:9092", {"HTTPS_PROXY": "socks5://p:1"})
