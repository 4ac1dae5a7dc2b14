"""How far a run is, read from its folder: it may be running in another process, ended, or killed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import ConfigError
from server.locks import is_held
from server.record import Outcome
from server.records import damage_text, damaged_parts, ranges
from server.report.participation import absences
from server.report.reading import Record, RoundLine, read_record, read_round_lines
from server.report.wording import count, duration, three
from server.run_folder import RunFolder, Wish
from server.statistics_note import is_statistics_run
from server.status import Phase


class _Board(BaseModel):
    """`status.json`; see `server.status.StatusBoard`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    phase: Phase
    round: int
    num_rounds: int
    asked: list[str]
    answered: list[str]


@dataclass(frozen=True)
class ValidationResult:
    """The last validation AUC: of the state after `round`; value and interval None where not estimable.

    Attributes:
        kind: Pooled, or within sites where every site trains by itself.
    """

    round: int
    auc: float | None
    low: float | None
    high: float | None
    kind: Literal["pooled", "within_site"] = "pooled"


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        phase: What it does, or did last; "not started" before its first sign of life.
        outcome: How it ended; None as long as it goes on.
        round: The round it is in; the last one where it has ended.
        num_rounds: Rounds of the study.
        rounds_done: Rounds that are finished and kept.
        answered: Sites that have answered in this phase.
        waiting_for: Sites that were asked and have not.
        last_validation: None before the first pooled result.
        problems: What went wrong so far, as sentences.
        changed_at: When the run last gave a sign of life.
        wish: What the coordinator wants of it; None for a run that no `gliorn-server start` carries.
        alive: Whether a process carries it right now.
        trouble: Why the server gave up on it; None where it did not.
        trains: Whether it has rounds; a run of statistics has none.
    """

    run: str
    phase: Phase | Literal["not started"]
    outcome: Outcome | None
    round: int
    num_rounds: int
    rounds_done: int
    answered: list[str]
    waiting_for: list[str]
    last_validation: ValidationResult | None
    problems: list[str]
    changed_at: datetime
    wish: Wish | None = None
    alive: bool = False
    trouble: str | None = None
    trains: bool = True


def read_status(folder: RunFolder) -> RunStatus:
    """How far a run is.

    Raises:
        ConfigError: If this is no folder of a run, or a file in it is damaged.
    """
    if not folder.path.is_dir():
        raise ConfigError(f"{folder.path}: no such folder, expected the folder of a run; check the path")
    study = folder.read_study()
    board = _read_board(folder)
    rounds = read_round_lines(folder) if folder.rounds.is_file() else []
    record = _record_of_ended_run(folder)
    return RunStatus(
        run=folder.name,
        phase="not started" if board is None else board.phase,
        outcome=None if record is None else record.outcome,
        round=0 if board is None else board.round,
        num_rounds=study.rounds,
        rounds_done=len(rounds),
        answered=[] if board is None or record is not None else board.answered,
        waiting_for=[] if board is None or record is not None else sorted({*board.asked} - {*board.answered}),
        last_validation=_last_validation(rounds, record),
        problems=_problems(rounds) if record is None else record.problems,
        changed_at=_changed_at(folder),
        wish=folder.read_wish() if folder.wish.is_file() else None,
        alive=is_held(folder.server_app_lock),
        trouble=folder.read_trouble(),
        trains=not is_statistics_run(folder),
    )


def status_lines(status: RunStatus, *, now: datetime) -> list[str]:
    """The status for a person, with what to do next.

    Args:
        status: How far the run is.
        now: When it is read.
    """
    lines = [f"{status.run}: {stand(status)}"]
    if status.trouble is not None:
        lines.append(f"  {status.trouble}")
    if status.outcome is None and status.phase not in ("not started", "paused", "finished"):
        if status.answered:
            lines.append(f"  answered: {', '.join(status.answered)}")
        if status.waiting_for:
            lines.append(f"  waiting for: {', '.join(status.waiting_for)}")
    if (last := status.last_validation) is not None:
        kind = "pooled" if last.kind == "pooled" else "within-site"
        lines.append(f"  {kind} validation AUC after round {last.round}: {_auc_text(last)}")
    lines.append(f"  problems so far: {len(status.problems) or 'none'}")
    lines += [f"    - {problem}" for problem in status.problems]
    age = max(0.0, (now - status.changed_at).total_seconds())
    lines.append(f"  last sign of life: {status.changed_at:%Y-%m-%d %H:%M:%S} UTC, {duration(age)} ago")
    if status.outcome is not None:
        verb = "report" if status.trains else "statistics --show"
        what = "writes its report.html" if status.trains else "shows its figures"
        lines.append(f"Next: `gliorn-server {verb}` with this {'folder' if status.trains else 'run'} {what}")
    elif status.wish in ("pause", "stop") and not status.alive:
        lines.append(f"Next: `gliorn-server run --resume {status.run}` continues it")
    return lines


def stand(status: RunStatus) -> str:
    """Where a run stands, in a few words."""
    done = f"{status.rounds_done} of {count(status.num_rounds, 'round')}" if status.trains else "statistics alone"
    if status.outcome is not None:
        return f"ended {status.outcome} after {done}"
    texts: dict[str, str] = {
        "joining": f"sites join, {done} done",
        "round": f"round {status.round} of {status.num_rounds}, {status.rounds_done} done",
        "validation": "all rounds done, evaluation on the validation patients",
        "test": "all rounds done, evaluation on the test patients",
        "statistics": "sites count their cohorts",
        "paused": f"paused after {done}",
        "finished": "finished, but its record.json is gone; restore it from a copy",
    }
    text = texts.get(status.phase, status.phase)
    match status.wish, status.alive:
        case "pause", False:
            return f"paused after {done}"
        case "pause", True:
            return f"{text}; waits after this round"
        case "stop", _:
            return f"{text}; ends after this round"
        case "run", False:
            return f"{text}; " + ("given up on" if status.trouble else "waits for the server to start it")
    return text


def _auc_text(last: ValidationResult) -> str:
    if last.auc is None:
        return "not estimable"
    if last.low is None or last.high is None:
        return f"{three(last.auc)} (no interval)"
    return f"{three(last.auc)} [{three(last.low)}, {three(last.high)}]"


def _read_board(folder: RunFolder) -> _Board | None:
    if not folder.status.is_file():
        return None
    try:
        return _Board.model_validate_json(folder.status.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{folder.status}: unreadable ({type(error).__name__}); it is written anew when the run goes on, "
            "delete it and continue the run"
        ) from None


def _record_of_ended_run(folder: RunFolder) -> Record | None:
    """The record; a run that goes on after an INVALID end, or is about to, has none until its next end."""
    return read_record(folder) if folder.record.is_file() and not folder.resumption.is_file() else None


def _last_validation(rounds: Sequence[RoundLine], record: Record | None) -> ValidationResult | None:
    states = [(line.evaluated_round, line.validation) for line in rounds]
    if record is not None and record.selection is not None:
        states.append((record.rounds_done, record.selection.last_validation))
    for round, validation in reversed(states):
        if (auc := validation.auc) is not None:
            return ValidationResult(round, auc.value, auc.low, auc.high, validation.kind)
    return None


def _problems(rounds: Sequence[RoundLine]) -> list[str]:
    return [
        f"{absence.site} was not in round{'' if absence.rounds.isdigit() else 's'} {absence.rounds}: {absence.status}"
        + (f": {absence.reason}" if absence.reason else "")
        for absence in absences(rounds)
    ] + [
        damage_text(site, part, f"in round{'s' if len(numbers) > 1 else ''} {ranges(numbers)}")
        for (site, part), numbers in sorted(damaged_parts([line.model_dump() for line in rounds]).items())
    ]


def _changed_at(folder: RunFolder) -> datetime:
    files = [path for path in (folder.status, folder.record, folder.rounds, folder.study) if path.is_file()]
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in files), tz=UTC)
