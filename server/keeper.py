"""Keeps the runs of a federation going: hands them to Flower one at a time, and again when their ServerApp has died.

What is wanted of a run stands in its folder, so that a run survives the terminal it was asked for in, the server that
carries it, and the machine.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, TypeAdapter, ValidationError

from common.errors import ConfigError
from server.locks import is_held
from server.run_folder import RunFolder, write_json
from server.superlink import SuperLinkError

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
START_PATIENCE_S = 60.0
"""Seconds between handing a run to Flower and its ServerApp's first sign of life, on a busy machine."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


_FILE_DATES_LAG_NS = 10_000_000
"""By so much a file's date can be older than the clock."""


class RunCarrier(Protocol):
    """What is asked of Flower here."""

    def submit(self, run: str) -> str:
        """Have a ServerApp started for a run; returns Flower's number of it."""

    def stop(self, run_id: str) -> None:
        """Have Flower forget a run it was given."""


@dataclass(frozen=True)
class Submission:
    """A run as it was handed to Flower.

    Attributes:
        run_id: Flower's number of it.
        server: Which start of the server handed it over.
        attempts: How often in a row it was handed over without a round being finished.
        round: Rounds that were finished then.
    """

    run_id: str
    server: str
    attempts: int
    round: int


@dataclass(frozen=True)
class _Unwritten:
    """A submission that is not on the disk yet, and the time of the handing over as files are dated."""

    submission: Submission
    at_ns: int


_SUBMISSION = TypeAdapter(Submission)


class _Round(BaseModel):
    round: int


class _Outcome(BaseModel):
    outcome: str


class Keeper:
    """Keeps runs going.

    Args:
        runs: Folder of all runs.
        carrier: Flower.
        server: Name of this start of the server, unlike that of any other.
        record_stop: Writes the record of a run that was stopped while no process carried it.
        say: Told one plain line whenever something happens.
        clock: Seconds on a clock that only goes forward.
    """

    def __init__(
        self,
        runs: Path,
        carrier: RunCarrier,
        *,
        server: str,
        record_stop: Callable[[RunFolder], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs = runs
        self._carrier = carrier
        self._server = server
        self._record_stop = record_stop
        self._say = say
        self._clock = clock
        self._alive: str | None = None
        self._handed_over_at: dict[str, float] = {}
        self._dead_since: dict[str, float] = {}
        self._unwritten: dict[str, _Unwritten] = {}
        self._troubles: dict[str, str] = {}

    def tick(self) -> None:
        """Do what has to be done; without a change, this asks Flower nothing.

        What cannot be written is told once and tried again at the next call; a run is not handed over again for it.

        Raises:
            SuperLinkError: If Flower fails; the next call tries again.
        """
        folders = runs_in_order(self._runs)
        for folder in folders:
            self._try(folder, self._write_down)
        alive = next((folder for folder in folders if is_held(folder.server_app_lock)), None)
        self._note_alive(alive)
        if alive is not None:
            return
        for folder in folders:
            if not is_due(folder):
                self._try(folder, self._tidy_up)
        due = next((folder for folder in folders if is_due(folder)), None)
        if due is not None:
            self._try(due, self._carry_on)

    def _try(self, folder: RunFolder, step: Callable[[RunFolder], None]) -> None:
        try:
            step(folder)
        except OSError as error:
            text = f"{error.strerror or error}"
            if self._troubles.get(folder.name) != text:
                self._say(f"run {folder.name}: its files cannot be written ({text}); trying again until they can")
            self._troubles[folder.name] = text

    def _write_down(self, folder: RunFolder) -> None:
        """Write what was handed over and could not be noted then."""
        waiting = self._unwritten.get(folder.name)
        if waiting is None:
            return
        write_json(folder.submission, asdict(waiting.submission))
        # The file's date is compared with that of the ServerApp's lock.
        os.utime(folder.submission, ns=(waiting.at_ns, waiting.at_ns))
        del self._unwritten[folder.name]
        self._troubles.pop(folder.name, None)

    def _submission_of(self, folder: RunFolder) -> Submission | None:
        waiting = self._unwritten.get(folder.name)
        return _read_submission(folder) if waiting is None else waiting.submission

    def _was_alive_since(self, folder: RunFolder) -> bool:
        """Whether a ServerApp has taken the run's lock since the run was handed over."""
        waiting = self._unwritten.get(folder.name)
        try:
            handed_over = folder.submission.stat().st_mtime_ns if waiting is None else waiting.at_ns
            return folder.server_app_lock.stat().st_mtime_ns >= handed_over
        except FileNotFoundError:
            return False

    def _note_alive(self, folder: RunFolder | None) -> None:
        name = None if folder is None else folder.name
        if name == self._alive:
            return
        if self._alive is not None:
            self._dead_since.setdefault(self._alive, self._clock())
        if name is not None:
            self._dead_since.pop(name, None)
            self._say(f"run {name}: at work")
        self._alive = name

    def _carry_on(self, folder: RunFolder) -> None:
        """Hand a run over, unless it was and there is still hope."""
        last = self._submission_of(folder)
        if last is None:
            self._hand_over(folder, attempts=1)
        elif last.server != self._server:
            # Its ServerApp ended with the server that started it, which says nothing about the run.
            self._forget(folder, last)
            self._hand_over(folder, attempts=last.attempts)
        elif self._is_dead(folder):
            self._try_again(folder, last)

    def _is_dead(self, folder: RunFolder) -> bool:
        if folder.name in self._dead_since:
            return True
        if self._was_alive_since(folder):
            self._dead_since[folder.name] = self._clock()
            return True
        return self._clock() - self._handed_over_at.get(folder.name, float("-inf")) > START_PATIENCE_S

    def _try_again(self, folder: RunFolder, last: Submission) -> None:
        attempts = 1 if _rounds_done(folder) > last.round else last.attempts + 1
        if attempts > MAX_ATTEMPTS:
            self._give_up(folder)
            return
        pause_s = min(FIRST_PAUSE_S * 2 ** (attempts - 1), LONGEST_PAUSE_S)
        if self._clock() < self._dead_since.get(folder.name, float("-inf")) + pause_s:
            return
        self._say(
            f"run {folder.name}: its program ended without a result after round {_rounds_done(folder)}; starting it "
            f"again from there (attempt {attempts} of {MAX_ATTEMPTS} without a new round). What it said is in "
            f"{folder.log}"
        )
        self._forget(folder, last)
        self._hand_over(folder, attempts=attempts)

    def _hand_over(self, folder: RunFolder, *, attempts: int) -> None:
        run_id = self._carrier.submit(folder.name)
        submission = Submission(run_id, self._server, attempts, _rounds_done(folder))
        self._dead_since.pop(folder.name, None)
        self._handed_over_at[folder.name] = self._clock()
        self._say(f"run {folder.name}: handed to Flower")
        try:
            write_json(folder.submission, asdict(submission))
        except OSError:
            self._unwritten[folder.name] = _Unwritten(submission, time.time_ns() - _FILE_DATES_LAG_NS)
            raise

    def _give_up(self, folder: RunFolder) -> None:
        sentence = (
            f"its program ended {MAX_ATTEMPTS} times without finishing round {_rounds_done(folder) + 1}, so it is not "
            f"started again. {last_error(folder)}Mend that, then `gliorn-server run --resume {folder.name}`"
        )
        write_json(folder.trouble, sentence)
        self._troubles.pop(folder.name, None)
        self._say(f"run {folder.name}: {sentence}")

    def _tidy_up(self, folder: RunFolder) -> None:
        """Close the books on a run that has ended, is paused, was stopped or given up on."""
        last = self._submission_of(folder)
        if last is None:
            return
        if folder.read_wish() == "stop" and not folder.record.is_file():
            self._end_stopped(folder)
        self._forget(folder, last)
        folder.submission.unlink(missing_ok=True)
        self._unwritten.pop(folder.name, None)
        self._troubles.pop(folder.name, None)
        outcome = outcome_of(folder)
        self._dead_since.pop(folder.name, None)
        if outcome is not None:
            self._say(f"run {folder.name}: ended {outcome}")
        else:
            self._say(f"run {folder.name}: set aside after round {_rounds_done(folder)}")

    def _end_stopped(self, folder: RunFolder) -> None:
        """Write the record that a ServerApp would have written, had it lived to the end of its round."""
        try:
            self._record_stop(folder)
        except ConfigError as error:
            write_json(folder.trouble, f"it was stopped, but its record cannot be written: {error}")

    def _forget(self, folder: RunFolder, submission: Submission) -> None:
        """Have Flower forget a run whose ServerApp never began; one whose ServerApp ended, it forgets in a minute.

        Not before that: a SuperNode (flwr 1.41, `start_client_internal.py`) whose run is stopped while it fetches a
        message waits for ever for the rest of it.
        """
        if self._was_alive_since(folder):
            return
        try:
            self._carrier.stop(submission.run_id)
        except SuperLinkError as error:  # it has ended, or the database is new: nothing is left to stop
            log.debug("%s", error)


def runs_in_order(runs: Path) -> list[RunFolder]:
    """All runs of a federation, the oldest first."""
    found: list[tuple[float, str]] = []
    for path in runs.glob("*/participants.json"):
        with suppress(FileNotFoundError):  # somebody deleted the run's folder while we looked
            found.append((path.stat().st_mtime, path.parent.name))
    return [RunFolder(runs / name) for _, name in sorted(found)]


def is_due(folder: RunFolder) -> bool:
    """Whether a run is to go on and has not ended."""
    if not folder.wish.is_file() or folder.read_wish() != "run" or folder.trouble.is_file():
        return False
    return not folder.record.is_file() or folder.resumption.is_file()


def outcome_of(folder: RunFolder) -> str | None:
    """How a run ended; None for one that has not, or whose record is damaged."""
    try:
        return _Outcome.model_validate_json(folder.record.read_bytes()).outcome
    except (OSError, ValidationError):
        return None


def last_error(folder: RunFolder) -> str:
    """What a run's log says last of what went wrong, as a sentence and a blank; empty where it says nothing."""
    try:
        lines = folder.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if re.match(r"\S+ \S+ ERROR ", line)]
    return f"It said last: {errors[-1].split(' ERROR ', 1)[1].rstrip('.')}. " if errors else ""


def _rounds_done(folder: RunFolder) -> int:
    try:
        return _Round.model_validate_json(folder.progress.read_bytes()).round
    except (OSError, ValidationError):
        return 0


def _read_submission(folder: RunFolder) -> Submission | None:
    try:
        return _SUBMISSION.validate_json(folder.submission.read_bytes())
    except (OSError, ValidationError):
        return None
