"""What becomes of a call whose connection is cut within TLS, against a real server on loopback."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from client.flower_private import passes_by_itself
from server.provisioning import make_certificate_authority
from tests.network_faults import ConnectProxy, Cut, TcpProxy
from tests.tiny_gateway import YEAR, TinyGateway, TinyServers

BODY = bytes(300_000)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[TinyServers]:
    servers = TinyServers(tmp_path)
    yield servers
    servers.stop()


def _serve(servers: TinyServers, *, lifetime: timedelta = YEAR) -> TinyGateway:
    authority = make_certificate_authority("one", now=datetime.now(UTC), lifetime=YEAR)
    return servers.https(TinyGateway(authority), lifetime=lifetime)


def _failure(gateway: TinyGateway, port: int) -> httpx.TransportError:
    trust = ssl.create_default_context(cadata=gateway.authority.certificate.decode())
    with httpx.Client(verify=trust, trust_env=False, timeout=1) as client, pytest.raises(httpx.TransportError) as told:
        client.post(f"https://localhost:{port}/v1/fleet/push-object", content=BODY)
    return told.value


@pytest.mark.parametrize("how", ["close", "reset", "silence"])
@pytest.mark.parametrize("after_bytes", [1, 300, 5_000, 150_000])
def test_call_that_is_cut_is_tried_again(gateway: TinyServers, after_bytes: int, how: Cut) -> None:
    served = _serve(gateway)
    with TcpProxy(served.port) as proxy:
        proxy.plan_cut(after_bytes, how)

        error = _failure(served, proxy.port)

    assert proxy.cuts == 1
    assert passes_by_itself(error)


def test_expired_certificate_passes_and_a_foreign_one_does_not(gateway: TinyServers) -> None:
    expired = _serve(gateway, lifetime=timedelta(hours=1))  # it counts from yesterday
    foreign = _serve(gateway)
    foreign.authority = make_certificate_authority("another", now=datetime.now(UTC), lifetime=YEAR)

    assert passes_by_itself(_failure(expired, expired.port))
    assert not passes_by_itself(_failure(foreign, foreign.port))


def test_refusal_of_a_proxy_passes() -> None:
    with (
        ConnectProxy() as proxy,
        httpx.Client(proxy=f"http://127.0.0.1:{proxy.port}") as client,
        pytest.raises(httpx.ProxyError) as told,
    ):
        client.post("https://coordinator.invalid:9092/v1/fleet/pull-messages")

    assert proxy.asked == ["CONNECT coordinator.invalid:9092"]
    assert passes_by_itself(told.value)
