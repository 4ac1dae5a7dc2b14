"""What `gliorn-server start` does at every tick outlives failures of Flower and of the disk."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ConfigError
from server import serving
from server.run_folder import write_json
from server.serving import _Step, _whatever_becomes_of_it, serve
from server.superlink import SuperLinkError
from tests.served_federation import write_federation

NO_ROOM = "/dev/full"


def fail_with(*errors: Exception) -> Callable[[], None]:
    waiting = list(errors)

    def act() -> None:
        if waiting:
            raise waiting.pop(0)

    return act


def test_full_disk_is_told_once_and_tried_again_at_every_tick(tmp_path: Path) -> None:
    said: list[str] = []
    notes = tmp_path / "notes.json"
    step = _Step(lambda: write_json(notes, 1), said.append)

    done = []
    for _ in range(3):
        notes.with_name("notes.json.partial").symlink_to(NO_ROOM)
        done.append(step.tick())
    done.append(step.tick())

    assert done == [False, False, False, True]
    assert said == [
        "the coordinator's disk is full: make some room; trying again until it passes",
        "the coordinator's files can be written again",
    ]


def test_another_trouble_of_the_disk_is_told_as_what_it_is() -> None:
    said: list[str] = []
    step = _Step(fail_with(PermissionError(errno.EACCES, "Permission denied", "notes.json")), said.append)

    assert not step.tick()
    assert "cannot be written or read ([Errno 13] Permission denied: 'notes.json')" in said[0]


def test_failure_of_flower_is_tried_again_later_and_stops_no_other_step() -> None:
    said: list[str] = []
    registrations = _Step(fail_with(SuperLinkError("it is ill")), said.append)
    kept: list[int] = []
    keeper = _Step(lambda: kept.append(1), said.append)

    for _ in range(3):
        registrations.tick()
        keeper.tick()

    assert said == ["it is ill; trying again in 5 s"]
    assert len(kept) == 3


def test_line_that_cannot_be_printed_ends_nothing() -> None:
    def print_to_a_full_disk(line: str) -> None:
        with Path(NO_ROOM).open("w", encoding="utf-8") as file:
            print(line, file=file, flush=True)

    _whatever_becomes_of_it(print_to_a_full_disk)("a line")


def test_start_on_a_full_disk_is_refused_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_federation(tmp_path / "federation")
    monkeypatch.setattr(serving, "require_certificate", lambda *_, **__: Path(NO_ROOM).write_text("x"))

    with pytest.raises(ConfigError, match="the disk is full; make some room, then start again"):
        serve(folder, say=lambda line: None)
