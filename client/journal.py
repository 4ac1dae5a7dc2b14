"""The site's log of what left it: one JSON object a line for each answer, kept for the hospital alone.

It holds names and sizes, counts and codes: no value of a model, no path, no patient.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

JOURNAL_VARIABLE = "GLIORN_JOURNAL"
"""Environment variable with the journal's path; `gliorn-client` sets it for the processes it starts."""

MAX_BYTES = 5 * 2**20
NUM_KEPT = 5
"""A journal of MAX_BYTES becomes `….1`, that one `….2`, and so on; NUM_KEPT of them are kept."""

Kind = Literal["describe", "train", "evaluate", "compare", "statistics", "duplicates", "bundle"]


@dataclass(frozen=True)
class Entry:
    """One answer of this site to the coordinator.

    Attributes:
        time: When it was ready to leave, ISO 8601 with time zone.
        kind: What was asked; "bundle" is an app bundle that this site refused.
        study: Name of the study; None where the task could not be read.
        study_digest: SHA-256 of the study.
        run: Name of the run; None where the task tells none.
        round: Round of the run, from 1; None where the task is of no round.
        rounds: Rounds that the study plans.
        seconds: Time that the answer took.
        failure: Code of what went wrong, which left in place of an answer; None where nothing did.
        sent: For each part of the answer its size: "arrays" and "bytes", or "values".
        facts: Counts for the line that a person reads, such as "steps" and "patients".
    """

    time: str
    kind: Kind
    study: str | None = None
    study_digest: str | None = None
    run: str | None = None
    round: int | None = None
    rounds: int | None = None
    seconds: float = 0.0
    failure: str | None = None
    sent: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    facts: Mapping[str, float | str] = field(default_factory=dict)

    def to_line(self) -> str:
        """The entry as a line of the journal."""
        return json.dumps(asdict(self), allow_nan=False) + "\n"


def read_entry(line: str) -> Entry | None:
    """The entry of a line; None for a line that is none, as after a power cut."""
    try:
        values: Any = json.loads(line)
        datetime.fromisoformat(values["time"])
        return Entry(**{name: value for name, value in values.items() if name in Entry.__dataclass_fields__})
    except (ValueError, TypeError, KeyError):
        return None


def append(path: Path, entry: Entry, *, max_bytes: int = MAX_BYTES) -> None:
    """Write an entry at the end of the journal, for its owner alone, and let no journal grow for ever.

    Raises:
        OSError: If it cannot be written. Then the answer must not leave either.
    """
    try:
        if path.stat().st_size >= max_bytes:
            _rotate(path)
    except FileNotFoundError:
        pass
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(entry.to_line().encode())


def require_writable(path: Path) -> None:
    """Check that there is room for another entry, beside the journal, and that the journal itself takes one.

    Raises:
        OSError: If not.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    trial = path.with_name(f".{path.name}.trial")
    try:
        descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(4096))
    finally:
        trial.unlink(missing_ok=True)


def _rotate(path: Path) -> None:
    for number in range(NUM_KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            os.replace(older, path.with_name(f"{path.name}.{number + 1}"))
    os.replace(path, path.with_name(f"{path.name}.1"))


class JournalReader:
    """Reads what is added to a journal after the reader was made, across its rotation."""

    def __init__(self, path: Path) -> None:
        """Begin at the journal's end."""
        self._path = path
        self._identity, self._position = self._end()
        self._rest = b""

    def _end(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_ino, status.st_size

    def new_entries(self) -> Iterator[Entry]:
        """What was added since the last call; an unfinished line is left for the next."""
        identity, size = self._end()
        if identity != self._identity:
            if self._identity:  # what was added just before the rotation
                yield from self._read(self._path.with_name(f"{self._path.name}.1"))
            self._identity, self._position, self._rest = identity, 0, b""
        if size > self._position:
            yield from self._read(self._path)

    def _read(self, path: Path) -> Iterator[Entry]:
        try:
            with path.open("rb") as file:
                file.seek(self._position)
                added = file.read()
        except FileNotFoundError:
            return
        self._position += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            entry = read_entry(line.decode(errors="replace"))
            if entry is not None:
                yield entry
