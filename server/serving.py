"""The coordinator's server: its programs and its runs, kept going until somebody ends it."""

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from common.errors import ConfigError
from server.federation_folder import FederationConfig, FederationFolder
from server.keeper import Keeper, runs_in_order
from server.locks import hold, holder, is_held
from server.processes import kill_tree, wait_for_end
from server.registrations import Registrations
from server.run_folder import RunFolder
from server.superlink import HOST, SuperLink, SuperLinkError
from server.supervisor import Program, Supervisor

STOP_PATIENCE_S = 8.0
TICK_S = 1.0
FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 60.0
DAYS_TO_WARN = 30

Say = Callable[[str], None]


class _Ended(Exception):  # noqa: N818 - a way out, no error
    """Somebody asked the server to end."""


def serve(folder: FederationFolder, *, say: Say) -> None:
    """Serve a federation until SIGTERM or SIGINT.

    Args:
        folder: The federation.
        say: Told one plain line whenever something happens.

    Raises:
        ConfigError: If another server serves it, or something needed is missing.
    """
    config = folder.read_config()
    os.umask(0o077)
    otherwise = f"{folder.path}: another `gliorn-server start` serves this federation already; end that one first"
    with hold(folder.lock, otherwise=otherwise, patience_s=0.5):
        for part in (folder.superlink, folder.runs, folder.logs):
            part.mkdir(mode=0o700, exist_ok=True)
        require_certificate(folder, now=datetime.now(UTC), say=say)
        _Server(folder, config, say).run()


def is_served(folder: FederationFolder) -> bool:
    """Whether a server serves this federation right now."""
    return is_held(folder.lock)


def require_certificate(folder: FederationFolder, *, now: datetime, say: Say) -> None:
    """Refuse to serve without a certificate that sites would accept, and warn early of its end.

    Raises:
        ConfigError: If it is absent, damaged, or not valid now.
    """
    left = certificate_lifetime(folder, now=now)
    if left <= timedelta(0):
        raise ConfigError(
            f"{folder.certificate}: expired on {now + left:%Y-%m-%d}, no site would connect; "
            "`gliorn-server certs renew` makes a new one, and sites need do nothing"
        )
    if left < timedelta(days=DAYS_TO_WARN):
        say(f"warning: the certificate ends in {left.days} days; `gliorn-server certs renew` makes a new one")


def certificate_lifetime(folder: FederationFolder, *, now: datetime) -> timedelta:
    """For how long the gateway's certificate is still valid; negative where it has expired.

    Raises:
        ConfigError: If it is absent or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(folder.certificate.read_bytes()).not_valid_after_utc - now
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder.certificate}: unreadable ({type(error).__name__}), expected the server's certificate; "
            "`gliorn-server certs renew` makes a new one"
        ) from None


class _Server:
    def __init__(self, folder: FederationFolder, config: FederationConfig, say: Say) -> None:
        self._folder = folder
        self._config = config
        self._say = say
        self._link = SuperLink(
            folder.superlink, port=config.superlink_port, runs=folder.runs, meanwhile=self._watch_programs
        )
        self._supervisor = Supervisor(
            self._programs(os.environ), notes=folder.superlink / "children.json", logs=folder.logs, say=say
        )
        self._registrations = Registrations(folder, self._link, say=say)
        self._keeper = Keeper(folder.runs, self._link, server=secrets.token_hex(8), record_stop=_record_stop, say=say)
        self._ended = False
        self._listening_superlink: int | None = None
        self._ready = False
        self._retry_at = float("-inf")
        self._retry_s = FIRST_RETRY_S

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        previous = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._end_leftovers()
            self._require_ports()
            self._link.prepare(now=datetime.now(UTC))
            while True:
                self._watch_programs()
                self._keep()
                self._wait()
        except _Ended:
            self._say("ending")
        finally:
            self._supervisor.stop(patience_s=STOP_PATIENCE_S)
            for number, handler in previous.items():
                signal.signal(number, handler)
        self._say("ended; runs that were at work go on at the next start")

    def _end(self, number: int, frame: object) -> None:
        self._ended = True

    def _programs(self, environment: Mapping[str, str]) -> list[Program]:
        for_flower = self._link.environment(environment)
        gateway = [sys.executable, "-m", "server.gateway", str(self._folder.path.resolve())]
        return [
            Program("superlink", self._link.superlink_command(), for_flower),
            Program("superexec", self._link.superexec_command(), for_flower),
            Program("gateway", gateway, dict(environment)),
        ]

    def _end_leftovers(self) -> None:
        """End what a server that was killed left behind; its runs go on from their last round."""
        self._supervisor.end_leftovers()
        for run in runs_in_order(self._folder.runs):
            if (left := holder(run.server_app_lock)) is not None:
                self._say(f"run {run.name}: its program of an earlier start is still there: ending it")
                kill_tree(left.pid)
                wait_for_end(left.pid, left.started)

    def _require_ports(self) -> None:
        for host, port, setting in (
            (self._config.listen, self._config.port, "port"),
            (HOST, self._config.superlink_port, "superlink_port"),
        ):
            _require_port(host, port, setting, self._folder.config)

    def _watch_programs(self) -> None:
        if self._ended:
            raise _Ended
        self._supervisor.tick()

    def _keep(self) -> None:
        if time.monotonic() < self._retry_at or not self._superlink_listens():
            return
        self._say_ready()
        try:
            self._registrations.tick()
            self._keeper.tick()
            self._retry_s = FIRST_RETRY_S
        except SuperLinkError as error:
            self._say(f"{error}; trying again in {self._retry_s:.0f} s")
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)

    def _superlink_listens(self) -> bool:
        """Whether this SuperLink has begun to listen; asked of each one until it has."""
        process = self._supervisor.processes().get("superlink")
        if process is not None and process != self._listening_superlink and self._link.is_listening():
            self._listening_superlink = process
        return process is not None and process == self._listening_superlink

    def _say_ready(self) -> None:
        if self._ready or not _is_listening(self._config.listen, self._config.port):
            return
        self._ready = True
        self._say(f"ready: sites connect to {self._config.address}")

    def _wait(self) -> None:
        end = time.monotonic() + TICK_S
        while time.monotonic() < end and not self._ended:
            time.sleep(0.1)


def _record_stop(run: RunFolder) -> None:
    from server.leaving_off import record_stop  # brings what draws reports, which a server seldom needs

    record_stop(run, now=datetime.now(UTC))


def _require_port(host: str, port: int, setting: str, config: Path) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{config}: nothing can listen on {host} port {port} ({error.strerror}); end the program that does, "
                f"or write another {setting}"
            ) from None


def _is_listening(host: str, port: int) -> bool:
    ipv6 = ":" in host
    if host in ("0.0.0.0", "::"):
        host = "::1" if ipv6 else "127.0.0.1"
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0
