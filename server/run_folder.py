"""The folder of one run: where its files lie and how they are written so that none is ever half there."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigError
from common.study import Study, parse_study

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What the name of a run's folder looks like; it is also the run's name in messages."""

RUNS_VARIABLE = "GLIORN_RUNS"
"""Environment variable that tells the ServerApp the folder of all runs."""

RUN_KEY = "run"
"""Flower run setting that names the run: a folder's name, no path."""

Wish = Literal["run", "pause", "stop"]
"""What the coordinator wants of a run: that it goes on, waits after the round it is in, or ends there."""


@dataclass(frozen=True)
class Participants:
    """Who is expected in a run.

    Attributes:
        sites: Names of the sites.
        identity: "registered" takes a node's name from the coordinator's registration; "claimed", for a federation on
            one machine, takes it from the site's own manifest.
        engine: What carries the messages: "in-process", "ray" or "network" on one machine, "federation" between real
            sites.
    """

    sites: tuple[str, ...]
    identity: Literal["registered", "claimed"]
    engine: str


def write_atomically(path: Path, payload: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader, or a restart after a crash, sees the old one or the whole new one.

    Args:
        path: The file.
        payload: Its bytes, whole or in parts.

    Raises:
        OSError: If it cannot be written, for example because the disk is full; nothing is left of it then.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            file.writelines([payload] if isinstance(payload, bytes) else payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file would keep the room that is missing
        raise
    temporary.replace(path)
    _sync_folder(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, atomically. NaN and infinities are our own mistake and refused."""
    write_atomically(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunFolder:
    """Paths in the folder of one run, and reading of what defines the run.

    Beside what every run has: `wish` says what the coordinator wants of it, `server_app_lock` is held by the process
    that carries it, `manifests` is what the sites brought, `submission` what Flower was given, `trouble` why the server
    gave up on it, `resumption` that it shall go on after an end without result. Where the study names a file of
    weights, `initial_weights` is a copy of it and `weights_report` says what became of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study = path / "study.yaml"
        self.participants = path / "participants.json"
        self.progress = path / "progress.json"
        self.status = path / "status.json"
        self.rounds = path / "rounds.jsonl"
        self.record = path / "record.json"
        self.report = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.replies = path / "replies"
        self.model = path / "model"
        self.wish = path / "wish.json"
        self.server_app_lock = path / "serverapp.lock"
        self.log = path / "run.log"
        self.manifests = path / "manifests.json"
        self.submission = path / "submission.json"
        self.trouble = path / "trouble.json"
        self.resumption = path / "resumption.json"
        self.initial_weights = path / "initial_weights.pth"
        self.weights_report = path / "initial_weights.json"

    @property
    def name(self) -> str:
        """The run's name, as it stands in messages and in the record."""
        return self.path.name

    def state(self, round: int) -> Path:
        """Where the global state after a round is kept; round 0 is the initial state."""
        return self.checkpoints / f"state-{round:05d}.safetensors"

    def memory(self, round: int, part: str) -> Path:
        """Where a part of what the server remembers after a round is kept; round 0 is before the first one."""
        return self.checkpoints / f"memory-{part}-{round:05d}.safetensors"

    def read_study(self) -> Study:
        """The study of this run; raises ConfigError if the file is absent or was damaged."""
        if not self.study.is_file():
            raise ConfigError(f"{self.path}: no study.yaml in it, expected the folder of a run; check the path")
        return parse_study(self.study.read_text(encoding="utf-8"), origin=str(self.study))

    def read_wish(self) -> Wish:
        """What the coordinator wants of this run; "run" where nothing was said."""
        try:
            return _WISH.validate_json(self.wish.read_bytes())
        except (OSError, ValidationError):  # a run without a server that starts and stops it
            return "run"

    def write_wish(self, wish: Wish) -> None:
        """Say what is wanted of this run from now on; the run heeds it at the end of a round."""
        write_json(self.wish, wish)

    def read_trouble(self) -> str | None:
        """Why the server gave up on this run, as a sentence; None where it did not."""
        try:
            return _SENTENCE.validate_json(self.trouble.read_bytes())
        except (OSError, ValidationError):
            return None

    def read_participants(self) -> Participants:
        """The sites of this run; raises ConfigError if the file is absent or was damaged."""
        try:
            return _PARTICIPANTS.validate_json(self.participants.read_bytes(), strict=True, extra="forbid")
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"{self.participants}: unreadable ({type(error).__name__}); this run cannot go on, start it afresh"
            ) from None


_PARTICIPANTS = TypeAdapter(Participants)
_WISH: TypeAdapter[Wish] = TypeAdapter(Wish)
_SENTENCE = TypeAdapter(str)


def create_run_folder(
    path: Path, *, study_text: str, participants: Participants, initial_weights: bytes | None = None
) -> RunFolder:
    """Make the folder of a new run.

    Args:
        path: The folder.
        study_text: Its study.yaml, which is written last: a folder with a study is a run.
        participants: Who is expected.
        initial_weights: The file that the study begins from, if it names one.

    Raises:
        ConfigError: If the folder exists and is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"{path}: exists and is not empty; give another --out, or continue that run with --resume {path}"
        )
    folder = RunFolder(path)
    for part in (folder.checkpoints, folder.replies, folder.model):
        part.mkdir(parents=True, exist_ok=True)
    write_json(folder.participants, asdict(participants))
    if initial_weights is not None:
        write_atomically(folder.initial_weights, initial_weights)
    write_atomically(folder.study, study_text.encode())
    return folder
