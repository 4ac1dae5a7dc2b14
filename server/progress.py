"""How far a run has come, committed after every round, so that a killed run goes on from there with the same bytes."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigError, ProtocolError
from common.model_state import ModelState, encoded_parts, state_digest
from server.aggregation import Memory
from server.disk import once_there_is_room
from server.fedprox import ProximalStrength
from server.records import RoundRecord
from server.run_folder import RunFolder, write_atomically, write_json
from server.stored_state import StoredState


@dataclass(frozen=True)
class Candidate:
    """A round's state with its pooled validation result, for the choice of the best model.

    Attributes:
        num_patients: Patients the result is pooled over.
        auc: None where it is not estimable.
        loss: Mean loss per patient; None where no pooled figure was formed.
    """

    round: int
    num_patients: int
    auc: float | None
    loss: float | None

    def beats(self, other: "Candidate | None") -> bool:
        """Whether this state is the better choice; the earlier one stays on a complete tie.

        The higher AUC, then the lower loss. How many patients a result rests on does not decide: a run that loses a
        site would else keep a state of its first rounds. A state with no result is chosen only where none has one,
        the later the better.
        """
        if other is None:
            return True
        if self.loss is None or other.loss is None:
            return (self.loss is not None) or (other.loss is None and self.round > other.round)
        return self._key() > other._key()

    def _key(self) -> tuple[float, float]:
        assert self.loss is not None
        return (-1.0 if self.auc is None else self.auc, -self.loss)


@dataclass(frozen=True)
class Progress:
    """What is known after a round.

    Attributes:
        round: The last finished round; 0 before the first.
        state_digest: SHA-256 of the state after it.
        study_digest: The study the run was begun with.
        best: The best state among those evaluated so far; the initial state is no candidate.
        quarantined: Sites that are not asked any more, with the reason.
        cohorts: For each site the keyed hashes of its case lists; a site whose lists change is not let in again.
        rounds_bytes: Length of `rounds.jsonl` up to this round.
        num_resumed: How often the run was continued after a stop.
        memory_digests: SHA-256 of each part of what the server remembers for the next round.
        fedprox: Strength of an adaptive FedProx in the next round; None where the study's own stands.
        run_id: Of this run alone, whatever others are called; empty in one that was begun before there were any.
    """

    round: int
    state_digest: str
    study_digest: str
    best: Candidate | None = None
    quarantined: dict[str, str] = field(default_factory=dict)
    cohorts: dict[str, dict[str, str]] = field(default_factory=dict)
    rounds_bytes: int = 0
    num_resumed: int = 0
    memory_digests: dict[str, str] = field(default_factory=dict)
    fedprox: ProximalStrength | None = None
    run_id: str = ""


_PROGRESS = TypeAdapter(Progress)


def begin(folder: RunFolder, state: ModelState, *, memory: Memory | None = None, run_id: str = "") -> Progress:
    """Commit the initial state, what the server remembers from the start, and the run's own number, as round 0."""
    progress = Progress(
        round=0,
        state_digest=state_digest(state),
        study_digest=folder.read_study().digest,
        memory_digests=_write_memory(folder, 0, memory or {}),
        run_id=run_id,
    )
    once_there_is_room(lambda: write_atomically(folder.state(0), encoded_parts(state)))
    once_there_is_room(lambda: write_atomically(folder.rounds, b""))
    once_there_is_room(lambda: write_json(folder.progress, asdict(progress)))
    return progress


def commit(
    folder: RunFolder, progress: Progress, *, record: RoundRecord, state: ModelState, memory: Memory | None = None
) -> Progress:
    """Make a round last: its state, what the server remembers, its line in `rounds.jsonl`, then the progress.

    The progress names all of them. A full disk is waited for.

    A kill before the last step leaves the previous round as the last one; what is already there is overwritten when the
    round is run again.
    """
    once_there_is_room(lambda: write_atomically(folder.state(record.round), encoded_parts(state)))
    digests = _write_memory(folder, record.round, memory or {})
    lines = folder.rounds.read_bytes()[: progress.rounds_bytes] + record.to_line().encode()
    once_there_is_room(lambda: write_atomically(folder.rounds, lines))
    progress = replace(
        progress,
        round=record.round,
        state_digest=record.state_digest,
        rounds_bytes=len(lines),
        memory_digests=digests,
    )
    save(folder, progress)
    return progress


def _write_memory(folder: RunFolder, round: int, memory: Memory) -> dict[str, str]:
    return {part: _write_part(folder.memory(round, part), values) for part, values in memory.items()}


def _write_part(path: Path, values: ModelState) -> str:
    once_there_is_room(lambda: write_atomically(path, encoded_parts(values)))
    return state_digest(values)


def save(folder: RunFolder, progress: Progress) -> None:
    """Commit the progress and drop the states and memories that nobody needs any more."""
    once_there_is_room(lambda: write_json(folder.progress, asdict(progress)))
    keep = {folder.state(progress.round)}
    keep |= {folder.memory(progress.round, part) for part in progress.memory_digests}
    if progress.best is not None:
        keep.add(folder.state(progress.best.round))
    for kind in ("state", "memory"):
        for path in folder.checkpoints.glob(f"{kind}-*.safetensors*"):
            if path not in keep:
                path.unlink()


def resume(folder: RunFolder) -> Progress | None:
    """The progress of a run that was stopped, counted as one more resumption; None if no round was committed.

    Raises:
        ConfigError: If the progress or `rounds.jsonl` was damaged, or the study is another one.
    """
    progress = read_progress(folder)
    if progress is None:
        return None
    progress = replace(progress, num_resumed=progress.num_resumed + 1)
    once_there_is_room(lambda: write_json(folder.progress, asdict(progress)))
    return progress


def read_progress(folder: RunFolder) -> Progress | None:
    """The progress of a run; None if no round was committed, not even the initial state.

    Raises:
        ConfigError: If the progress or `rounds.jsonl` was damaged, or the study is another one.
    """
    if not folder.progress.is_file():
        return None
    try:
        progress = _PROGRESS.validate_json(folder.progress.read_bytes(), strict=True, extra="forbid")
    except ValidationError as error:
        raise ConfigError(
            f"{folder.progress}: {error.error_count()} faults, expected what the run wrote; "
            "restore it from a copy or start the run afresh"
        ) from None
    if folder.read_study().digest != progress.study_digest:
        raise ConfigError(
            f"{folder.study}: not the study this run was begun with; restore it, or start another run with the new one"
        )
    read_rounds(folder, progress)
    return progress


def load_state(folder: RunFolder, round: int, *, digest: str | None = None) -> StoredState:
    """The state after a round; its arrays stay on disk.

    Args:
        folder: The run.
        round: The round.
        digest: What the state must have as SHA-256, if that is known.

    Raises:
        ConfigError: If the file is absent or not the one that was written.
    """
    return _load(folder.state(round), f"the model state after round {round}", digest=digest)


def load_memory(folder: RunFolder, progress: Progress) -> dict[str, StoredState]:
    """What the server remembers for the next round; its arrays stay on disk.

    Raises:
        ConfigError: If a file is absent or not the one that was written.
    """
    return {
        part: _load(folder.memory(progress.round, part), f"the {part} after round {progress.round}", digest=digest)
        for part, digest in progress.memory_digests.items()
    }


def _load(path: Path, what: str, *, digest: str | None) -> StoredState:
    if not path.is_file():
        raise ConfigError(f"{path}: absent, expected {what}; restore it from a copy")
    try:
        state = StoredState(path, origin=str(path))
    except ProtocolError as error:  # no peer sent it: it lies on the coordinator's own disk
        raise ConfigError(str(error)) from None
    if digest is not None and state_digest(state) != digest:
        raise ConfigError(f"{path}: its SHA-256 is not the one in progress.json; restore it from a copy")
    return state


def read_rounds(folder: RunFolder, progress: Progress) -> list[dict[str, Any]]:
    """The lines of `rounds.jsonl` up to the last finished round, the first one of round 1.

    Raises:
        ConfigError: If the file is absent or was damaged.
    """
    try:
        lines = folder.rounds.read_bytes()[: progress.rounds_bytes].decode().splitlines()
        rounds: list[dict[str, Any]] = [json.loads(line) for line in lines]
        whole = [record["round"] for record in rounds] == list(range(1, progress.round + 1))
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ConfigError(
            f"{folder.rounds}: expected one line for each of {progress.round} rounds; restore it from a copy"
        )
    return rounds
