"""`gliorn-server statistics`: begins a run that trains nothing, shows one that has ended, and says what is missing."""

import json
from pathlib import Path

import pytest

from common.cohort_statistics import CohortStatistics, layout_of
from common.study import parse_study
from server.cli import main
from server.keeper import is_due
from server.run_folder import Participants, RunFolder, create_run_folder, write_json
from server.statistics_note import is_statistics_run, note_statistics, statistics_file
from server.statistics_run import Answers, statistics_values
from tests.served_federation import write_federation
from tests.tiny_hospitals import study_text


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """The folder of a run of statistics in which every cell of one site is 6."""
    study = parse_study(study_text(), origin="study")
    rows = {(table.name, row): (6,) * len(table.columns) for table in layout_of(study.sequences) for row in table.rows}
    participants = Participants(("a", "b"), "registered", "federation")
    folder = create_run_folder(tmp_path / "run-1", study_text=study_text(), participants=participants)
    note_statistics(folder)
    answers = Answers({"a": CohortStatistics(rows)}, {"b": "does not disclose statistics"})
    values = statistics_values(study, answers) | {"run": "run-1", "finished_at": "2026-01-02T03:04:05+00:00"}
    write_json(statistics_file(folder), values)
    return folder.path


def test_run_is_shown_as_table_and_page(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["statistics", "--show", str(ended)])

    told = capsys.readouterr().out
    assert status == 0
    assert "b: does not disclose statistics" in told
    assert "Exams per patient  patients\n1                       6/1\n" in told
    assert f"Page: {ended / 'statistics.html'}" in told
    assert "Intensity of the prepared crops" in (ended / "statistics.html").read_text()


def test_json_is_the_file(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["statistics", "--show", str(ended), "--json"])

    assert json.loads(capsys.readouterr().out) == json.loads((ended / "statistics.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--show", "nothing"], "expected the folder of a run of statistics that has ended", id="no run"),
        pytest.param(["--show", "x", "--wait"], "--show: begins nothing", id="wait"),
        pytest.param(["study.yaml", "--json"], "--json: belongs to --show", id="json"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    status = main(["statistics", *words])

    assert status == 2
    assert message in capsys.readouterr().err


def test_report_points_to_the_page_of_statistics(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["report", str(ended)])

    assert status == 2
    assert "is a run of statistics, which has no report" in capsys.readouterr().err
    assert not (ended / "report.html").exists()


def test_run_of_statistics_is_made_for_the_server_to_take_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = write_federation(tmp_path / "federation", ["a", "b"])
    study = tmp_path / "study.yaml"
    study.write_text(study_text())

    words = ["statistics", str(study), "--name", "first", "--sites", "a", "--federation", str(federation.path)]
    status = main(words)

    folder = RunFolder(federation.runs / "first")
    assert status == 0
    assert (is_statistics_run(folder), is_due(folder)) == (True, True)
    assert folder.read_participants().sites == ("a",)
    assert "Run first: study tiny, statistics of the cohorts, sites a\n" in capsys.readouterr().out
