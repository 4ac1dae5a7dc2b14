"""What a run keeps of itself: which state is the best, what survives, and what damage is noticed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from common.model_state import state_digest
from server.aggregation import Memory
from server.fedprox import ProximalStrength
from server.progress import Candidate, Progress, begin, commit, load_memory, load_state, read_rounds, resume, save
from server.records import RoundRecord, SiteRound
from server.run_folder import Participants, RunFolder, create_run_folder
from tests.tiny_hospitals import study_text


def result(round: int, auc: float | None, loss: float | None, num_patients: int = 10) -> Candidate:
    return Candidate(round=round, num_patients=num_patients, auc=auc, loss=loss)


def best_of(*candidates: Candidate) -> int:
    best: Candidate | None = None
    for each in candidates:
        if each.beats(best):
            best = each
    assert best is not None
    return best.round


def nothing(round: int) -> Candidate:
    return result(round, None, None, num_patients=0)


SEQUENCES: dict[str, tuple[list[Candidate], int]] = {
    "highest AUC": ([result(1, 0.7, 1.0), result(2, 0.9, 2.0), result(3, 0.8, 0.1)], 2),
    "last round": ([result(1, 0.7, 1.0), result(2, 0.8, 1.0), result(3, 0.9, 1.0)], 3),
    "tie goes to the lower loss": ([result(1, 0.9, 1.0), result(2, 0.9, 0.5), result(3, 0.9, 0.7)], 2),
    "complete tie goes to the earlier round": ([result(1, 0.9, 0.5), result(2, 0.9, 0.5)], 1),
    "score of zero is a score": ([result(1, None, 0.1), result(2, 0.0, 9.0), result(3, None, 0.1)], 2),
    "loss of zero is a loss": ([result(1, 0.9, 0.1), result(2, 0.9, 0.0)], 2),
    "without an AUC the loss decides": ([result(1, None, 1.0), result(2, None, 0.5), result(3, None, 0.8)], 2),
    "a lost site does not freeze the choice": ([result(1, 0.5, 1.0, 10), result(2, 0.9, 0.1, 9)], 2),
    "a site that comes back does not decide": ([result(1, 0.9, 0.1, 9), result(2, 0.8, 1.0, 10)], 1),
    "no result loses to any": ([result(1, 0.1, 9.0), nothing(2), nothing(3)], 1),
    "any result beats none": ([nothing(1), nothing(2), result(3, None, 9.0)], 3),
    "without any result the last state": ([nothing(1), nothing(2), nothing(3)], 3),
}


@pytest.mark.parametrize(("candidates", "best"), SEQUENCES.values(), ids=SEQUENCES)
def test_best_state_of_a_sequence(candidates: list[Candidate], best: int) -> None:
    assert best_of(*candidates) == best


@pytest.mark.parametrize(("candidates", "best"), SEQUENCES.values(), ids=SEQUENCES)
def test_state_does_not_beat_itself_when_it_is_evaluated_again(candidates: list[Candidate], best: int) -> None:
    assert best_of(*candidates, *(c for c in candidates if c.round == best)) == best
    assert not any(candidate.beats(candidate) for candidate in candidates)


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    participants = Participants(("a",), "registered", "in-process")
    return create_run_folder(tmp_path / "run", study_text=study_text(rounds=9), participants=participants)


def state(value: float) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    return {"w": np.full(3, value, dtype=np.float32)}


def done(folder: RunFolder, progress: Progress, round: int, *, memory: Memory | None = None) -> Progress:
    record = RoundRecord(
        round=round,
        learning_rate=0.1,
        class_weights=(1.0, 1.0),
        fedprox_mu=0.0,
        sites={"a": SiteRound("accepted", num_patients=(1, 2))},
        evaluated_round=round - 1,
        validation={},
        state_digest=state_digest(state(round)),
        started_at="2026-01-01T00:00:00",
        seconds=1.0,
    )
    return commit(folder, progress, record=record, state=state(round), memory=memory)


def states_in(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_folder_without_progress_is_a_run_that_has_not_begun(folder: RunFolder) -> None:
    assert resume(folder) is None


def test_progress_comes_back_as_it_was_and_counts_the_stop(folder: RunFolder) -> None:
    progress = done(folder, begin(folder, state(0)), 1)
    progress = replace(
        progress,
        best=result(1, 0.0, 0.5),
        quarantined={"b": "NaN"},
        cohorts={"a": {"train": "0"}},
        fedprox=ProximalStrength(0.01, 0.5, (3, 4)),
    )
    save(folder, progress)

    assert resume(folder) == replace(progress, num_resumed=1)
    assert resume(folder) == replace(progress, num_resumed=2)


def test_last_and_best_state_are_kept_and_no_other(folder: RunFolder) -> None:
    progress = begin(folder, state(0))
    for round in (1, 2, 3, 4):
        progress = done(folder, replace(progress, best=result(min(round, 2), 0.9, 0.5)), round)

    assert states_in(folder) == ["state-00002.safetensors", "state-00004.safetensors"]
    assert state_digest(load_state(folder, 2)) == state_digest(state(2))


def test_round_that_was_cut_off_after_its_line_was_written_is_written_once(folder: RunFolder) -> None:
    progress = begin(folder, state(0))
    before = folder.progress.read_bytes()
    done(folder, progress, 1)
    folder.progress.write_bytes(before)

    again = resume(folder)
    assert again is not None
    progress = done(folder, again, 1)

    assert [json.loads(line)["round"] for line in folder.rounds.read_text().splitlines()] == [1]
    assert [record["round"] for record in read_rounds(folder, progress)] == [1]


def test_memory_of_the_last_round_is_kept_and_no_other(folder: RunFolder) -> None:
    progress = begin(folder, state(0), memory={"momentum": state(0), "square": state(0)})
    progress = done(folder, progress, 1, memory={"momentum": state(1), "square": state(2)})

    assert states_in(folder) == [
        "memory-momentum-00001.safetensors",
        "memory-square-00001.safetensors",
        "state-00001.safetensors",
    ]
    loaded = load_memory(folder, progress)
    assert {part: values["w"].tolist() for part, values in loaded.items()} == {"momentum": [1] * 3, "square": [2] * 3}


def test_round_that_was_cut_off_begins_again_with_the_memory_it_began_with(folder: RunFolder) -> None:
    done(folder, begin(folder, state(0), memory={"control": state(0)}), 1, memory={"control": state(5)})
    folder.memory(2, "control").write_bytes(b"of the round that was killed before its progress was written")

    again = resume(folder)

    assert again is not None
    assert load_memory(folder, again)["control"]["w"].tolist() == [5] * 3
    done(folder, again, 2, memory={"control": state(6)})
    assert "memory-control-00001.safetensors" not in states_in(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda path: path.unlink(), "absent, expected the control after round 1", id="absent"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "its SHA-256 is not the one", id="one byte"
        ),
    ],
)
def test_damaged_memory_is_refused_with_advice(folder: RunFolder, damage: object, message: str) -> None:
    assert callable(damage)
    progress = done(folder, begin(folder, state(0)), 1, memory={"control": state(1)})
    damage(folder.memory(1, "control"))

    with pytest.raises(ConfigError, match=f"memory-control-00001.safetensors: {message}.*restore it from a copy"):
        load_memory(folder, progress)


def test_half_written_file_beside_a_checkpoint_is_swept_away(folder: RunFolder) -> None:
    progress = begin(folder, state(0))
    (folder.checkpoints / "state-00001.safetensors.partial").write_bytes(b"half")

    done(folder, progress, 1)

    assert states_in(folder) == ["state-00001.safetensors"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(lambda text: text[:-30], id="cut off"),
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: "null", id="null"),
        pytest.param(lambda text: "[]", id="list"),
        pytest.param(lambda text: text.replace('"round": 1', '"round": "one"'), id="text for a number"),
        pytest.param(lambda text: text.replace('"rounds_bytes"', '"bytes"'), id="unknown entry"),
        pytest.param(lambda text: text.replace('"state_digest"', '"digest"'), id="missing entry"),
        pytest.param(lambda text: text.replace('"best": null', '"best": {"round": 1}'), id="half a candidate"),
    ],
)
def test_damaged_progress_is_refused_with_advice(folder: RunFolder, text: object) -> None:
    assert callable(text)
    done(folder, begin(folder, state(0)), 1)
    damaged = text(folder.progress.read_text())
    assert damaged != folder.progress.read_text()
    folder.progress.write_text(damaged)

    with pytest.raises(
        ConfigError, match=r"progress\.json: \d+ faults.*restore it from a copy or start the run afresh"
    ):
        resume(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda path: path.unlink(), "absent, expected the model state after round 1", id="absent"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a whole safetensors file", id="cut"),
        pytest.param(lambda path: path.write_bytes(b""), "not a whole safetensors file", id="empty"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "its SHA-256 is not the one", id="one byte"
        ),
    ],
)
def test_damaged_state_is_refused_with_advice(folder: RunFolder, damage: object, message: str) -> None:
    assert callable(damage)
    progress = done(folder, begin(folder, state(0)), 1)
    damage(folder.state(1))

    with pytest.raises(ConfigError, match=f"{folder.state(1).name}: {message}.*restore it from a copy"):
        load_state(folder, 1, digest=progress.state_digest)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="absent"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-20]), id="cut off"),
        pytest.param(lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), id="no JSON"),
        pytest.param(lambda path: path.write_bytes(b"\n" * len(path.read_bytes())), id="empty lines"),
    ],
)
def test_damaged_list_of_rounds_is_refused_with_advice(folder: RunFolder, damage: object) -> None:
    assert callable(damage)
    done(folder, begin(folder, state(0)), 1)
    damage(folder.rounds)

    with pytest.raises(ConfigError, match=r"rounds\.jsonl: expected one line for each of 1 rounds; restore it"):
        resume(folder)


def test_run_does_not_go_on_with_another_study(folder: RunFolder) -> None:
    done(folder, begin(folder, state(0)), 1)
    folder.study.write_text(study_text(rounds=9, seed=4))

    with pytest.raises(ConfigError, match=r"study\.yaml: not the study this run was begun with; restore it, or start"):
        resume(folder)


def test_comment_in_the_study_stops_no_run(folder: RunFolder) -> None:
    done(folder, begin(folder, state(0)), 1)
    folder.study.write_text("# as agreed\n" + folder.study.read_text())

    assert resume(folder) is not None


@pytest.mark.parametrize("text", ["", "[]", '{"sites": ["a"]}', '{"sites": "a", "identity": "x", "engine": "y"}'])
def test_damaged_list_of_participants_is_refused_with_advice(folder: RunFolder, text: str) -> None:
    folder.participants.write_text(text)

    with pytest.raises(ConfigError, match=r"participants\.json: unreadable .* start it afresh"):
        folder.read_participants()
