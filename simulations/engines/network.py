"""A real Flower deployment on loopback: SuperLink with TLS, one authenticated SuperNode process per site.

Everything that is started is stopped again, with its children, whatever happens.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO

from client.config import ServerSpec, read_site_config
from client.join import start_supernode
from common.flower_environment import flower_environment
from server.app import RUN_KEY, RUNS_VARIABLE
from server.provisioning import make_certificate_authority, make_server_certificate, make_site_key_pair
from simulations.engines.launch import EngineError, Launch
from simulations.engines.processes import free_ports, stop_group

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
LIFETIME = timedelta(days=2)
FEDERATION = "loopback"


def run_network(launch: Launch) -> None:
    """Carry a run over real processes; returns when Flower says that the run has ended.

    Raises:
        EngineError: If a process does not start, or the run fails.
    """
    assert not launch.faults, "the network engine runs the sites' own programs"
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gliorn-")))
        log = stack.enter_context((launch.folder.path / "engine.log").open("ab"))
        link = stack.enter_context(_superlink(launch, home, log))
        for name in launch.sites:
            link.register(name)
        ports = free_ports(len(launch.sites))
        for (name, path), port in zip(launch.sites.items(), ports, strict=True):
            stack.enter_context(_supernode(name, path, port=port, link=link, log=log))
        link.run(launch.folder.name)


@dataclass(frozen=True)
class _SuperLink:
    process: "subprocess.Popen[bytes]"
    address: str
    pki: Path
    environment: Mapping[str, str]
    log_path: Path

    def cli(self, *arguments: str) -> dict[str, object]:
        """Run a command of Flower's CLI and return what it prints as JSON."""
        done = subprocess.run(
            [str(_programs() / "flwr"), *arguments, "--format", "json"],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        try:
            values = json.loads(done.stdout)
        except ValueError:
            values = None
        if done.returncode != 0 or not isinstance(values, dict) or values.get("success") is False:
            raise EngineError(
                f"`flwr {arguments[0]}` failed: {(done.stdout + done.stderr).strip()[-600:]}; see {self.log_path}"
            )
        return values

    def register(self, site: str) -> None:
        """Make a key pair for a site and register its public half under the site's name."""
        pair = make_site_key_pair()
        _write_secret(self.pki / f"{site}.key", pair.private_key)
        (self.pki / f"{site}.pub").write_bytes(pair.public_key)
        self.cli("supernode", "register", str(self.pki / f"{site}.pub"), FEDERATION, "--name", site)

    def run(self, name: str) -> None:
        """Submit the run and wait for its end."""
        bundle = files("common") / "flower_app"
        with as_file(bundle) as folder:
            submitted = self.cli("run", str(folder), FEDERATION, "--run-config", f'{RUN_KEY}="{name}"')
        run_id = str(submitted["run-id"])
        while True:
            status = _status_of(self.cli("list", "--run-id", run_id, FEDERATION), run_id)
            if status.startswith("finished"):
                break
            if self.process.poll() is not None:
                raise EngineError(f"the SuperLink ended with status {self.process.returncode}; see {self.log_path}")
            time.sleep(1.0)
        if status != "finished:completed":
            raise EngineError(f"the run ended as {status}; see {self.log_path}")


def _status_of(listing: Mapping[str, object], run_id: str) -> str:
    runs = listing.get("runs")
    assert isinstance(runs, list), f"unexpected answer of `flwr list`: {listing}"
    return next(str(run["status"]) for run in runs if str(run["run-id"]) == run_id)


@contextmanager
def _superlink(launch: Launch, home: Path, log: IO[bytes]) -> Iterator[_SuperLink]:
    pki = home / "pki"
    pki.mkdir()
    now = datetime.now(UTC)
    authority = make_certificate_authority("gliorn loopback", now=now, lifetime=LIFETIME)
    certificate, key = make_server_certificate(authority, hosts=[HOST, "localhost"], now=now, lifetime=LIFETIME)
    (pki / "ca.crt").write_bytes(authority.certificate)
    (pki / "server.crt").write_bytes(certificate)
    _write_secret(pki / "server.key", key)
    (port,) = free_ports(1)
    address = f"{HOST}:{port}"
    server_home, cli_home = home / "server", home / "cli"
    server_home.mkdir()
    cli_home.mkdir()
    (cli_home / "config.toml").write_text(
        f'[superlink]\ndefault = "{FEDERATION}"\n[superlink.{FEDERATION}]\n'
        f'address = "{address}"\nroot-certificates = {json.dumps(str(pki / "ca.crt"))}\n',
        encoding="utf-8",
    )
    command = [
        *(str(_programs() / "flower-superlink"), "--host", HOST, "--port", str(port)),
        *("--ssl-ca-certfile", str(pki / "ca.crt")),
        *("--ssl-certfile", str(pki / "server.crt"), "--ssl-keyfile", str(pki / "server.key")),
        *("--enable-supernode-auth", "--database", str(home / "state.db")),
        "--disable-runtime-dependency-installation",
    ]
    environment = flower_environment(os.environ, home=str(server_home), programs=str(_programs()))
    environment |= {RUNS_VARIABLE: str(launch.folder.path.resolve().parent)}
    environment |= {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    cli_environment = flower_environment(os.environ, home=str(cli_home), programs=str(_programs()))
    try:
        _wait_for_port(process, port, Path(log.name))
        yield _SuperLink(process, address, pki, cli_environment, Path(log.name))
    finally:
        stop_group(process, patience_s=2.0)


@contextmanager
def _supernode(name: str, path: Path, *, port: int, link: _SuperLink, log: IO[bytes]) -> Iterator[None]:
    config = read_site_config(path)
    server = ServerSpec(address=link.address, ca_certificate=link.pki / "ca.crt", private_key=link.pki / f"{name}.key")
    config = config.model_copy(update={"server": server})
    environment = dict(os.environ) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    process = start_supernode(config, path, port=port, environment=environment, log=log)
    try:
        yield
    finally:
        stop_group(process, patience_s=2.0)


def _wait_for_port(process: "subprocess.Popen[bytes]", port: int, log_path: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.1)
    raise EngineError(f"the SuperLink did not begin to listen within {START_TIMEOUT_S:.0f} s; see {log_path}")


def _write_secret(path: Path, payload: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(payload)


def _programs() -> Path:
    return Path(sys.executable).parent
