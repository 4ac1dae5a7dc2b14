"""A coordinator's Flower programs on loopback, without the gateway and the server that keeps them going."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from server.processes import free_ports, stop_group
from server.provisioning import make_site_key_pair
from server.superlink import SuperLink

START_TIMEOUT_S = 60.0


@dataclass
class Coordinator:
    """A SuperLink and its SuperExec, which starts the ServerApp of each run.

    Attributes:
        home: Folder of everything; `flower.log` in it is what the programs print.
        link: What the SuperLink can be asked.
        programs: What runs: "superlink" and "superexec".
    """

    home: Path
    link: SuperLink
    programs: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self) -> None:
        """Start what does not run, and wait until it can be reached."""
        self._start("superlink", self.link.superlink_command())
        end = time.monotonic() + START_TIMEOUT_S
        while not self.link.is_listening():
            if self.programs["superlink"].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the SuperLink did not start; see {self.home / 'flower.log'}")
            time.sleep(0.2)
        self._start("superexec", self.link.superexec_command())

    def _start(self, name: str, command: Sequence[str]) -> None:
        running = self.programs.get(name)
        if running is not None and running.poll() is None:
            return
        environment = self.link.environment(os.environ) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        with (self.home / "flower.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, name: str) -> None:
        """SIGKILL to one of the programs."""
        self.programs[name].kill()
        self.programs[name].wait()

    def register(self, name: str) -> bytes:
        """Make a site's key and register it; returns the private half."""
        pair = make_site_key_pair()
        public_key = self.home / f"{name}.pub"
        public_key.write_bytes(pair.public_key)
        self.link.register(public_key, name=name)
        return pair.private_key


@contextmanager
def coordinator(home: Path, *, runs: Path) -> Iterator[Coordinator]:
    """Start a coordinator; on leaving, all that it started is stopped.

    Args:
        home: An empty folder for what it writes.
        runs: Folder of the runs that it carries.
    """
    (port,) = free_ports(1)
    link = SuperLink(home / "superlink", port=port, runs=runs)
    link.prepare(now=datetime.now(UTC))
    made = Coordinator(home, link)
    try:
        made.start()
        yield made
    finally:
        for process in made.programs.values():
            stop_group(process, patience_s=2.0)
