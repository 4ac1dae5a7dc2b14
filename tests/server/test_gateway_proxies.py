"""The sample configurations of proxies in front of the gateway, under the proxies themselves."""

import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from common.hello import HELLO_PATH, HelloReply
from server.gateway.limits import FLEET
from server.provisioning import CertificateAuthority
from tests.gateway_federation import (
    FEDERATION_ID,
    HOST,
    RunningGateway,
    SiteKey,
    free_port,
    make_federation,
    make_site_key,
    running_gateway,
    wait_until,
    write_register,
)

SAMPLES = Path(__file__).parents[2] / "docs" / "deploy"
NAME = "localhost"
"""The coordinator's name in these tests."""


@dataclass
class Coordinator:
    gateway: RunningGateway
    authority: CertificateAuthority
    site: SiteKey


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    home = tmp_path_factory.mktemp("proxied")
    folder, authority = make_federation(home / "federation")
    site = make_site_key(home, "site-a")
    write_register(folder, [site])
    with running_gateway(folder, superlink_port=free_port()) as gateway:
        yield Coordinator(gateway, authority, site)


def _filled_in(sample: str, *, port: int, gateway_port: int, folder: Path) -> Path:
    """The sample with the test's name and ports in place of its own."""
    text = (SAMPLES / sample).read_text()
    for old, new in {
        "federation.example.org": NAME,
        "listen 443;": f"listen {HOST}:{port};",
        "bind :443": f"bind {HOST}:{port}",
        "127.0.0.1:9092": f"127.0.0.1:{gateway_port}",
        "127.0.0.1:8443": f"127.0.0.1:{free_port()}",
        "/run/nginx.pid": str(folder / "nginx.pid"),
        "user www-data;\n": "",
    }.items():
        text = text.replace(old, new)
    path = folder / sample
    path.write_text(text)
    return path


@contextmanager
def _running(proxy: str, gateway: RunningGateway, folder: Path) -> Iterator[int]:
    program = shutil.which(proxy, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip(f"{proxy} is not installed")
    port = free_port()
    sample = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[proxy]
    config = _filled_in(sample, port=port, gateway_port=gateway.port, folder=folder)
    command = {
        "nginx": [program, "-c", str(config), "-e", "stderr", "-g", "daemon off;"],
        "haproxy": [program, "-db", "-f", str(config)],
    }[proxy]
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None)
        said = (folder / "proxy.log").read_text()
        if 'unknown directive "stream"' in said:
            pytest.skip("nginx is installed without its stream module")
        assert process.poll() is None, said
        yield port
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
def test_proxy_passes_the_coordinator_s_name_on_unopened(coordinator: Coordinator, proxy: str, tmp_path: Path) -> None:
    gateway, site = coordinator.gateway, coordinator.site
    hello = {
        "site": "site-a",
        "federation_id": FEDERATION_ID,
        "version": "1",
        "bundle_digest": "0f" * 32,
        "authorities": [],
    }
    presented = x509.load_pem_x509_certificate(gateway.folder.certificate.read_bytes())
    with _running(proxy, gateway, tmp_path) as port:
        address = f"https://{NAME}:{port}"
        with httpx.Client(base_url=address, verify=gateway.trust, trust_env=False, timeout=60) as client:
            reply = client.post(HELLO_PATH, json=hello, headers=site.headers())
            assert HelloReply.model_validate_json(reply.content).site == "site-a"
            assert client.post(FLEET + "pull-messages").status_code == 401
            assert client.get("/docs").status_code == 404
            large = random.Random(1).randbytes(6 * 2**20)
            assert client.post(FLEET + "push-object", content=large, headers=site.headers()).status_code in (403, 503)

        plain = socket.create_connection((HOST, port), timeout=60)
        with gateway.trust.wrap_socket(plain, server_hostname=NAME) as connection:
            seen = connection.getpeercert(binary_form=True)
        assert seen is not None
        assert x509.load_der_x509_certificate(seen) == presented


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
def test_proxy_passes_nothing_else_on_to_the_gateway(coordinator: Coordinator, proxy: str, tmp_path: Path) -> None:
    with _running(proxy, coordinator.gateway, tmp_path) as port:
        for other_name in ("www.example.org", None):
            untrusting = ssl.create_default_context()
            untrusting.check_hostname, untrusting.verify_mode = False, ssl.CERT_NONE
            plain = socket.create_connection((HOST, port), timeout=60)
            with plain, pytest.raises((ssl.SSLError, ConnectionError)):  # to a web server that is not there
                untrusting.wrap_socket(plain, server_hostname=other_name)
        with socket.create_connection((HOST, port), timeout=60) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            with suppress(ConnectionError):
                assert plain.recv(100) == b""
