"""A federation's folder with keys and certificates made on the spot, and its gateway as a process of its own."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from common.flower_environment import flower_environment
from common.site_signature import key_fingerprint, public_key_pem, signed_headers
from server.federation_folder import AdmittedSite, FederationFolder
from server.provisioning import (
    CertificateAuthority,
    make_certificate_authority,
    make_server_certificate,
    make_site_key_pair,
)

FEDERATION_ID = "0123456789abcdef0123456789abcdef"
HOST = "127.0.0.1"
_LIFETIME = timedelta(days=2)
_PROGRAMS = Path(sys.executable).parent
_TIMEOUT_S = 60.0


@dataclass
class SiteKey:
    """A site's key pair, as the site has it."""

    name: str
    private: ec.EllipticCurvePrivateKey
    private_file: Path
    public_text: str

    def headers(self, at: datetime | None = None) -> dict[str, str]:
        return signed_headers(self.private, datetime.now(UTC) if at is None else at)

    @property
    def pem(self) -> bytes:
        return public_key_pem(self.private.public_key())


def make_site_key(folder: Path, name: str) -> SiteKey:
    pair = make_site_key_pair()
    path = folder / f"{name}.key"
    path.write_bytes(pair.private_key)
    path.with_suffix(".pub").write_bytes(pair.public_key)
    key = load_ssh_private_key(pair.private_key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return SiteKey(name, key, path, pair.public_key.decode().strip())


def write_register(folder: FederationFolder, keys: Sequence[SiteKey], *, revoked: Sequence[str] = ()) -> None:
    folder.write_register(
        [
            AdmittedSite(
                name=key.name,
                public_key=key.public_text,
                fingerprint=_fingerprint(key.public_text),
                admitted_at=datetime.now(UTC).isoformat(),
                revoked_at=datetime.now(UTC).isoformat() if key.name in revoked else None,
            )
            for key in keys
        ]
    )


def _fingerprint(public_text: str) -> str:
    key = load_ssh_public_key(public_text.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key_fingerprint(key)


def make_federation(path: Path) -> tuple[FederationFolder, CertificateAuthority]:
    """A federation's folder with certificates for loopback, and nobody admitted."""
    folder = FederationFolder(path)
    now = datetime.now(UTC)
    for part in (folder.authority, folder.gateway, folder.superlink / "tls", folder.runs, folder.logs):
        part.mkdir(parents=True)
    folder.config.write_text(f'name: glioma\nid: "{FEDERATION_ID}"\nhosts: ["{HOST}"]\nlisten: "{HOST}"\n')
    authority = make_certificate_authority("glioma", now=now, lifetime=_LIFETIME)
    folder.authorities.write_bytes(authority.certificate)
    renew_certificate(folder, authority)
    inner = make_certificate_authority("loopback", now=now, lifetime=_LIFETIME)
    certificate, key = make_server_certificate(inner, hosts=[HOST], now=now, lifetime=_LIFETIME)
    (folder.superlink / "tls" / "ca.crt").write_bytes(inner.certificate)
    (folder.superlink / "tls" / "server.crt").write_bytes(certificate)
    (folder.superlink / "tls" / "server.key").write_bytes(key)
    return folder, authority


def renew_certificate(folder: FederationFolder, authority: CertificateAuthority) -> bytes:
    """Give the gateway a new certificate; returns it."""
    certificate, key = make_server_certificate(
        authority, hosts=[HOST, "localhost"], now=datetime.now(UTC), lifetime=_LIFETIME
    )
    folder.certificate_key.write_bytes(key)
    folder.certificate.write_bytes(certificate)
    return certificate


@dataclass
class RunningGateway:
    """A gateway that listens."""

    folder: FederationFolder
    port: int
    process: "subprocess.Popen[bytes]"
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder.authorities))

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"https://{HOST}:{self.port}", verify=self.trust, trust_env=False, timeout=_TIMEOUT_S
        )

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection((HOST, self.port), timeout=_TIMEOUT_S)
        return self.trust.wrap_socket(plain, server_hostname=HOST)

    def raw(self, request: bytes) -> bytes:
        """All that comes back until the gateway closes the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return answer

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + _TIMEOUT_S
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextmanager
def running_gateway(folder: FederationFolder, *, superlink_port: int) -> Iterator[RunningGateway]:
    ready, log_path = folder.path / "ready", folder.logs / "gateway.log"
    ready.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "server.gateway", str(folder.path), "--port", "0"),
        *("--superlink-port", str(superlink_port), "--ready-file", str(ready)),
    ]
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None)
        assert process.poll() is None, log_path.read_text()
        yield RunningGateway(folder, int(ready.read_text()), process, log_path)
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_superlink(folder: FederationFolder, *, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    tls = folder.superlink / "tls"
    secret = folder.superlink / "superexec.secret"
    secret.write_bytes(b"1f" * 32)
    command = [
        *(str(_PROGRAMS / "flower-superlink"), "--host", HOST, "--port", str(port), "--isolation", "process"),
        *("--ssl-ca-certfile", str(tls / "ca.crt"), "--ssl-certfile", str(tls / "server.crt")),
        *("--ssl-keyfile", str(tls / "server.key"), "--enable-supernode-auth"),
        *("--superexec-auth-secret-file", str(secret), "--database", str(folder.superlink / "state.db")),
        "--disable-runtime-dependency-installation",
    ]
    environment = flower_environment(os.environ, home=str(folder.superlink / "home"), programs=str(_PROGRAMS))
    with (folder.logs / "superlink.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, (folder.logs / "superlink.log").read_text()
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def flower_cli(folder: FederationFolder, port: int, *arguments: str) -> dict[str, object]:
    """What a command of Flower's CLI says as JSON; the connection's name goes between the first and the rest."""
    home = folder.superlink / "cli"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{HOST}:{port}"\n'
        f"root-certificates = {json.dumps(str(folder.superlink / 'tls' / 'ca.crt'))}\n"
    )
    environment = flower_environment(os.environ, home=str(home), programs=str(_PROGRAMS))
    command = [str(_PROGRAMS / "flwr"), *arguments, "--format", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    values = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert isinstance(values, dict)
    return values


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
