"""Every example of docs/data.md is read as the page says."""

import json
import re
from pathlib import Path

import pytest
import yaml

from client import cli
from client.config import EligibilityRule, read_site_config
from client.sources.reading import read_source
from tests.client.sources.dicom_files import write_exam

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in BLOCKS.items():
        if "." in name:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    scans = [f"scans/{patient}_{sequence}.nii.gz" for patient in ("007", "8") for sequence in ("t1", "t2", "t1ce")]
    for name in [*BLOCKS["files"].split(), *scans]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "exams"),
    [
        ("table", [("007", "", 1, 3), ("8", "", 0, 3)]),
        ("bids", [("007", "01", 1, 3), ("8", "", 0, 3)]),
        ("datalist", [("007", "", 1, 3), ("8", "", 0, 2)]),
        ("dicom", [("001", "01", 0, 3), ("002", "01", 1, 3)]),
    ],
)
def test_an_example_is_read(folder: Path, source: str, exams: list[tuple[str, str, int, int]]) -> None:
    (folder / "site.yaml").write_text(BLOCKS[f"site-{source}"])
    if source == "dicom":
        for patient_id in ("PID0042", "PID0043"):
            write_exam(folder / "export", patient_id, study=f"1.2.{patient_id[3:].lstrip('0')}")
        assert cli.main(["dicom", "--site", str(folder / "site.yaml"), "--yes"]) == 0

    reading = read_source(read_site_config(folder / "site.yaml"), None)

    assert reading.faults == ()
    assert sorted((e.patient_id, e.exam_id, e.label, len(e.volumes)) for e in reading.exams) == exams


def test_the_rules_of_eligibility_are_sound() -> None:
    rules = yaml.safe_load(BLOCKS["eligibility"])["eligibility"]

    assert [EligibilityRule.model_validate_json(json.dumps(rule)).reason for rule in rules] == [
        "never irradiated",
        "mixed pathology",
        "no reference standard",
    ]
