"""A fault made on purpose at one of three sites: the command ends DEGRADED and names the site and the reason."""

import json
from pathlib import Path

import pytest

from simulations.cli import main
from tests.tiny_hospitals import study_text, write_tiny_hospital

REASONS = {
    "nan": "NaN",
    "shape": "shape",
    "no-patients": "0 patients",
    "many-patients": "1000000000 patients",
    "missing-key": "'num-steps' is missing",
    "exception": "program failed",
    "hang": "no reply before the deadline",
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("three")
    return [write_tiny_hospital(folder, name) for name in ("a", "b", "c")]


@pytest.mark.parametrize("kind", REASONS)
def test_a_fault_at_one_of_three_sites_degrades_the_run_and_is_named(
    sites: list[Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    timeout_s = 8 if kind == "hang" else 120
    text = study_text(participation={"min_sites": 2, "round_timeout_s": timeout_s}, rounds=2)
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    arguments = [part for site in sites for part in ("--site", str(site))]

    status = main(
        [*arguments, "--study", f"{tmp_path}/study.yaml", "--out", f"{tmp_path}/run", "--fault", f"b:{kind}:2"]
    )

    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert status == 0
    assert record["outcome"] == "DEGRADED"
    assert list(record["missing_in_rounds"]) == ["b"]
    ((reason, rounds),) = record["missing_in_rounds"]["b"].items()
    assert rounds == [2]
    assert REASONS[kind] in reason
    assert "b was not in round 2" in capsys.readouterr().out
