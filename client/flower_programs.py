"""A site's two long-lived Flower programs: the SuperNode, which gets tasks, and the SuperExec, which starts them."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from client.config import SiteConfig
from client.events import Event, EventReader
from client.guard import TASK_LOCK_VARIABLE, write_guard
from client.journal import JOURNAL_VARIABLE
from client.kit import SITE_CONFIG_KEY, Kit
from client.private_files import make_private_folder, write_atomically
from client.processes import descendants, signal_each, signal_group
from common.errors import ConfigError
from common.flower_environment import LOOPBACK, flower_environment

LOG_BYTES = 5 * 2**20
LOGS_KEPT = 2

CHUNK_VARIABLE = "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"
SMALL_CHUNK_BYTES = 2**20
"""Size of the pieces in which model states travel. Flower gives each 30 s, so that its own 5 MB fail for ever on an
uplink below 1.4 Mbit/s."""

LOOK_FOR_TASKS_S = "1"
"""How often a SuperExec looks for tasks that its SuperNode has not told it of."""


class Commands(Protocol):
    """What is started; in tests something else than Flower."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The whole environment of both programs."""

    @property
    def folder(self) -> Path:
        """Where both programs run."""

    def prepare(self) -> None:
        """Write what both programs read; once, before the first start."""

    def supernode(self, *, port: int, events: int) -> Sequence[str]:
        """The command of the SuperNode, given its port on this machine and the file descriptor for events."""

    def superexec(self, *, port: int) -> Sequence[str]:
        """The command of the SuperExec for a SuperNode at a port."""


@dataclass(frozen=True)
class FlowerCommands:
    """The commands of Flower's programs for a site.

    Attributes:
        config_path: The site's configuration; the ClientApp reads it again for every task.
        base: The environment to begin from.
    """

    kit: Kit
    config: SiteConfig
    config_path: Path
    base: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """See `Commands`."""
        return self.kit.folder

    @property
    def environment(self) -> Mapping[str, str]:
        """See `Commands`. No proxy is used between the programs of this machine."""
        programs = f"{self.kit.guard}:{Path(sys.executable).parent}"
        return flower_environment(self.base, home=str(self.kit.flower_home), programs=programs) | {
            CHUNK_VARIABLE: self.base.get(CHUNK_VARIABLE, str(SMALL_CHUNK_BYTES)),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": self.base.get("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", LOOK_FOR_TASKS_S),
            JOURNAL_VARIABLE: str(self.kit.journal),
            TASK_LOCK_VARIABLE: str(self.kit.task_lock),
        }

    def prepare(self) -> None:
        """See `Commands`. The secret between the two programs is new each time.

        Raises:
            ConfigError: If the files cannot be written.
        """
        make_private_folder(self.kit.flower_home)
        # Flower reads node settings as TOML; JSON's quoting of a text is valid TOML.
        settings = f"{SITE_CONFIG_KEY} = {json.dumps(str(self.config_path.resolve()))}\n"
        write_atomically(self.kit.node_settings, settings.encode())
        write_atomically(self.kit.superexec_secret, secrets.token_hex(32).encode())
        try:
            write_guard(self.kit.guard)
        except OSError as error:
            raise ConfigError(
                f"{self.kit.guard}: cannot be written ({error.strerror or error}); grant write access to the folder of "
                "the site's key"
            ) from None

    def supernode(self, *, port: int, events: int) -> Sequence[str]:
        """See `Commands`."""
        limit = self.config.server.max_bandwidth_mbit if self.config.server else None
        return [
            *(sys.executable, "-P", "-m", "client.supernode", "--parent", str(os.getpid()), "--events", str(events)),
            *("--task-lock", str(self.kit.task_lock), "--task-bell", str(self.kit.task_bell)),
            *(() if limit is None else ("--max-mbit", str(limit))),
            "--",
            *("--superlink", self.kit.address, "--root-certificates", str(self.kit.ca_certificate)),
            *("--auth-supernode-private-key", str(self.kit.private_key)),
            *("--host", LOOPBACK, "--port", str(port), "--node-config", str(self.kit.node_settings)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.kit.superexec_secret)),
        ]

    def superexec(self, *, port: int) -> Sequence[str]:
        """See `Commands`."""
        return [
            *(sys.executable, "-P", "-m", "client.superexec", str(os.getpid()), str(self.kit.task_bell)),
            *("--insecure", "--runtime-api-address", f"{LOOPBACK}:{port}"),
            *("--superexec-auth-secret-file", str(self.kit.superexec_secret)),
        ]


class Process(Protocol):
    """A child of this process; what `subprocess.Popen` has of it."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """The exit status, once it has ended."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, if it runs."""

    def terminate(self) -> None:
        """Ask it to end."""


class Starter(Protocol):
    """Starts a command as a child of this process that leads a session of its own."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log: IO[bytes],
        keep: tuple[int, ...],
    ) -> Process:
        """Start it.

        Args:
            command: Program and arguments.
            environment: Its whole environment.
            folder: Where it runs.
            log: Where its output goes.
            keep: File descriptors that it gets under the numbers they have here.

        Raises:
            OSError: If the machine has no room for it.
        """


def start_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    log: IO[bytes],
    keep: tuple[int, ...],
) -> "subprocess.Popen[bytes]":
    """See `Starter`."""
    return subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=keep,
        start_new_session=True,
    )


class FlowerPrograms:
    """The two programs as children of this process, each leading a session of its own."""

    def __init__(self, commands: Commands, log_path: Path, starter: Starter = start_program) -> None:
        """Start nothing yet.

        Args:
            commands: What to start.
            log_path: Where their output goes; bounded, and for its owner alone.
            starter: Starts each of them.
        """
        self._commands = commands
        self._log_path = log_path
        self._starter = starter
        self._supernode: Process | None = None
        self._superexec: Process | None = None
        self._events: EventReader | None = None
        self._port = 0
        self._log_fault: OSError | None = None

    @property
    def supernode_running(self) -> bool:
        """Whether the SuperNode was started and has not been found ended."""
        return self._supernode is not None

    @property
    def superexec_running(self) -> bool:
        """Whether the SuperExec was started and has not been found ended."""
        return self._superexec is not None

    @property
    def processes(self) -> dict[str, int]:
        """Process numbers of what runs, by "supernode" and "superexec"."""
        running = {"supernode": self._supernode, "superexec": self._superexec}
        return {name: process.pid for name, process in running.items() if process is not None}

    def start(self) -> None:
        """Start both programs.

        Raises:
            OSError: If the machine has no room for them; what was started runs until `kill_all`.
        """
        assert not self.processes, "both have ended"
        self._port = free_port()
        reading, writing = os.pipe()
        try:
            self._events = EventReader(reading)
            self._supernode = self._start(self._commands.supernode(port=self._port, events=writing), keep=(writing,))
        finally:
            os.close(writing)
        self.start_superexec()

    def start_superexec(self) -> None:
        """Start the SuperExec, for the SuperNode that runs.

        Raises:
            OSError: If the machine has no room for it.
        """
        self._superexec = self._start(self._commands.superexec(port=self._port))

    def _start(self, command: Sequence[str], *, keep: tuple[int, ...] = ()) -> Process:
        environment, folder = self._commands.environment, self._commands.folder
        with self._log() as log:
            return self._starter(command, environment=environment, folder=folder, log=log, keep=keep)

    def _log(self) -> IO[bytes]:
        """The log, or nowhere if it cannot be opened: the programs do not hang on it."""
        try:
            descriptor, self._log_fault = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), None
        except OSError as error:
            descriptor, self._log_fault = os.open(os.devnull, os.O_WRONLY), error
        return os.fdopen(descriptor, "ab")

    def new_events(self) -> list[Event]:
        """What the SuperNode has told since the last call."""
        return [] if self._events is None else list(self._events.new_events())

    def events_descriptor(self) -> int | None:
        """File descriptor to wait on for events."""
        return None if self._events is None else self._events.fileno()

    def ended_supernode(self) -> int | None:
        """The exit status of a SuperNode that has ended, once; the number of a signal is negative."""
        if self._supernode is None or (status := self._supernode.poll()) is None:
            return None
        self._kill(self._supernode)
        self._supernode = None
        return status

    def ended_superexec(self) -> int | None:
        """The exit status of a SuperExec that has ended, once."""
        if self._superexec is None or (status := self._superexec.poll()) is None:
            return None
        self._kill(self._superexec)
        self._superexec = None
        return status

    def ask_to_leave_when_idle(self) -> None:
        """Have the SuperNode finish the task in work and end."""
        if self._supernode is not None:
            self._supernode.send_signal(signal.SIGUSR1)

    def ask_to_leave(self) -> None:
        """Have the SuperNode take leave of the coordinator and end, whatever is in work."""
        if self._supernode is not None:
            self._supernode.terminate()

    def kill_all(self) -> None:
        """End both programs and everything that they started, at once."""
        for process in (self._superexec, self._supernode):
            if process is not None:
                self._kill(process)
        self._superexec = self._supernode = None

    def close_events(self) -> None:
        """Forget the pipe of a SuperNode that has ended."""
        if self._events is not None:
            self._events.close()
            self._events = None

    @staticmethod
    def _kill(process: Process) -> None:
        below = descendants(process.pid)  # some lead sessions of their own
        signal_group(process.pid, signal.SIGKILL)
        signal_each(below, signal.SIGKILL)
        process.wait()

    def bound_log(self) -> None:
        """Keep the log below its bound: copy it away and empty it, since the programs hold it open.

        Raises:
            OSError: If it could not be opened when a program started last, or cannot be emptied.
            ConfigError: If there is no room for the copy; the log is empty then too, for it must not grow for ever.
        """
        if self._log_fault is not None:
            raise self._log_fault
        try:
            if self._log_path.stat().st_size < LOG_BYTES:
                return
        except FileNotFoundError:
            return
        for number in range(LOGS_KEPT - 1, 0, -1):
            older = self._log_path.with_name(f"{self._log_path.name}.{number}")
            if older.exists():
                os.replace(older, older.with_name(f"{self._log_path.name}.{number + 1}"))
        try:
            write_atomically(self._log_path.with_name(f"{self._log_path.name}.1"), self._log_path.read_bytes())
        finally:
            os.truncate(self._log_path, 0)


def free_port() -> int:
    """A port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
