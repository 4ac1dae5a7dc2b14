"""A real Flower deployment on loopback: SuperLink with TLS, and for each site the programs that a hospital runs.

Everything that is started is stopped again, with its children, whatever happens.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from client.config import ServerSpec, read_site_config
from client.flower_programs import FlowerCommands, FlowerPrograms
from client.kit import kit_of
from server.processes import free_ports, stop_group
from server.provisioning import make_site_key_pair
from server.superlink import SuperLink, SuperLinkError
from simulations.engines.launch import EngineError, Launch

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = "0.2"
"""How often Flower's programs look for work; its own default is a second."""


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
        link = SuperLink(home / "superlink", port=port, runs=launch.folder.path.parent)
        link.prepare(now=datetime.now(UTC))
        environment = _quick(link.environment(os.environ))
        superlink = stack.enter_context(_process(link.superlink_command(), environment, log))
        stack.enter_context(_process(link.superexec_command(), environment, log))
        try:
            _wait_until_listening(link, superlink, Path(log.name))
            keys = {name: _registered_key(link, home / "pki" / name, name) for name in launch.sites}
            programs = [
                stack.enter_context(_programs(name, path, keys[name], link, log=Path(log.name)))
                for name, path in launch.sites.items()
            ]
            _carry(link, launch.folder.name, superlink, programs, Path(log.name))
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
    run: str,
    superlink: "subprocess.Popen[bytes]",
    programs: Sequence[FlowerPrograms],
    log_path: Path,
) -> None:
    """Submit the run and wait for its end."""
    run_id = link.submit(run)
    while not (state := link.state_of(run_id)).startswith("finished"):
        if superlink.poll() is not None:
            raise EngineError(f"the SuperLink ended with status {superlink.returncode}; see {log_path}")
        for site in programs:
            site.new_events()  # so that the pipe never fills
            for program, status in (("SuperNode", site.ended_supernode()), ("SuperExec", site.ended_superexec())):
                if status is not None:
                    raise EngineError(f"the {program} of a site ended with status {status}; see {log_path}")
        time.sleep(1.0)
    if state != "finished:completed":
        raise EngineError(f"the run ended as {state}; see {log_path}")


@contextmanager
def _programs(name: str, path: Path, key: Path, link: SuperLink, *, log: Path) -> Iterator[FlowerPrograms]:
    """A site's programs, as `gliorn-client` starts them, with a folder of their own for their files."""
    config = read_site_config(path)
    server = ServerSpec(address=link.address, ca_certificate=link.authority, private_key=key)
    config = config.model_copy(update={"server": server})
    commands = FlowerCommands(kit_of(config, origin=path), config, path, _quick(os.environ))
    commands.prepare()
    programs = FlowerPrograms(commands, log)
    try:
        programs.start()
        yield programs
    finally:
        programs.kill_all()
        programs.close_events()


@contextmanager
def _process(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        stop_group(process, patience_s=2.0)


def _wait_until_listening(link: SuperLink, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        if link.is_listening():
            return
        time.sleep(0.1)
    raise EngineError(f"the SuperLink did not begin to listen within {START_TIMEOUT_S:.0f} s; see {log_path}")


def _quick(environment: Mapping[str, str]) -> dict[str, str]:
    return dict(environment) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_INTERVAL_S}
