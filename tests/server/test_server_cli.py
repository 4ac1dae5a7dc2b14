"""`gliorn-server`: what it prints, what it leaves, and how it ends."""

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.cli import main
from server.run_folder import RunFolder
from server.run_status import read_status, status_lines
from server.status import StatusBoard
from tests.server.invented_runs import InventedSite, write_invented_run


@pytest.fixture
def ended(tmp_path: Path) -> RunFolder:
    sites = [InventedSite("a"), InventedSite("b", not_accepted={2: ("failed", "out of memory")})]
    return write_invented_run(tmp_path / "ended", sites, rounds=2)


@pytest.fixture
def running(tmp_path: Path) -> RunFolder:
    sites = [InventedSite("a"), InventedSite("b", not_accepted={3: ("failed", "the site went offline")})]
    return write_invented_run(tmp_path / "running", sites, rounds=9, rounds_done=3, finished=False)


@pytest.fixture
def invalid(tmp_path: Path) -> RunFolder:
    sites = [InventedSite("a"), InventedSite("b", joined=False)]
    return write_invented_run(tmp_path / "invalid", sites, rounds=2, rounds_done=1, error="1 of 2 sites answered")


def test_report_writes_the_page_and_prints_its_path(ended: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(ended.path)]) == 0

    assert capsys.readouterr().out.splitlines()[0] == str(ended.report)
    assert ended.report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_report_of_an_invalid_run_is_written_too(invalid: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(invalid.path)]) == 0

    assert str(invalid.report) in capsys.readouterr().out
    assert "INVALID" in invalid.report.read_text(encoding="utf-8")


def test_status_of_a_running_run_says_who_is_waited_for(running: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(running.path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "running: round 3 of 9, 3 done"
    assert "  answered: a" in lines
    assert "  waiting for: b" in lines
    assert any(line.startswith("  pooled validation AUC after round 2: 0.") for line in lines)
    assert "    - b was not in round 3: failed: the site went offline" in lines


def test_status_as_json_is_for_a_script(running: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(running.path), "--json"]) == 0

    values: Mapping[str, object] = json.loads(capsys.readouterr().out)
    assert values["phase"] == "round"
    assert values["outcome"] is None
    assert (values["round"], values["num_rounds"], values["rounds_done"]) == (3, 9, 3)
    assert values["waiting_for"] == ["b"]
    assert values["problems"] == ["b was not in round 3: failed: the site went offline"]


def test_status_of_an_ended_run_has_its_outcome_and_all_problems(ended: RunFolder) -> None:
    status = read_status(ended)

    assert (status.outcome, status.phase, status.rounds_done) == ("DEGRADED", "finished", 2)
    assert status.problems == ["b was not in round 2: failed: out of memory"]
    assert status.last_validation is not None
    assert status.last_validation.round == 2
    assert status_lines(status, now=datetime.now(UTC))[0] == "ended: ended DEGRADED after 2 of 2 rounds"


def test_status_of_an_invalid_run_names_the_reason(invalid: RunFolder) -> None:
    status = read_status(invalid)

    assert status.outcome == "INVALID"
    assert status.problems[0] == "1 of 2 sites answered"
    assert status.waiting_for == []


def test_an_invalid_run_that_goes_on_is_not_called_ended(invalid: RunFolder) -> None:
    invalid.record.unlink()  # what a federation does first when it takes up a run
    StatusBoard(invalid, num_rounds=2).begin("joining", round=1, asked=["a", "b"])

    status = read_status(invalid)

    assert status.outcome is None
    assert status.waiting_for == ["a", "b"]
    assert status_lines(status, now=datetime.now(UTC))[0] == "invalid: sites join, 1 of 2 rounds done"


def test_a_run_that_was_only_created_has_not_started(running: RunFolder) -> None:
    for path in (running.status, running.rounds, running.progress):
        path.unlink()

    status = read_status(running)

    assert (status.phase, status.rounds_done, status.last_validation) == ("not started", 0, None)


def test_the_last_sign_of_life_has_an_age(running: RunFolder) -> None:
    status = read_status(running)

    lines = status_lines(status, now=status.changed_at + timedelta(hours=3))

    assert lines[-1].endswith("3 h 0 min ago")


@pytest.mark.parametrize(
    ("command", "file", "content", "message"),
    [
        pytest.param("report", "record.json", None, "no record.json in it", id="report-no-record"),
        pytest.param("report", "record.json", "{", "record.json: damaged", id="report-half-a-record"),
        pytest.param("report", "study.yaml", None, "expected the folder of a run", id="report-no-study"),
        pytest.param("status", "study.yaml", None, "expected the folder of a run", id="status-no-study"),
        pytest.param("status", "study.yaml", "name: [", "study.yaml", id="status-damaged-study"),
        pytest.param("status", "status.json", '{"phase": "dan', "status.json: unreadable", id="status-half-a-board"),
        pytest.param("status", "rounds.jsonl", '{"round": 1', "rounds.jsonl: line 1: damaged", id="status-half-a-line"),
        pytest.param("status", "record.json", "[]", "record.json: damaged", id="status-damaged-record"),
    ],
)
def test_what_the_operator_can_mend_ends_with_2_and_one_message(
    ended: RunFolder,
    capsys: pytest.CaptureFixture[str],
    command: str,
    file: str,
    content: str | None,
    message: str,
) -> None:
    path = ended.path / file
    path.unlink() if content is None else path.write_text(content)

    assert main([command, str(ended.path)]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"gliorn-server {command}: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", ["report", "status"])
def test_a_folder_that_is_not_there_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command, str(tmp_path / "nowhere")]) == 2

    assert "no such folder, expected the folder of a run; check the path" in capsys.readouterr().err


def test_an_unknown_command_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["retport", "run"])

    assert exit.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_a_fault_names_the_command_that_met_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "study.yaml", "--name", "first", "--federation", str(tmp_path)]) == 2

    assert capsys.readouterr().err.startswith(f"gliorn-server run: {tmp_path}: no readable federation.yaml in it")


ENDS = """
import sys
from types import SimpleNamespace
from server import cli
def says(arguments):
    print("a line " * 20000, flush=True)
    return 0
def fails(arguments):
    raise BrokenPipeError(32, "the other side hung up")
verb, act = {"start": ("start", says), "sites": ("sites", says), "connection": ("sites", fails)}[sys.argv[1]]
cli.command_line = lambda only: SimpleNamespace(parse_args=lambda argv: SimpleNamespace(verb=verb, command=act))
sys.exit(cli.main([verb]))
"""


@pytest.mark.parametrize(
    ("what", "reads", "is_fault"),
    [
        pytest.param("sites", False, False, id="short command whose reader has enough"),
        pytest.param("start", False, True, id="coordinator whose log's reader died"),
        pytest.param("connection", True, True, id="pipe that is not stdout"),
    ],
)
def test_broken_pipe_is_a_good_end_for_a_short_command_s_output_alone(what: str, reads: bool, is_fault: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDS, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if not reads:
        process.stdout.close()
    said = process.stderr.read()
    ended = process.wait()
    process.stderr.close()
    if reads:
        process.stdout.close()

    assert (ended != 0) == is_fault
    assert (b"BrokenPipeError" in said) == is_fault
