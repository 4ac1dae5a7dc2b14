"""Flower's SuperLink and SuperExec as this program runs them, and Flower's command line as it is asked for things.

The SuperLink listens on the loopback address alone and speaks TLS with a certificate of an authority made for it and
known to nobody else. Its queue of tasks is guarded by a secret that only the SuperExec knows. Every user of the machine
can reach the port and submit a run, but the SuperExec finds programs that run the installed ServerApp alone
(`server/guard.py`).
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from importlib.resources import as_file, files
from pathlib import Path

from cryptography import x509

from common.errors import GliornError
from common.flower_environment import flower_environment
from server.guard import GUARD_LOG_VARIABLE, write_guard
from server.processes import stop_group
from server.provisioning import make_certificate_authority, make_server_certificate
from server.run_folder import RUN_KEY, RUNS_VARIABLE, write_atomically

HOST = "127.0.0.1"
CONNECTION = "federation"
"""What Flower's command line calls the SuperLink."""

LIFETIME, LEAST_LIFETIME = timedelta(days=3650), timedelta(days=365)
_IN_MEMORY = ":flwr-in-memory:"
"""What Flower (1.41) calls a SuperLink's memory that is no database."""

CLI_TIMEOUT_S = 120.0
KEY_IN_USE, NODE_NOT_FOUND = "[code: 23]", "[code: 24]"
"""What Flower 1.41 writes of its error codes (`flwr/supercore/error/base.py`)."""
_MEMORY_IS_GIVEN_BACK = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "262144"}
"""Else glibc keeps what a model took for the next one, on each thread's heap: 5 models in a ServerApp at rest."""

_MEANWHILE_EVERY_S = 0.2

RunFlwr = Callable[[Sequence[str], Mapping[str, str]], "subprocess.CompletedProcess[str]"]


class SuperLinkError(GliornError):
    """Flower did not do what was asked of it."""

    code = "superlink"


class KeyInUseError(SuperLinkError):
    """The SuperLink knows this key already, or has known it: a key that was unregistered can never come back."""


def _nothing() -> None:
    return


class SuperLink:
    """One SuperLink: its files, the commands that start it and its SuperExec, and what it can be asked.

    Args:
        folder: Holds all its files; for the owner alone.
        port: Where it listens on the loopback address.
        runs: Folder of the runs that its ServerApps carry.
        meanwhile: Called several times a second while Flower's command line works; what it raises ends that command.
        in_memory: Whether it has no database and so remembers nothing once it ends; then every message costs less.
        run_flwr: Runs Flower's command line, given command and environment; by default as a program of its own, which
            takes a second of processor time to begin.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        runs: Path,
        meanwhile: Callable[[], None] = _nothing,
        in_memory: bool = False,
        run_flwr: RunFlwr | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.port = port
        self.runs = runs.resolve()
        self._meanwhile = meanwhile
        self._in_memory = in_memory
        self._run_flwr = run_flwr or self._run_program

    @property
    def address(self) -> str:
        """host:port."""
        return f"{HOST}:{self.port}"

    @property
    def authority(self) -> Path:
        """PEM certificate that it is checked against."""
        return self.folder / "tls" / "ca.crt"

    @property
    def database(self) -> Path:
        """What the SuperLink remembers of keys, runs and messages, unless it remembers nothing."""
        return self.folder / "state.db"

    @property
    def guard_log(self) -> Path:
        """Where a line tells of each submitted run that was refused."""
        return self.folder / "guard.log"

    @property
    def _guard(self) -> Path:
        return self.folder / "programs"

    @property
    def _secret(self) -> Path:
        return self.folder / "superexec.secret"

    @property
    def _cli_home(self) -> Path:
        return self.folder / "cli"

    def prepare(self, *, now: datetime) -> None:
        """Write what the programs need. A certificate that is there and lasts is kept: programs in action trust it."""
        tls = self.authority.parent
        for part in (self.folder, tls, self.folder / "home", self._cli_home):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _lasts(tls / "server.crt", until=now + LEAST_LIFETIME) or not (tls / "server.key").is_file():
            authority = make_certificate_authority("gliorn loopback", now=now, lifetime=LIFETIME)
            hosts = [HOST, "localhost"]
            certificate, key = make_server_certificate(authority, hosts=hosts, now=now, lifetime=LIFETIME)
            _write_secret(tls / "server.key", key)
            write_atomically(self.authority, authority.certificate)
            write_atomically(tls / "server.crt", certificate)
        if not self._secret.is_file() or not self._secret.read_bytes():
            _write_secret(self._secret, secrets.token_hex(32).encode())  # Flower takes the file's bytes as they are
        config = (
            f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
            f'address = "{self.address}"\nroot-certificates = {json.dumps(str(self.authority))}\n'
        )
        write_atomically(self._cli_home / "config.toml", config.encode())
        write_guard(self._guard)

    # --- its programs ------------------------------------------------------------------------------------------------

    def superlink_command(self) -> list[str]:
        """Starts the SuperLink."""
        tls = self.authority.parent
        return [
            *(sys.executable, "-P", "-m", "server.superlink_program", "flower-superlink"),
            *("--host", HOST, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.authority)),
            *("--ssl-certfile", str(tls / "server.crt"), "--ssl-keyfile", str(tls / "server.key")),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self._secret)),
            *("--enable-supernode-auth", "--database", _IN_MEMORY if self._in_memory else str(self.database)),
            "--disable-runtime-dependency-installation",
        ]

    def superexec_command(self) -> list[str]:
        """Starts the SuperExec, which starts the ServerApp of each run."""
        return [
            *(str(_programs() / "flower-superexec"), "--runtime-api-address", self.address),
            *("--root-certificates", str(self.authority)),
            *("--superexec-auth-secret-file", str(self._secret)),
        ]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of both, in which the guard's programs are found before Flower's."""
        programs = f"{self._guard}:{_programs()}"
        environment = flower_environment(base, home=str(self.folder / "home"), programs=programs)
        ours = {RUNS_VARIABLE: str(self.runs), GUARD_LOG_VARIABLE: str(self.guard_log)}
        return environment | ours | _MEMORY_IS_GIVEN_BACK

    def is_listening(self) -> bool:
        """Whether somebody accepts connections on its port."""
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((HOST, self.port)) == 0

    # --- what it can be asked ----------------------------------------------------------------------------------------

    def register(self, public_key: Path, *, name: str) -> int:
        """Let the owner of a key take part under a name; returns the number of its node.

        Raises:
            KeyInUseError: If the key is known, or was.
            SuperLinkError: If Flower fails.
        """
        answer = self._ask("supernode", "register", str(public_key), CONNECTION, "--name", name)
        return int(str(answer["node-id"]))

    def unregister(self, node: int) -> None:
        """Let a node take part no longer, if it still does; its key can never be registered again."""
        try:
            self._ask("supernode", "unregister", str(node), CONNECTION)
        except SuperLinkError as error:
            if NODE_NOT_FOUND not in str(error):
                raise

    def nodes(self) -> set[int]:
        """Numbers of the nodes that are registered now."""
        answer = self._ask("supernode", "list", CONNECTION)
        nodes = answer.get("nodes")
        if not isinstance(nodes, list):
            raise SuperLinkError(f"unexpected answer of `flwr supernode list`: {answer}")
        return {int(str(node["node-id"])) for node in nodes if node["status"] != "unregistered"}

    def submit(self, run: str) -> str:
        """Have a ServerApp started for the run of that name; returns Flower's number of it."""
        with as_file(files("common") / "flower_app") as folder:
            return str(self._ask("run", str(folder), CONNECTION, "--run-config", f'{RUN_KEY}="{run}"')["run-id"])

    def stop(self, run_id: str) -> None:
        """Have Flower forget a run that it was given."""
        self._ask("stop", run_id, CONNECTION)

    def state_of(self, run_id: str) -> str:
        """What Flower says of a run it was given, such as "running" or "finished:completed"."""
        answer = self._ask("list", "--run-id", run_id, CONNECTION)
        runs = answer.get("runs")
        if not isinstance(runs, list):
            raise SuperLinkError(f"unexpected answer of `flwr list`: {answer}")
        return next(str(run["status"]) for run in runs if str(run["run-id"]) == run_id)

    def _ask(self, *arguments: str) -> dict[str, object]:
        command = [str(_programs() / "flwr"), *arguments, "--format", "json"]
        environment = flower_environment(os.environ, home=str(self._cli_home), programs=str(_programs()))
        done = self._run_flwr(command, environment)
        values = _json_of(done.stdout)
        if done.returncode == 0 and values is not None and values.get("success") is not False:
            return values
        text = " ".join((done.stdout + done.stderr).split())
        kind = KeyInUseError if KEY_IN_USE in text else SuperLinkError
        raise kind(f"`flwr {' '.join(arguments[:2])}` failed: {text[-600:]}")

    def _run_program(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = self._communicate(process)
        finally:
            stop_group(process, patience_s=0.0)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def _communicate(self, process: "subprocess.Popen[str]") -> tuple[str, str]:
        end = time.monotonic() + CLI_TIMEOUT_S
        while True:
            try:
                return process.communicate(timeout=_MEANWHILE_EVERY_S)
            except subprocess.TimeoutExpired:
                self._meanwhile()
                if time.monotonic() >= end:
                    raise SuperLinkError(f"Flower's command line did not end within {CLI_TIMEOUT_S:.0f} s") from None


def _json_of(output: str) -> dict[str, object] | None:
    try:
        values = json.loads(output)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _lasts(certificate: Path, *, until: datetime) -> bool:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc > until
    except (OSError, ValueError):
        return False


def _write_secret(path: Path, payload: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(payload)


def _programs() -> Path:
    return Path(sys.executable).parent
