"""The coordinator's server: its programs and its runs, kept going until somebody ends it."""

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from common.errors import ConfigError
from server.disk import NO_ROOM
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
        ConfigError: If another server serves it, something needed is missing, or the disk is full at the beginning.
    """
    config = folder.read_config()
    os.umask(0o077)
    otherwise = f"{folder.path}: another `gliorn-server start` serves this federation already; end that one first"
    try:
        with hold(folder.lock, otherwise=otherwise, patience_s=0.5):
            for part in (folder.superlink, folder.runs, folder.logs):
                part.mkdir(mode=0o700, exist_ok=True)
            require_certificate(folder, now=datetime.now(UTC), say=say)
            _Server(folder, config, say).run()
    except OSError as error:  # before there is anything to be kept going
        if error.errno not in NO_ROOM:
            raise
        raise ConfigError(f"{folder.path}: the disk is full; make some room, then start again") from None


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


class _Step:
    """Something that is done at every tick; after Flower's failure, less and less often.

    A full disk is told once and tried again at the next tick, for nothing of it depends on anybody else.
    """

    def __init__(self, act: Callable[[], None], say: Say) -> None:
        self._act = act
        self._say = say
        self._retry_at = float("-inf")
        self._retry_s = FIRST_RETRY_S
        self._told: str | None = None

    def tick(self) -> bool:
        """Do it, unless it is too early; returns whether it was done."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._act()
        except SuperLinkError as error:
            self._say(f"{error}; trying again in {self._retry_s:.0f} s")
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
            return False
        except OSError as error:
            if str(error) != self._told:
                self._say(f"{_disk_trouble(error)}; trying again until it passes")
            self._told = str(error)
            return False
        if self._told is not None:
            self._say("the coordinator's files can be written again")
        self._told, self._retry_s = None, FIRST_RETRY_S
        return True


class _Server:
    def __init__(self, folder: FederationFolder, config: FederationConfig, say: Say) -> None:
        self._folder = folder
        self._config = config
        say = _whatever_becomes_of_it(say)
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
        # A key that Flower refuses must not keep the runs waiting, so each has its own failures.
        self._steps = (_Step(self._registrations.tick, say), _Step(self._keeper.tick, say))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        previous = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._end_leftovers()
            self._require_ports()
            self._prepare()
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

    def _prepare(self) -> None:
        step = _Step(lambda: self._link.prepare(now=datetime.now(UTC)), self._say)
        while not step.tick():
            self._wait()
            if self._ended:
                raise _Ended

    def _watch_programs(self) -> None:
        if self._ended:
            raise _Ended
        self._supervisor.tick()

    def _keep(self) -> None:
        if not self._superlink_listens():
            return
        self._say_ready()
        for step in self._steps:
            step.tick()

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


def _whatever_becomes_of_it(say: Say) -> Say:
    """What is said may go to a file on a full disk, or to a terminal that is gone: that ends nothing."""

    def said(line: str) -> None:
        with suppress(OSError):
            say(line)

    return said


def _disk_trouble(error: OSError) -> str:
    if error.errno in NO_ROOM:
        return "the coordinator's disk is full: make some room"
    return f"the coordinator's files cannot be written or read ({error})"


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
