"""What a site keeps of a run: private, by round, never of another study, and dropped when nothing needs it."""

import logging
from pathlib import Path

import numpy as np
import pytest

from client.site_memory import Part, SiteMemory


def memory_in(cache: Path, *, run: str = "run", study: str = "0", run_id: str = "") -> SiteMemory:
    return SiteMemory(cache, run=run, study_digest=study * 64, run_id=run_id)


def kept_rounds(cache: Path, part: Part) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in cache.rglob(f"{part}-0*.safetensors"))


def fill(memory: SiteMemory, *rounds: int, part: Part = "own") -> None:
    for round in rounds:
        memory.keep(part, {"value": np.array([round])}, round=round)


def value(memory: SiteMemory, *, round: int, part: Part = "own") -> int | None:
    values = memory.latest(part, round=round)
    return None if values is None else int(values["value"][0])


def test_what_is_kept_comes_back_with_names_types_and_shapes(tmp_path: Path) -> None:
    values = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "count": np.array(7),
        "origin": np.frombuffer(b"\0\xff", dtype=np.uint8),
    }

    memory_in(tmp_path).keep("own", values, round=4)
    back = memory_in(tmp_path).read("own", round=4)

    assert back is not None
    assert back.keys() == values.keys()
    for name, array in values.items():
        np.testing.assert_array_equal(back[name], array)
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)


def test_a_round_that_was_missed_has_what_was_kept_before_it(tmp_path: Path) -> None:
    memory = memory_in(tmp_path)
    fill(memory, 2, 5)

    assert [value(memory, round=round) for round in (1, 2, 3, 4, 5, 6)] == [None, 2, 2, 2, 5, 5]
    assert memory.read("own", round=4) is None


def test_parts_runs_and_studies_have_memories_of_their_own(tmp_path: Path) -> None:
    fill(memory_in(tmp_path), 1, part="personal-optimizer")

    assert value(memory_in(tmp_path), round=1, part="personal") is None
    assert value(memory_in(tmp_path), round=1, part="optimizer") is None
    assert value(memory_in(tmp_path, run="other"), round=1, part="personal-optimizer") is None
    assert value(memory_in(tmp_path, study="1"), round=1, part="personal-optimizer") is None
    assert value(memory_in(tmp_path, run_id="ab"), round=1, part="personal-optimizer") is None
    assert value(memory_in(tmp_path), round=1, part="personal-optimizer") == 1


@pytest.mark.parametrize(
    ("before", "round", "best_round", "left"),
    [
        pytest.param([1, 2, 3, 4], 4, 0, [3, 4], id="no best round yet"),
        pytest.param([1, 2, 3, 4], 4, 2, [2, 3, 4], id="the best round too"),
        pytest.param([1, 2, 5], 5, 4, [2, 5], id="what stands for missed rounds"),
        pytest.param([1, 7, 8], 1, 0, [1], id="an earlier run of the same name"),
        pytest.param([1], 1, 0, [1], id="the first round"),
    ],
)
def test_what_may_be_asked_for_is_kept_and_nothing_else(
    before: list[int], round: int, best_round: int, left: list[int], tmp_path: Path
) -> None:
    memory = memory_in(tmp_path)
    fill(memory, *before)

    memory.forget(round=round, best_round=best_round)

    assert kept_rounds(tmp_path, "own") == left


def test_the_best_round_s_optimiser_and_control_variate_are_not_kept(tmp_path: Path) -> None:
    memory = memory_in(tmp_path)
    for part in ("optimizer", "personal-optimizer", "control"):
        fill(memory, 2, 3, 4, 5, part=part)

    memory.forget(round=5, best_round=2)

    assert [kept_rounds(tmp_path, part) for part in ("optimizer", "personal-optimizer", "control")] == [[4, 5]] * 3


def test_a_round_that_is_run_again_begins_with_the_same(tmp_path: Path) -> None:
    memory = memory_in(tmp_path)
    fill(memory, 1, 2, 3)
    memory.forget(round=3, best_round=1)

    begun = value(memory, round=2)
    fill(memory, 3)
    memory.forget(round=3, best_round=1)

    assert (begun, value(memory, round=2)) == (2, 2)


def test_damaged_part_counts_as_not_there_and_is_told_without_a_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = memory_in(tmp_path)
    fill(memory, 1, 2)
    (file,) = tmp_path.rglob("own-00002.safetensors")
    file.write_bytes(file.read_bytes()[:-1])

    with caplog.at_level(logging.WARNING):
        found = value(memory, round=2)

    assert found == 1
    assert memory.damaged == {"own"}
    assert "kept of round 2 is damaged" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_only_the_owner_can_read_what_is_kept(tmp_path: Path) -> None:
    fill(memory_in(tmp_path / "cache"), 1)

    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").rglob("*") if path.is_dir()}
    assert (modes, folders) == ({0o600}, {0o700})
