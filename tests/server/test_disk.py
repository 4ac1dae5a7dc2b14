"""A full disk at the coordinator makes the run wait; it loses nothing."""

import errno
import logging
from pathlib import Path

import pytest

from server import disk
from server.disk import once_there_is_room
from server.run_folder import RunFolder, write_atomically
from tests.tiny_federation import begin_run, carry_on, run_federation, write_hospitals
from tests.tiny_hospitals import study_text

NO_ROOM = Path("/dev/full")
"""Every write to it fails as on a full disk."""


def test_a_file_that_found_no_room_leaves_nothing_behind_and_the_next_try_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.with_name("state.partial").symlink_to(NO_ROOM)
    pauses: list[float] = []

    once_there_is_room(lambda: write_atomically(path, b"the state"), pause=pauses.append)

    assert path.read_bytes() == b"the state"
    assert len(pauses) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_other_faults_of_the_disk_are_not_waited_out(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory") as caught:
        once_there_is_room(lambda: tmp_path.write_bytes(b""), pause=lambda seconds: pytest.fail("it waited"))

    assert caught.value.errno == errno.EISDIR


@pytest.mark.parametrize(
    "file",
    ["checkpoints/state-00000.safetensors", "checkpoints/state-00001.safetensors", "progress.json", "status.json"],
)
def test_run_that_found_the_disk_full_ends_as_one_that_did_not(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sites = write_hospitals(tmp_path, "a")
    study = study_text(rounds=1)
    undisturbed = run_federation(tmp_path / "undisturbed", study, sites)
    folder = begin_run(tmp_path / "disturbed", study, sites)
    fill_the_disk(folder, file, monkeypatch)

    with caplog.at_level(logging.INFO, logger=disk.__name__):
        run = carry_on(folder, sites)

    assert run.digests == undisturbed.digests
    assert run.record["outcome"] == "COMPLETE"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "disk is full" in caplog.text


def fill_the_disk(folder: RunFolder, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next writing of one file find no room, and nobody wait long for it."""
    target = folder.path / file
    target.with_name(target.name + ".partial").symlink_to(NO_ROOM)
    monkeypatch.setattr(disk, "PAUSE_S", 0.01)
