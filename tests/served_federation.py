"""A federation's folder with admitted sites, and `gliorn-server start` on it as a process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from common.site_signature import key_fingerprint
from server.federation_folder import AdmittedSite, FederationFolder
from server.processes import free_ports, stop_group
from server.provisioning import make_certificate_authority, make_server_certificate, make_site_key_pair

DEADLINE_S = 180.0
"""When a test gives up waiting for something on a busy machine; nothing is measured against it."""


def write_federation(
    path: Path, sites: Sequence[str] = (), *, lifetime: timedelta = timedelta(days=90)
) -> FederationFolder:
    """Write a federation on loopback with free ports; the key of each admitted site is in `keys/SITE/site.key`."""
    folder = FederationFolder(path)
    for part in (folder.path, folder.authority, folder.gateway, folder.superlink, folder.runs, folder.logs):
        part.mkdir(parents=True, exist_ok=True)
    port, superlink_port = free_ports(2)
    config = {
        "name": "tiny",
        "id": "0" * 32,
        "hosts": ["127.0.0.1"],
        "port": port,
        "listen": "127.0.0.1",
        "superlink_port": superlink_port,
    }
    folder.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    now = datetime.now(UTC)
    authority = make_certificate_authority("tiny", now=now - timedelta(days=1000), lifetime=timedelta(days=2000))
    begin = min(now, now + lifetime - timedelta(days=1))
    certificate, key = make_server_certificate(
        authority, hosts=["127.0.0.1", "localhost"], now=begin, lifetime=now + lifetime - begin
    )
    folder.authorities.write_bytes(authority.certificate)
    folder.certificate_key.write_bytes(key)
    folder.certificate.write_bytes(certificate)
    folder.write_register([admit_new_site(folder, name) for name in sites])
    return folder


def admit_new_site(folder: FederationFolder, name: str) -> AdmittedSite:
    """A site with a new key, which is left in `keys/`; the register stays as it is."""
    pair = make_site_key_pair()
    home = folder.path / "keys" / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "site.key").write_bytes(pair.private_key)
    (home / "site.key").chmod(0o600)
    key = serialization.load_ssh_public_key(pair.public_key)
    assert isinstance(key, EllipticCurvePublicKey)
    return AdmittedSite(name, pair.public_key.decode().strip(), key_fingerprint(key), datetime.now(UTC).isoformat())


@dataclass
class Server:
    """`gliorn-server start`, and what it has said."""

    folder: FederationFolder
    environment: Mapping[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def start(self) -> "Server":
        """Start it; returns at once."""
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "gliorn-server"), "start", "--federation", str(self.folder.path)],
            env=os.environ | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"} | dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip() for line in self.process.stdout)

    def wait_for(self, text: str, *, after: int = 0) -> int:
        """Wait until it says something; returns how many lines it had said by then."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            for number, line in enumerate(list(self.lines)[after:], start=after + 1):
                if text in line:
                    return number
            if self.process.poll() is not None:
                time.sleep(0.5)
                break
            time.sleep(0.1)
        raise AssertionError(f"never said {text!r}:\n" + "\n".join(self.lines))

    def end(self) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """Send SIGKILL: what it started is left behind."""
        self.process.kill()
        self.process.wait()

    def clear_away(self) -> None:
        """End it and all that it started, also what was left behind by one that was killed."""
        stop_group(self.process, patience_s=15.0)
        end_all_of(self.folder.path)


def processes_of(path: Path) -> dict[int, str]:
    """Command lines of the processes that have a folder in their command line or environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            told = (process / "environ").read_bytes() + command
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it ended while we looked, or is not ours
            continue
        if str(path).encode() in told and int(process.name) != os.getpid() and state != "Z":
            found[int(process.name)] = command.replace(b"\0", b" ").decode()
    return found


def end_all_of(path: Path) -> None:
    """Kill all processes of a test's own folder."""
    for pid in processes_of(path):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
