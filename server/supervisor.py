"""Keeps the coordinator's programs running: starts them, starts them again when they end, stops all that they started.

Each program leads a process group of its own, and its output goes to a file of bounded size. Which processes were
started is noted on disk, so that a start after a SIGKILL finds what the last one left behind and ends it.
"""

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from server.locks import Holder
from server.processes import descendants, kill_now, kill_tree, start_time, terminate_group, wait_for_end
from server.run_folder import write_json

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0
SOUND_AFTER_S = 60.0
"""A program that ran this long is started again at once when it ends; one that did not, after twice the last delay."""

LOG_BYTES, LOG_FILES = 10_000_000, 3


@dataclass(frozen=True)
class Program:
    """What is to be kept running.

    Attributes:
        name: What a person knows it as; also names its log file.
        command: Starts it.
        environment: All of its environment.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


class Supervisor:
    """Keeps programs running.

    Args:
        programs: In the order in which they are started.
        notes: File in which the started processes are noted.
        logs: Folder of their output, `NAME.log`.
        say: Told one plain line whenever something happens.
        clock: Seconds on a clock that only goes forward.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        notes: Path,
        logs: Path,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = [_Child(program, _log_writer(logs / f"{program.name}.log")) for program in programs]
        self._notes = notes
        self._say = say
        self._clock = clock
        self._noted: list[int] = []
        self._told_of_notes = False

    def end_leftovers(self) -> None:
        """End what a supervisor that was killed left behind."""
        for pid, started in _read_notes(self._notes):
            if start_time(pid) == started != "":
                self._say(f"process {pid} of an earlier start is still there: ending it")
                kill_tree(pid)
                wait_for_end(pid, started)
        self._notes.unlink(missing_ok=True)

    def tick(self) -> None:
        """Start what does not run and whose time has come; called about once a second."""
        for child in self._children:
            if child.process is not None and (status := child.process.poll()) is not None:
                self._ended(child, status)
            if child.process is None and self._clock() >= child.start_at:
                self._start(child)
            self._note()

    def processes(self) -> dict[str, int]:
        """Process numbers of the programs that run, by name."""
        return {child.program.name: child.process.pid for child in self._children if child.process is not None}

    def stop(self, *, patience_s: float) -> None:
        """End all programs and what they started, first by SIGTERM and after some seconds by SIGKILL."""
        running = [child.process for child in self._children if child.process is not None]
        below = [pid for process in running for pid in descendants(process.pid)]
        for process in running:
            terminate_group(process.pid)
        end = time.monotonic() + patience_s
        while any(process.poll() is None for process in running) and time.monotonic() < end:
            time.sleep(0.05)
        for process in running:
            kill_now(process.pid, below)
            process.wait()
        for child in self._children:
            child.process = None
            child.log.close()
        self._notes.unlink(missing_ok=True)

    def _start(self, child: "_Child") -> None:
        try:
            process = subprocess.Popen(
                child.program.command,
                env=dict(child.program.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:  # no memory or no process to be had: that passes
            self._say(f"{child.program.name} cannot be started ({error}); trying again in {child.delay_s:.0f} s")
            self._put_off(child)
            return
        child.process, child.started = process, self._clock()
        self._noted = []
        threading.Thread(target=_pump, args=(process, child.log), daemon=True).start()

    def _note(self) -> None:
        """Note what runs. What cannot be noted now is noted at a later tick, and goes on meanwhile."""
        processes = list(self.processes().values())
        if set(processes) <= set(self._noted):
            return
        try:
            write_json(self._notes, [asdict(Holder(pid, start_time(pid))) for pid in processes])
        except OSError as error:
            if not self._told_of_notes:
                self._say(f"{self._notes}: cannot be written ({error.strerror}); trying again until it can")
            self._told_of_notes = True
            return
        self._noted, self._told_of_notes = processes, False

    def _ended(self, child: "_Child", status: int) -> None:
        assert child.process is not None
        kill_now(child.process.pid, ())
        child.process = None
        lived_s = self._clock() - child.started
        if lived_s >= SOUND_AFTER_S:
            child.delay_s = FIRST_DELAY_S
        self._say(
            f"{child.program.name} ended with status {status} after {lived_s:.0f} s; starting it again in "
            f"{child.delay_s:.0f} s. Its last words are in {child.log.baseFilename}"
        )
        self._put_off(child)

    def _put_off(self, child: "_Child") -> None:
        child.start_at = self._clock() + child.delay_s
        child.delay_s = min(2 * child.delay_s, LONGEST_DELAY_S)


@dataclass
class _Child:
    program: Program
    log: RotatingFileHandler
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    start_at: float = float("-inf")
    delay_s: float = FIRST_DELAY_S


class _OutputLog(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Leave out the line: the disk is full, and whoever prints must not be kept waiting."""


def _log_writer(path: Path) -> RotatingFileHandler:
    writer = _OutputLog(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8", errors="replace")
    writer.setFormatter(logging.Formatter("%(message)s"))
    return writer


def _pump(process: "subprocess.Popen[bytes]", log: RotatingFileHandler) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            text = line.decode("utf-8", errors="replace").rstrip()
            log.handle(logging.LogRecord("child", logging.INFO, "", 0, text, None, None))


_NOTES = TypeAdapter(list[Holder])


def _read_notes(path: Path) -> list[tuple[int, str]]:
    try:
        return [(holder.pid, holder.started) for holder in _NOTES.validate_json(path.read_bytes())]
    except (OSError, ValidationError):
        return []
