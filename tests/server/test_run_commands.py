"""`run`, `pause` and `stop` without a server: what they write, print and refuse."""

import json
import threading
import time
from pathlib import Path

import pytest

from common.study import parse_study
from server.cli import main
from server.federation_folder import FederationFolder
from server.keeper import is_due
from server.locks import hold
from server.run_folder import RunFolder, write_json
from tests.served_federation import write_federation
from tests.server.invented_runs import InventedSite, write_invented_run
from tests.tiny_hospitals import study_text

STUDY = study_text(participation={"min_sites": 2})


class Desk:
    """A federation of three sites, a study, and a person who types."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.federation: FederationFolder = write_federation(folder / "federation", ["a", "b", "c"])
        self.study = folder / "study.yaml"
        self.study.write_text(STUDY)
        self._capsys = capsys

    def type(self, *words: str) -> tuple[int, str]:
        """Exit status, and all that is printed."""
        status = main([*words, "--federation", str(self.federation.path)])
        captured = self._capsys.readouterr()
        return status, captured.out + captured.err

    def run(self, name: str = "first") -> RunFolder:
        return RunFolder(self.federation.runs / name)

    def invent(self, name: str = "first", *, error: str | None = None, finished: bool = True) -> RunFolder:
        sites = [InventedSite("a"), InventedSite("b")]
        run = write_invented_run(
            self.federation.runs / name, sites, rounds=4, rounds_done=3, error=error, finished=finished
        )
        run.write_wish("run")
        return run


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_run_is_made_for_the_server_to_take_up(desk: Desk) -> None:
    status, printed = desk.type("run", str(desk.study), "--name", "first")

    assert status == 0
    assert is_due(desk.run())
    assert desk.run().read_participants().sites == ("a", "b", "c")
    assert (desk.run().read_participants().identity, desk.run().read_participants().engine) == (
        "registered",
        "federation",
    )
    assert printed.splitlines() == [
        "Run first: study tiny, 2 rounds, sites a, b, c",
        f"Study digest {parse_study(STUDY, origin='study').digest}",
        "Each site must have consented to that digest: `gliorn-client accept`, or `studies` in its site.yaml.",
        "No server is running: the run begins when `gliorn-server start` does.",
        "Next: `gliorn-server status first` shows how far it is; `--watch` stays there.",
    ]


def test_run_is_named_after_its_study_and_the_time(desk: Desk) -> None:
    assert desk.type("run", str(desk.study))[0] == 0

    assert [path.name.rsplit("-", 2)[0] for path in desk.federation.runs.iterdir()] == ["tiny"]


def test_run_of_some_of_the_sites(desk: Desk) -> None:
    assert desk.type("run", str(desk.study), "--name", "first", "--sites", "c,a")[0] == 0

    assert desk.run().read_participants().sites == ("a", "c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--sites", "a"], "1 sites would train, the study needs participation.min_sites 2", id="few"),
        pytest.param(["--sites", "a,b,d"], "'d' is not admitted; admitted are a, b, c", id="unknown"),
        pytest.param(["--name", "../x"], "--name is '../x', expected letters", id="name"),
    ],
)
def test_run_that_cannot_be_is_refused_before_anything_is_made(desk: Desk, words: list[str], message: str) -> None:
    status, printed = desk.type("run", str(desk.study), *words)

    assert status == 2
    assert message in printed
    assert list(desk.federation.runs.iterdir()) == []


def test_run_of_a_name_that_is_taken_is_refused(desk: Desk) -> None:
    desk.type("run", str(desk.study), "--name", "first")

    status, printed = desk.type("run", str(desk.study), "--name", "first")

    assert status == 2
    assert "a run of that name is there" in printed


def test_paused_run_is_not_due_until_it_is_resumed(desk: Desk) -> None:
    desk.invent(finished=False)

    assert desk.type("pause", "first") == (
        0,
        "Run first waits.\nNext: `gliorn-server run --resume first` continues it.\n",
    )
    assert not is_due(desk.run())
    assert desk.type("status", "first")[1].splitlines()[0] == "first: paused after 3 of 4 rounds"
    status, printed = desk.type("run", "--resume", "first")

    assert (status, printed.splitlines()[0]) == (0, "Run first: goes on after round 3")
    assert is_due(desk.run())


def test_run_at_work_pauses_after_its_round(desk: Desk) -> None:
    run = desk.invent(finished=False)

    with hold(run.server_app_lock, otherwise="held"):
        assert "waits after the round it is in" in desk.type("pause", "first")[1]
        assert desk.type("status", "first")[1].startswith("first: round 3 of 4, 3 done; waits after this round")


def test_stopped_run_has_a_record_that_says_so_and_can_go_on(desk: Desk) -> None:
    run = desk.invent(finished=False)

    status, printed = desk.type("stop", "first")

    assert status == 0
    assert f"Run first is ended; {run.record} says so." in printed
    record = json.loads(run.record.read_text())
    assert (record["outcome"], record["rounds_done"]) == ("INVALID", 3)
    assert record["problems"][0] == "the coordinator stopped the run after round 3"
    assert "INVALID" in run.report.read_text()
    assert not is_due(run)
    assert desk.type("run", "--resume", "first")[0] == 0
    assert is_due(run)
    assert "waits for the server to start it" in desk.type("status", "first")[1]


def test_run_that_never_began_can_be_stopped(desk: Desk) -> None:
    desk.type("run", str(desk.study), "--name", "first")

    assert desk.type("stop", "first")[0] == 0

    record = json.loads(desk.run().record.read_text())
    assert record["problems"][0] == "the coordinator stopped the run after round 0"
    assert record["not_joined"] == dict.fromkeys("abc", "had not joined by then")


@pytest.mark.parametrize("command", ["pause", "stop"])
def test_run_that_has_ended_is_left_as_it_is(desk: Desk, command: str) -> None:
    desk.invent(error="1 of 2 sites answered")

    status, printed = desk.type(command, "first")

    assert status == 2
    assert "this run has ended INVALID already" in printed


def test_run_with_a_result_is_not_resumed(desk: Desk) -> None:
    desk.invent()
    rounds = desk.run().rounds.read_text()

    status, printed = desk.type("run", "--resume", "first")

    assert status == 2
    assert "nothing is left to do" in printed
    assert desk.run().rounds.read_text() == rounds


def test_run_that_was_given_up_on_says_why_and_is_due_again_once_resumed(desk: Desk) -> None:
    run = desk.invent(finished=False)
    write_json(run.trouble, "its program ended 5 times")

    assert "  its program ended 5 times" in desk.type("status", "first")[1].splitlines()
    assert not is_due(run)
    desk.type("run", "--resume", "first")

    assert is_due(run)
    assert run.read_trouble() is None


@pytest.mark.parametrize("words", [["pause"], ["stop"], ["run", "--resume"]], ids=" ".join)
def test_unknown_run_is_refused_with_those_there_are(desk: Desk, words: list[str]) -> None:
    desk.invent("one")

    status, printed = desk.type(*words, "another")

    assert status == 2
    assert "no run 'another' in it, expected one of: one" in printed


@pytest.mark.parametrize(("error", "status"), [(None, 0), ("no sites", 2)], ids=["result", "no result"])
def test_waiting_ends_with_the_run_and_tells_whether_it_has_a_result(
    desk: Desk, error: str | None, status: int
) -> None:
    run = desk.invent("first", finished=False)
    ended = write_invented_run(
        desk.federation.path / "ended", [InventedSite("a"), InventedSite("b")], rounds=4, error=error
    )

    def end() -> None:
        time.sleep(0.5)
        run.record.write_bytes(ended.record.read_bytes())

    thread = threading.Thread(target=end)
    thread.start()
    result, printed = desk.type("run", "--resume", "first", "--wait")
    thread.join()

    assert result == status
    assert printed.splitlines()[-1].startswith(f"first: ended {'INVALID' if error else 'COMPLETE'} after")
