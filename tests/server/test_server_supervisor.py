"""Programs are started again when they end, and nothing that they started is left."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.locks import Holder, hold, holder, is_held
from server.processes import kill_tree, start_time
from server.supervisor import LONGEST_DELAY_S, SOUND_AFTER_S, Program, Supervisor
from tests.served_federation import end_all_of, processes_of

SLEEP = "import time; print('at work', flush=True); time.sleep(600)"
FAIL = "print('no such thing', flush=True); raise SystemExit(3)"
HAVE_CHILDREN = (
    "import subprocess, sys, time\n"
    "for own_session in (False, True):\n"
    "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=own_session)\n"
    "print('at work', flush=True); time.sleep(600)"
)


class Bench:
    """A supervisor of one program, with a clock that the test turns."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder = folder
        self.seconds = 0.0
        self.said: list[str] = []
        program = Program("worker", [sys.executable, "-c", code], os.environ | {"TEST_FOLDER": str(folder)})
        self.supervisor = Supervisor(
            [program], notes=folder / "children.json", logs=folder, say=self.said.append, clock=lambda: self.seconds
        )

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        assert condition()

    def wait_for_output(self, text: str, times: int = 1) -> None:
        self.wait(lambda: (self.folder / "worker.log").read_text().count(text) >= times)

    def end_worker(self) -> None:
        kill_tree(self.supervisor.processes()["worker"])
        self.wait_for_end()

    def wait_for_end(self) -> None:
        self.wait(lambda: not processes_of(self.folder))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def make(code: str) -> Bench:
        made.append(Bench(tmp_path, code))
        return made[-1]

    yield make
    for each in made:
        each.supervisor.stop(patience_s=0.0)
    end_all_of(tmp_path)


def test_what_a_program_prints_is_in_its_log(bench: Callable[[str], Bench]) -> None:
    worker = bench(SLEEP)

    worker.supervisor.tick()

    worker.wait_for_output("at work\n")


def test_program_that_ends_is_started_again_after_twice_the_time_each_time(bench: Callable[[str], Bench]) -> None:
    worker = bench(FAIL)
    for times in range(1, 4):
        worker.supervisor.tick()
        worker.wait_for_output("no such thing", times)
        worker.wait_for_end()
        worker.supervisor.tick()
        assert worker.supervisor.processes() == {}, "not before its time"
        worker.seconds += 2 ** (times - 1)

    assert [line.split(";")[1].split(".")[0] for line in worker.said] == [
        " starting it again in 1 s",
        " starting it again in 2 s",
        " starting it again in 4 s",
    ]
    assert worker.said[0].startswith("worker ended with status 3 after 0 s")


def test_delay_is_bounded_and_forgotten_after_a_sound_life(bench: Callable[[str], Bench]) -> None:
    worker = bench(SLEEP)
    for _ in range(8):
        worker.seconds += LONGEST_DELAY_S
        worker.supervisor.tick()
        worker.end_worker()
        worker.supervisor.tick()
    worker.seconds += LONGEST_DELAY_S
    worker.supervisor.tick()
    worker.seconds += SOUND_AFTER_S
    worker.end_worker()
    worker.supervisor.tick()

    assert "starting it again in 30 s" in worker.said[-2]
    assert "starting it again in 1 s" in worker.said[-1]


def test_stopping_leaves_nothing_below_a_program(bench: Callable[[str], Bench]) -> None:
    worker = bench(HAVE_CHILDREN)
    worker.supervisor.tick()
    worker.wait_for_output("at work")
    assert len(processes_of(worker.folder)) == 3

    worker.supervisor.stop(patience_s=5.0)

    worker.wait_for_end()
    assert not (worker.folder / "children.json").exists()


def test_what_a_killed_supervisor_left_behind_is_ended_by_the_next(bench: Callable[[str], Bench]) -> None:
    killed, following = bench(HAVE_CHILDREN), bench(SLEEP)
    killed.supervisor.tick()
    killed.wait_for_output("at work")

    following.supervisor.end_leftovers()

    killed.wait_for_end()
    assert "of an earlier start is still there: ending it" in following.said[0]


def test_another_process_of_a_noted_number_is_left_alone(bench: Callable[[str], Bench]) -> None:
    worker = bench(SLEEP)
    (worker.folder / "children.json").write_text(f'[{{"pid": {os.getpid()}, "started": "1"}}]')

    worker.supervisor.end_leftovers()

    assert worker.said == []


# --- locks -----------------------------------------------------------------------------------------------------------


def test_lock_tells_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from server.locks import hold\n"
        "with hold(Path(sys.argv[1]), otherwise='held'):\n    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"

        assert holder(path) == Holder(process.pid, start_time(process.pid))
    finally:
        process.kill()
        process.communicate()

    assert not is_held(path)
    assert holder(path) is None


def test_lock_that_is_held_is_refused_with_the_given_words(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock", otherwise="unused"),
        pytest.raises(Exception, match="somebody is at it"),
        hold(tmp_path / "lock", otherwise="somebody is at it", patience_s=0.0),
    ):
        pass


def test_program_whose_notes_find_no_room_goes_on_and_is_noted_later(bench: Callable[[str], Bench]) -> None:
    worker = bench(SLEEP)
    notes = worker.folder / "children.json"
    for _ in range(3):
        notes.with_name("children.json.partial").symlink_to("/dev/full")
        worker.supervisor.tick()
    (process,) = worker.supervisor.processes().values()
    assert not notes.exists()

    worker.supervisor.tick()

    assert worker.supervisor.processes() == {"worker": process}
    assert [each["pid"] for each in json.loads(notes.read_text())] == [process]
    assert worker.said == [f"{notes}: cannot be written (No space left on device); trying again until it can"]


def test_program_that_cannot_be_started_is_tried_again_later(tmp_path: Path) -> None:
    seconds = 0.0
    said: list[str] = []
    program = Program("worker", [str(tmp_path / "absent")], {})
    supervisor = Supervisor(
        [program], notes=tmp_path / "children.json", logs=tmp_path, say=said.append, clock=lambda: seconds
    )

    supervisor.tick()
    supervisor.tick()
    seconds = 1.0
    supervisor.tick()

    assert [line.rpartition("; ")[2] for line in said] == ["trying again in 1 s", "trying again in 2 s"]
