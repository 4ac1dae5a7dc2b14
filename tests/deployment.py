"""A whole federation on loopback by the commands that people type, as processes that a test may disturb and stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.model_state import Array, decode_state
from server.federation_folder import FederationFolder
from server.processes import descendants
from server.run_folder import RunFolder
from tests.tiny_hospitals import study_text, write_tiny_hospital

PROGRAMS = Path(sys.executable).parent
PATIENCE_S = 300.0


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Deployment:
    """A federation whose sites have enrolled; what runs is what a test has started.

    Attributes:
        folder: Holds everything.
        sites: The sites' configurations by name.
        processes: What runs: "server" and the sites' names. Each leads a process group of its own.
    """

    folder: Path
    sites: dict[str, Path]
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def federation(self) -> FederationFolder:
        """The coordinator's folder."""
        return FederationFolder(self.folder / "federation")

    def run_folder(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.federation.runs / name)

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def server(self, *arguments: str, expect: int = 0) -> str:
        """Run a `gliorn-server` command; returns what it prints."""
        return command("gliorn-server", *arguments, expect=expect, environment=self._environment())

    def start_server(self) -> None:
        """`gliorn-server start`, until it says that it is ready."""
        self._start("server", [str(PROGRAMS / "gliorn-server"), "start"])
        self.wait(lambda: "ready:" in self.log("server"), "the server is ready")

    def join(self, *names: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        """`gliorn-client --site …` for some sites, or for all."""
        for name in names or tuple(self.sites):
            program = [str(PROGRAMS / "gliorn-client"), "--site", str(self.sites[name]), *arguments]
            self._start(name, program, environment=environment)

    def begin_run(self, name: str) -> None:
        """`gliorn-server run` on the federation's study."""
        self.server("run", str(self.federation.study), "--name", name)

    def record(self, name: str, *, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for the end of a run; returns its record."""
        record = self.run_folder(name).record
        self.wait(record.exists, f"run {name} has ended", patience_s=patience_s)
        values: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return values

    def final_model(self, name: str) -> dict[str, Array]:
        """The last state of a run that has ended."""
        return decode_state((self.run_folder(name).model / "final.safetensors").read_bytes(), origin=name)

    def process_of(self, owner: str, *words: str) -> int | None:
        """The process below "server" or a site whose command line holds all the words; None if there is none.

        One that answers a task may be a copy of a SuperExec, with its command line and a name of its own, which is
        then what counts.
        """
        for pid in descendants(self.processes[owner].pid):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            except OSError:  # it ended while we looked
                continue
            if line and name == "flwr-clientapp":
                line = name
            if line and all(word in line for word in words):
                return pid
        return None

    def kill(self, owner: str, *words: str) -> bool:
        """SIGKILL to a process below an owner, or without words to the owner itself; whether there was one."""
        pid = self.process_of(owner, *words) if words else self.processes[owner].pid
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        if not words:
            self.processes[owner].wait()
        return True

    def end(self, *names: str) -> dict[str, int]:
        """SIGTERM to some processes, or to all that run; returns their exit statuses."""
        chosen = names or tuple(self.processes)
        for name in chosen:
            if self.processes[name].poll() is None:
                self.processes[name].send_signal(signal.SIGTERM)
        return {name: self.processes[name].wait(timeout=90) for name in chosen}

    def wait(self, condition: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until something is so.

        Raises:
            AssertionError: With the ends of all logs, if it does not become so in time.
        """
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.1)
        logs = sorted(
            {
                *self.folder.glob("*.log"),
                *self.federation.logs.glob("*.log"),
                *self.folder.glob("*/federation/flower.log"),
            }
        )
        logs += sorted(self.federation.runs.glob("*/run.log"))
        ends = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2500:]}" for log in logs)
        raise AssertionError(f"not so after {patience_s:.0f} s: {what}\n{ends}")

    def _start(self, name: str, program: list[str], *, environment: Mapping[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                program,
                env=self._environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | {
            "GLIORN_FEDERATION": str(self.federation.path),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        }

    def stop_everything(self) -> None:
        """Kill whatever is left, with all that descends from it."""
        for process in self.processes.values():
            below = descendants(process.pid)
            for pid in (process.pid, *below):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()
        mine = str(self.folder).encode()
        for entry in Path("/proc").glob("[0-9]*"):  # what lost its parent to a SIGKILL
            try:
                told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mine in told and int(entry.name) != os.getpid():
                try:
                    os.kill(int(entry.name), signal.SIGKILL)
                except ProcessLookupError:
                    continue


@contextmanager
def deployment(
    folder: Path,
    *names: str,
    study: str | None = None,
    reached_at: Mapping[str, int] | None = None,
    consent: bool = True,
) -> Iterator[Deployment]:
    """Make a federation from nothing with `init`, `invite`, `enroll` and `admit`; nothing runs yet.

    Args:
        folder: An empty or new folder.
        names: Sites.
        study: The study's text; the tiny one by default.
        reached_at: For some sites the port of loopback at which they reach the coordinator, such as a proxy's.
        consent: Whether the sites agree to the study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sites = {name: write_tiny_hospital(folder, name) for name in names}
    made = Deployment(folder, sites)
    try:
        made.server(
            "init", str(made.federation.path), "--name", "north", "--host", "localhost", "--port", str(free_port())
        )
        config = made.federation.config
        text = re.sub(r"superlink_port: \d+", f"superlink_port: {free_port()}", config.read_text(encoding="utf-8"))
        config.write_text(text.replace("0.0.0.0", "127.0.0.1"), encoding="utf-8")
        made.federation.study.write_text(study or study_text(participation={"min_sites": 2}), encoding="utf-8")
        invites = re.findall(r"^gliorn-invite-\S+$", made.server("invite", *names), flags=re.MULTILINE)
        requests = []
        for (name, site), invite in zip(sites.items(), invites, strict=True):
            told = command("gliorn-client", "enroll", "--invite", invite, "--site", str(site))
            requests += re.findall(r"^gliorn-request-\S+$", told, flags=re.MULTILINE)
            _settle(site, consent=consent, port=(reached_at or {}).get(name))
        made.server("admit", *requests)
        yield made
    finally:
        made.stop_everything()


def _settle(site: Path, *, consent: bool, port: int | None) -> None:
    """What a person does with an enrolled site's configuration: agrees to the study, and here perhaps to a detour."""
    text = site.read_text(encoding="utf-8")
    if consent:
        offered = re.search(r'between the brackets "([0-9a-f]{64})"', text)
        assert offered is not None, text
        text = text.replace("studies: []", f'studies: ["{offered[1]}"]')
    if port is not None:
        text = re.sub(r'address: "localhost:\d+"', f'address: "localhost:{port}"', text)
    assert yaml.safe_load(text)["server"]
    site.write_text(text, encoding="utf-8")


def command(
    program: str, *arguments: str, expect: int = 0, environment: Mapping[str, str] | None = None, timeout_s: float = 200
) -> str:
    """Run one of our commands to its end; returns what it prints, and fails on another exit status."""
    done = subprocess.run(
        [str(PROGRAMS / program), *arguments],
        env=dict(environment) if environment is not None else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == expect, (
        f"{program} {' '.join(arguments)[:80]}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout + done.stderr
