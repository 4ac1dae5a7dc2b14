"""`gliorn-simulate statistics` as a whole command: tables on standard output, a page in the folder, nothing trained."""

import json
from pathlib import Path

import pytest

from simulations.cli import main
from tests.tiny_federation import write_hospitals
from tests.tiny_hospitals import study_text


def test_sites_show_statistics_and_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {"min_patients": 1, "min_cell": 3, "max_bins": 256, "statistics": True}
    sites = {**write_hospitals(tmp_path, "a", disclosure=shown), **write_hospitals(tmp_path, "b")}
    study = tmp_path / "study.yaml"
    study.write_text(study_text())

    words = ["statistics", "--study", str(study), "--out", str(tmp_path / "run"), "--workers", "1", "--json"]
    status = main([*words, *(word for path in sites.values() for word in ("--site", str(path)))])

    told = capsys.readouterr()
    assert status == 0
    assert json.loads(told.out)["missing"] == {"b": "does not disclose statistics"}
    assert (
        "Patients by class and split  recurrence  necrosis\ntrain                               4/1       4/1"
        in told.err
    )
    assert "<svg" in (tmp_path / "run" / "statistics.html").read_text()
    assert not list((tmp_path / "run" / "model").iterdir())


def test_phantoms_have_no_meaning_beside_own_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["statistics", "--site", str(tmp_path / "site.yaml"), "--sites", "A"])

    assert status == 2
    assert "--sites is for phantom hospitals" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_processes_show_the_same_as_function_calls(tmp_path: Path) -> None:
    shown = {"min_patients": 1, "min_cell": 3, "max_bins": 256, "statistics": True, "duplicates": True}
    sites = write_hospitals(tmp_path, "a", "b", disclosure=shown)
    study = tmp_path / "study.yaml"
    study.write_text(study_text())
    words = ["statistics", "--study", str(study), "--workers", "1"]
    words += [word for path in sites.values() for word in ("--site", str(path))]

    found = {}
    for engine in ("in-process", "network"):
        assert main([*words, "--engine", engine, "--out", str(tmp_path / engine)]) == 0
        values = json.loads((tmp_path / engine / "statistics.json").read_text())
        found[engine] = {name: values[name] for name in ("sites", "missing", "tables", "duplicates")}

    assert found["network"] == found["in-process"]
    assert found["network"]["sites"] == ["a", "b"]
    assert found["network"]["duplicates"]["pairs"] == [{"sites": ["a", "b"], "patients": [0, 0]}]
