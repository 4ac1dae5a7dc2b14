"""A real Flower deployment on loopback: SuperLink with TLS, and for each site the programs that a hospital runs.

Everything that is started is stopped again, with its children, whatever happens.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from client.config import ServerSpec, read_site_config
from client.flower_programs import FlowerCommands, FlowerPrograms, Process, Starter, start_program
from client.kit import kit_of
from client.work_slots import WORK_SLOTS_VARIABLE, make_work_slots
from server.locks import is_held
from server.processes import free_ports, stop_group
from server.provisioning import make_site_key_pair
from server.run_folder import RunFolder
from server.superlink import SuperLink, SuperLinkError
from simulations.engines.launch import EngineError, Launch
from simulations.engines.loopback import on_loopback
from simulations.engines.nursery import nursery

START_TIMEOUT_S = 60.0
ASK_EVERY_S, MAX_FAILURES = 30.0, 10
"""How often Flower is asked at least how a run stands, and how often in a row it may fail to say."""

MAX_ENDS, PAUSE_AFTER_END_S = 20, 5.0
"""How often a site's programs may end, and the pause after it: a SuperNode whose coordinator failed once ends."""


def run_network(launch: Launch) -> None:
    """Carry a run over real processes; returns when Flower says that the run has ended.

    Raises:
        EngineError: If a process does not start, or the run fails.
    """
    assert not launch.faults, "the network engine runs the sites' own programs"
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gliorn-")))
        log = stack.enter_context((launch.folder.path / "engine.log").open("ab"))
        (port,) = free_ports(1)
        # A run whose SuperLink ends goes on from its checkpoint, with another one.
        copies = launch.copies or stack.enter_context(nursery(log))
        link = SuperLink(
            home / "superlink",
            port=port,
            runs=launch.folder.path.parent,
            in_memory=True,
            run_flwr=None if copies is None else copies.run,
        )
        link.prepare(now=datetime.now(UTC))
        environment = on_loopback(link.environment(os.environ))
        starter = start_program if copies is None else copies.start
        superlink = stack.enter_context(_process(link.superlink_command(), environment, log, starter))
        superexec = link.superexec_command() if copies is None else _copying_superexec(link)
        stack.enter_context(_process(superexec, environment, log, starter))
        try:
            _wait_until_listening(link, superlink, Path(log.name))
            make_work_slots(home / "slots", launch.workers)
            programs = []
            for name, path in launch.sites.items():
                key = _registered_key(link, home / "pki" / name, name)
                programs.append(
                    stack.enter_context(
                        _programs(path, key, link, slots=home / "slots", log=Path(log.name), starter=starter)
                    )
                )
            _carry(link, launch.folder, superlink, programs, Path(log.name))
        except SuperLinkError as error:
            raise EngineError(f"{error}; see {log.name}") from None


def _registered_key(link: SuperLink, folder: Path, site: str) -> Path:
    """Make a key pair for a site, in a folder of its own, and register its public half under the site's name."""
    folder.mkdir(mode=0o700, parents=True)
    pair = make_site_key_pair()
    key, public_key = folder / "site.key", folder / "site.pub"
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pair.private_key)
    public_key.write_bytes(pair.public_key)
    link.register(public_key, name=site)
    return key


def _carry(
    link: SuperLink,
    folder: RunFolder,
    superlink: Process,
    programs: Sequence["_SitePrograms"],
    log: Path,
) -> None:
    """Submit the run and wait for its end.

    Flower's command line takes more than a second of processor time to say how a run stands, so it is asked only when
    the ServerApp has let go of its lock, and now and then.
    """
    run_id = link.submit(folder.name)
    asks = _Asks(link, run_id)
    was_at_work = False
    while True:
        is_at_work = is_held(folder.server_app_lock)
        if (was_at_work and not is_at_work) or asks.are_overdue():
            state = asks.state()
            if state == "finished:completed":
                return
            if state.startswith("finished"):
                raise EngineError(f"the run ended as {state}; see {log}")
        was_at_work |= is_at_work
        if (status := superlink.poll()) is not None:
            raise EngineError(f"the SuperLink ended with status {status}; see {log}")
        for site in programs:
            site.keep_going()
        time.sleep(0.2)


class _SitePrograms:
    """A site's programs, which are started again where they end, as the supervisor of a hospital does."""

    def __init__(self, programs: FlowerPrograms, log: Path) -> None:
        self._programs, self._log = programs, log
        self._again_at: float | None = None
        self._num_ends = 0
        programs.start()

    def keep_going(self) -> None:
        """Look after both programs.

        Raises:
            EngineError: If they ended too often.
        """
        if self._again_at is not None:
            if time.monotonic() >= self._again_at:
                self._again_at = None
                self._programs.start()
            return
        self._programs.new_events()  # so that the pipe never fills
        ended = (self._programs.ended_supernode(), self._programs.ended_superexec())
        status = next((each for each in ended if each is not None), None)
        if status is None:
            return
        self._num_ends += 1
        if self._num_ends > MAX_ENDS:
            raise EngineError(f"a program of a site ended {self._num_ends} times, last with {status}; see {self._log}")
        self.end()
        self._again_at = time.monotonic() + PAUSE_AFTER_END_S

    def end(self) -> None:
        """End both programs and all that they started."""
        self._programs.kill_all()
        self._programs.close_events()


class _Asks:
    """Asks Flower how a run stands, and bears it where Flower is too busy to say."""

    def __init__(self, link: SuperLink, run_id: str) -> None:
        self._link, self._run_id = link, run_id
        self._last, self._failures = time.monotonic(), 0

    def are_overdue(self) -> bool:
        """Whether Flower was not asked for long."""
        return time.monotonic() - self._last > ASK_EVERY_S

    def state(self) -> str:
        """What Flower says; "unknown" where it fails, but not for ever."""
        try:
            state = self._link.state_of(self._run_id)
        except SuperLinkError:
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise
            state = "unknown"
        else:
            self._failures = 0
        self._last = time.monotonic()
        return state


@contextmanager
def _programs(
    path: Path, key: Path, link: SuperLink, *, slots: Path, log: Path, starter: Starter
) -> Iterator["_SitePrograms"]:
    """A site's programs, as `gliorn-client` starts them, with a folder of their own for their files."""
    config = read_site_config(path)
    server = ServerSpec(address=link.address, ca_certificate=link.authority, private_key=key)
    config = config.model_copy(update={"server": server})
    base = on_loopback(os.environ) | {WORK_SLOTS_VARIABLE: str(slots)}
    commands = FlowerCommands(kit_of(config, origin=path), config, path, base)
    commands.prepare()
    programs = FlowerPrograms(commands, log, starter)
    try:
        yield _SitePrograms(programs, log)
    finally:
        programs.kill_all()
        programs.close_events()


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], starter: Starter
) -> Iterator[Process]:
    process = starter(command, environment=environment, folder=Path.cwd(), log=log, keep=())
    try:
        yield process
    finally:
        stop_group(process, patience_s=0.0)  # neither the SuperLink nor its SuperExec has anything to keep


def _copying_superexec(link: SuperLink) -> list[str]:
    program = [sys.executable, "-P", "-m", "simulations.engines.server_apps", str(os.getpid())]
    return [*program, *link.superexec_command()[1:]]


def _wait_until_listening(link: SuperLink, process: Process, log_path: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        if link.is_listening():
            return
        time.sleep(0.1)
    raise EngineError(f"the SuperLink did not begin to listen within {START_TIMEOUT_S:.0f} s; see {log_path}")
