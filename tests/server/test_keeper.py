"""Runs are handed to Flower one at a time, and again when their ServerApp dies; admitted keys are registered."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from server.federation_folder import FederationFolder
from server.keeper import MAX_ATTEMPTS, START_PATIENCE_S, Keeper, runs_in_order
from server.locks import hold
from server.registrations import Registrations
from server.run_folder import Participants, RunFolder, create_run_folder, write_json
from server.superlink import KeyInUseError, SuperLinkError
from tests.served_federation import admit_new_site, write_federation
from tests.tiny_hospitals import study_text


@dataclass
class FakeFlower:
    """What a Keeper asks of Flower, noted down."""

    submitted: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def submit(self, run: str) -> str:
        self.submitted.append(run)
        return f"{run}-{len(self.submitted)}"

    def stop(self, run_id: str) -> None:
        self.stopped.append(run_id)
        raise SuperLinkError("it has ended already")


@dataclass
class Coordinator:
    """A Keeper with a clock that the test turns."""

    runs: Path
    server: str = "first"
    flower: FakeFlower = field(default_factory=FakeFlower)
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.keeper = Keeper(
            self.runs,
            self.flower,
            server=self.server,
            record_stop=lambda run: end(run, "INVALID"),
            say=self.said.append,
            clock=lambda: self.seconds,
        )

    def tick(self, *, after_s: float = 1.0) -> None:
        self.seconds += after_s
        self.keeper.tick()

    @contextmanager
    def server_app(self, run: RunFolder) -> Iterator[None]:
        """A ServerApp is at work on a run, and ends with the block."""
        with hold(run.server_app_lock, otherwise="held"):
            self.tick()
            yield
        self.tick()


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    (tmp_path / "runs").mkdir()
    return Coordinator(tmp_path / "runs")


def new_run(coordinator: Coordinator, name: str, *, created: int = 0) -> RunFolder:
    participants = Participants(("a", "b"), "registered", "federation")
    run = create_run_folder(coordinator.runs / name, study_text=study_text(), participants=participants)
    run.write_wish("run")
    os.utime(run.participants, (created, created))
    return run


def finish_round(run: RunFolder, round: int) -> None:
    write_json(run.progress, {"round": round})


def end(run: RunFolder, outcome: str) -> None:
    write_json(run.record, {"outcome": outcome})


def test_wanted_run_is_handed_over_once(coordinator: Coordinator) -> None:
    new_run(coordinator, "one")

    for _ in range(5):
        coordinator.tick()

    assert coordinator.flower.submitted == ["one"]


def test_runs_take_turns_in_the_order_they_were_made(coordinator: Coordinator) -> None:
    later, first = new_run(coordinator, "a-later", created=2), new_run(coordinator, "z-first", created=1)
    coordinator.tick()

    with coordinator.server_app(first):
        coordinator.tick()
        assert coordinator.flower.submitted == ["z-first"]
        end(first, "COMPLETE")
    coordinator.tick()

    assert coordinator.flower.submitted == ["z-first", later.name]
    assert "run z-first: ended COMPLETE" in coordinator.said


def test_runs_that_nobody_wants_to_go_on_are_left_alone(coordinator: Coordinator) -> None:
    new_run(coordinator, "of-a-simulation").wish.unlink()
    new_run(coordinator, "paused").write_wish("pause")
    new_run(coordinator, "stopped").write_wish("stop")
    end(new_run(coordinator, "complete"), "COMPLETE")
    end(new_run(coordinator, "invalid"), "INVALID")
    write_json(new_run(coordinator, "given-up").trouble, "it fails")

    coordinator.tick()

    assert coordinator.flower.submitted == []


def test_run_that_ended_invalid_goes_on_when_it_is_resumed(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "one")
    end(run, "INVALID")
    write_json(run.resumption, True)

    coordinator.tick()

    assert coordinator.flower.submitted == ["one"]


def test_dead_server_app_is_started_again_after_a_pause(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "one")
    coordinator.tick()
    with coordinator.server_app(run):
        finish_round(run, 3)

    assert coordinator.flower.submitted == ["one"]
    coordinator.tick(after_s=3.0)

    assert coordinator.flower.submitted == ["one", "one"]
    assert coordinator.flower.stopped == [], "a site may be fetching a message of the old run"
    assert any(
        "its program ended without a result after round 3; starting it again" in line for line in coordinator.said
    )


def test_death_between_two_looks_is_noticed(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "one")
    coordinator.tick()
    with hold(run.server_app_lock, otherwise="held"):
        pass

    coordinator.tick()
    coordinator.tick(after_s=5.0)

    assert coordinator.flower.submitted == ["one", "one"]


def test_run_that_flower_never_starts_is_taken_back_and_handed_over_again(coordinator: Coordinator) -> None:
    new_run(coordinator, "one")
    coordinator.tick()

    coordinator.tick(after_s=START_PATIENCE_S - 1)
    assert coordinator.flower.submitted == ["one"]
    coordinator.tick(after_s=2.0)

    assert coordinator.flower.submitted == ["one", "one"]
    assert coordinator.flower.stopped == ["one-1"]


def fail_once(coordinator: Coordinator, run: RunFolder) -> None:
    with coordinator.server_app(run):
        pass
    coordinator.tick(after_s=100.0)


def test_run_that_gets_nowhere_is_given_up_with_a_sentence(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "one")
    run.log.write_text("2026-01-01 10:00:00,000 ERROR progress.json: 2 faults; restore it\n2026 INFO bye\n")
    coordinator.tick()

    for _ in range(MAX_ATTEMPTS + 2):
        fail_once(coordinator, run)

    assert coordinator.flower.submitted == ["one"] * MAX_ATTEMPTS
    assert run.read_trouble() == (
        "its program ended 5 times without finishing round 1, so it is not started again. It said last: "
        "progress.json: 2 faults; restore it. Mend that, then `gliorn-server run --resume one`"
    )


def test_each_finished_round_gives_a_run_all_its_attempts_back(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "one")
    coordinator.tick()

    for round in range(2 * MAX_ATTEMPTS):
        finish_round(run, round + 1)
        fail_once(coordinator, run)

    assert run.read_trouble() is None
    assert len(coordinator.flower.submitted) == 1 + 2 * MAX_ATTEMPTS


def test_run_of_an_earlier_server_is_handed_over_at_once_and_is_no_failure(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "one")
    coordinator.tick()
    for number in range(2 * MAX_ATTEMPTS):
        restarted = Coordinator(coordinator.runs, server=f"start {number}", flower=coordinator.flower)
        restarted.tick()

    assert len(coordinator.flower.submitted) == 1 + 2 * MAX_ATTEMPTS
    assert json.loads(run.submission.read_text())["attempts"] == 1
    assert run.read_trouble() is None


def test_paused_run_makes_room_for_the_next(coordinator: Coordinator) -> None:
    run, _ = new_run(coordinator, "one", created=1), new_run(coordinator, "two", created=2)
    coordinator.tick()
    with coordinator.server_app(run):
        finish_round(run, 2)
        run.write_wish("pause")
    coordinator.tick()

    assert coordinator.flower.submitted == ["one", "two"]
    assert "run one: set aside after round 2" in coordinator.said


def test_run_that_was_stopped_and_then_died_has_a_record_all_the_same(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "one")
    coordinator.tick()
    with coordinator.server_app(run):
        run.write_wish("stop")

    assert json.loads(run.record.read_text()) == {"outcome": "INVALID"}
    assert coordinator.said[-1] == "run one: ended INVALID"


# --- keys ------------------------------------------------------------------------------------------------------------


def fill_the_disk(path: Path) -> None:
    """Let the next writing of a file find no room."""
    path.with_name(path.name + ".partial").symlink_to("/dev/full")


def test_run_is_handed_over_once_even_if_the_disk_is_too_full_to_note_it(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "r")
    for _ in range(3):
        fill_the_disk(run.submission)
        coordinator.tick()
    assert not run.submission.exists()

    coordinator.tick()

    assert coordinator.flower.submitted == ["r"]
    assert json.loads(run.submission.read_text())["run_id"] == "r-1"
    assert [line for line in coordinator.said if "No space left on device" in line] == [
        "run r: its files cannot be written (No space left on device); trying again until they can"
    ]


def test_server_app_that_began_before_its_run_could_be_noted_is_missed_when_it_dies(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "r")
    fill_the_disk(run.submission)
    coordinator.tick()
    with coordinator.server_app(run):
        assert run.submission.is_file()

    coordinator.tick(after_s=10.0)

    assert coordinator.flower.submitted == ["r", "r"]
    assert coordinator.flower.stopped == [], "it was alive"


def test_run_that_ended_before_it_could_be_noted_is_closed_all_the_same(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "r")
    fill_the_disk(run.submission)
    coordinator.tick()
    end(run, "COMPLETE")

    coordinator.tick()

    assert coordinator.said[-1] == "run r: ended COMPLETE"
    assert not run.submission.exists()


def test_giving_up_is_tried_again_while_the_disk_is_full(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "r")
    coordinator.tick()
    for _ in range(MAX_ATTEMPTS - 1):
        coordinator.tick(after_s=START_PATIENCE_S + 120)
    fill_the_disk(run.trouble)
    coordinator.tick(after_s=START_PATIENCE_S + 120)
    assert not run.trouble.exists()

    coordinator.tick()

    assert "times without finishing round 1" in (run.read_trouble() or "")
    assert len(coordinator.flower.submitted) == MAX_ATTEMPTS


def test_stopped_run_whose_record_found_no_room_gets_it_later(coordinator: Coordinator) -> None:
    run = new_run(coordinator, "r")
    coordinator.tick()
    run.write_wish("stop")
    fill_the_disk(run.record)
    coordinator.tick()
    assert not run.record.exists()

    coordinator.tick()

    assert run.record.is_file()
    assert coordinator.said[-1] == "run r: ended INVALID"


def test_run_that_is_deleted_while_it_is_looked_at_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "participants.json").touch()
    for name in ("gone", "s"):
        (tmp_path / name).mkdir()
    (tmp_path / "s" / "participants.json").touch()

    class Vanishing(type(tmp_path)):  # type: ignore[misc]
        """A folder from which a run disappears after it was listed."""

        def glob(self, pattern: str) -> Iterator[Path]:
            yield self / "gone" / "participants.json"
            yield from super().glob(pattern)

    assert [run.name for run in runs_in_order(Vanishing(tmp_path))] == ["r", "s"]


@dataclass
class FakeSuperLink:
    """Behaves as the real one was measured to: a key that was ever known cannot be registered again."""

    database: Path
    keys: dict[str, int] = field(default_factory=dict)
    registered: set[int] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def register(self, public_key: Path, *, name: str) -> int:
        self.calls.append(f"register {name}")
        if name in self.refused:
            raise SuperLinkError("`flwr supernode register` failed: no such curve")
        key = public_key.read_text()
        if key in self.keys:
            raise KeyInUseError("[code: 23] Public key already in use.")
        self.keys[key] = len(self.keys) + 1
        self.registered.add(self.keys[key])
        return self.keys[key]

    def unregister(self, node: int) -> None:
        self.calls.append(f"unregister {node}")
        self.registered.discard(node)

    def nodes(self) -> set[int]:
        self.calls.append("nodes")
        return set(self.registered)


@dataclass
class Keys:
    """A federation, its SuperLink, and what keeps the two registers equal."""

    folder: FederationFolder
    link: FakeSuperLink
    said: list[str] = field(default_factory=list)

    def tick(self, times: int = 1) -> None:
        """As after a start of the server."""
        registrations = Registrations(self.folder, self.link, say=self.said.append)
        for _ in range(times):
            registrations.tick()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    folder = write_federation(tmp_path / "federation", ["a", "b"])
    (folder.superlink / "state.db").touch()
    return Keys(folder, FakeSuperLink(folder.superlink / "state.db"))


def revoke(keys: Keys, name: str) -> None:
    sites = keys.folder.read_register()
    keys.folder.write_register(
        [replace(site, revoked_at="2026-01-01T00:00:00+00:00") if site.name == name else site for site in sites]
    )


def test_admitted_keys_are_registered_once(keys: Keys) -> None:
    keys.tick(times=3)

    assert keys.link.calls == ["register a", "register b"]
    assert keys.said == ["a: registered with the SuperLink", "b: registered with the SuperLink"]


def test_site_admitted_later_is_registered_too(keys: Keys) -> None:
    keys.tick()
    keys.folder.write_register([*keys.folder.read_register(), admit_new_site(keys.folder, "c")])

    keys.tick()

    assert keys.link.calls[-1] == "register c"


def test_revoked_key_is_taken_out_and_a_new_key_of_the_site_put_in(keys: Keys) -> None:
    keys.tick()
    revoke(keys, "a")
    keys.folder.write_register([*keys.folder.read_register(), admit_new_site(keys.folder, "a")])

    keys.tick(times=2)

    assert keys.link.calls[2:] == ["nodes", "unregister 1", "register a"]
    assert keys.link.registered == {2, 3}


def test_lost_database_has_all_sites_registered_again(keys: Keys) -> None:
    keys.tick()
    new = keys.link.database.with_name("new.db")
    new.touch()
    new.replace(keys.link.database)
    keys.link = FakeSuperLink(keys.link.database)

    keys.tick(times=2)

    assert keys.link.calls == ["nodes", "register a", "register b"]
    assert "is not the one the sites were registered in" in keys.said[2]


def test_key_that_the_superlink_knows_already_counts_as_registered(keys: Keys) -> None:
    keys.tick()
    (keys.folder.superlink / "registered.json").unlink()

    keys.tick(times=2)

    assert keys.link.calls[2:] == ["register a", "register b"]


def test_damaged_register_is_said_once_and_ends_nothing(keys: Keys) -> None:
    keys.folder.register.write_text("[")

    keys.tick(times=3)

    assert keys.link.calls == []
    assert len(keys.said) == 1
    assert "restore it from a copy" in keys.said[0]


def test_site_whose_key_flower_refuses_keeps_no_other_waiting(keys: Keys) -> None:
    seconds = 0.0
    keys.link.refused = {"a"}
    registrations = Registrations(keys.folder, keys.link, say=keys.said.append, clock=lambda: seconds)

    for _ in range(100):
        registrations.tick()
        seconds += 1.0
    keys.link.refused = set()
    seconds += 600.0
    registrations.tick()

    assert keys.link.calls[:2] == ["register a", "register b"]
    assert keys.link.calls.count("register a") == 6, "at 0, 5, 15, 35 and 75 s, and when it may come in"
    assert len([line for line in keys.said if "no such curve; trying again, less and less often" in line]) == 1
    assert keys.said[-1] == "a: registered with the SuperLink"


def test_registrations_that_find_the_disk_full_are_not_made_again_but_written_later(keys: Keys) -> None:
    registered = keys.folder.superlink / "registered.json"
    registrations = Registrations(keys.folder, keys.link, say=keys.said.append)
    partial = registered.with_name("registered.json.partial")
    partial.mkdir()  # unlike the link to /dev/full, it stays for every try
    with pytest.raises(OSError, match=r"registered\.json"):
        registrations.tick()
    partial.rmdir()

    registrations.tick()

    assert keys.link.calls == ["register a", "register b"]
    assert [each["node"] for each in json.loads(registered.read_text())] == [1, 2]
