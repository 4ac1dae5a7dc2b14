"""DICOM: which series is taken for what, the file that can be edited, and that no identifier survives."""

import csv
import gzip
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from client import cli
from client.config import read_site_config
from client.sources.dicom_series import Series, propose, propose_for_exam
from client.sources.reading import read_source
from tests.client.sources.dicom_files import write_exam

SECRETS = (
    "DOE",
    "JANE",
    "19560307",
    "20210914",
    "PID0042",
    "ACC778",
    "Sankt Anna",
    "Dr House",
    "PRIVATENAME",
    "101512",
)


def plain_series(**changes: object) -> Series:
    base = Series("p", "s", "", "u", 1, "T1 ax", "MR", ("ORIGINAL",), 500.0, 12.0, None, "", False, 20, ())
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sequence"),
    [
        pytest.param({}, "t1", id="spin echo"),
        pytest.param({"tr_ms": 2000.0, "te_ms": 9.0, "ti_ms": 860.0}, "t1", id="inversion recovery"),
        pytest.param({"agent": "Gadovist"}, "t1ce", id="agent"),
        pytest.param({"description": "t1_mprage_post"}, "t1ce", id="description"),
        pytest.param({"description": "T1 +C"}, "t1ce", id="plus c"),
        pytest.param({"description": "T1 pre contrast"}, "t1", id="before contrast"),
        pytest.param({"description": "T1 native", "agent": "Gadovist"}, None, id="contradiction"),
        pytest.param({"tr_ms": 4000.0, "te_ms": 98.0, "description": "T2 TSE"}, "t2", id="t2"),
        pytest.param({"tr_ms": 9000.0, "te_ms": 120.0, "ti_ms": 2500.0, "description": "ax"}, None, id="flair by TI"),
        pytest.param({"tr_ms": 4000.0, "te_ms": 98.0, "description": "ep2d_diff"}, None, id="diffusion"),
        pytest.param({"num_images": 3}, None, id="localizer"),
        pytest.param({"modality": "CT"}, None, id="ct"),
        pytest.param({"image_type": ("DERIVED", "SECONDARY")}, None, id="secondary"),
        pytest.param({"description": "T1 sub"}, None, id="subtraction"),
        pytest.param({"te_ms": None}, None, id="no TE"),
        pytest.param({"tr_ms": 700.0, "te_ms": 45.0}, None, id="neither"),
    ],
)
def test_a_series_is_taken_for_what_its_parameters_and_description_say(
    changes: dict[str, object], sequence: str | None
) -> None:
    assert propose(plain_series(**changes)).sequence == sequence


def test_of_two_series_the_original_one_with_more_images_is_proposed() -> None:
    exam = [
        plain_series(uid="a", num_images=20),
        plain_series(uid="b", num_images=180),
        plain_series(uid="c", num_images=400, image_type=("DERIVED", "PRIMARY")),
    ]

    assert {uid: one.sequence for uid, one in propose_for_exam(exam).items()} == {"a": None, "b": "t1", "c": None}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for patient_id, study in (("PID0042", "1.2.3"), ("PID0042", "1.2.4"), ("PID0043", "1.2.5")):
        write_exam(tmp_path / "export", patient_id, study=study)
    (tmp_path / "export" / "README.txt").write_text("not DICOM")
    (tmp_path / "labels.csv").write_text(
        "patient_id,label,note,irradiated\nPID0042,necrosis,DOE is nice,yes of DOE\nPID0043,recurrence,,no\n"
    )
    values = {
        "name": "a",
        "data": {"dicom": "export", "converted": "own", "labels": "labels.csv"},
        "label_map": {"necrosis": 1, "recurrence": 0},
        "eligibility": [{"column": "irradiated", "exclude": ["no"], "reason": "never irradiated"}],
        "cache": "cache",
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "site.yaml"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_chosen_series_become_exams_and_no_identifier_survives(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = site.parent / "own"
    assert cli.main(["dicom", "--site", str(site)]) == 0
    assert "Next: look at the column sequence" in capsys.readouterr().out
    assert not (own / "bids").exists(), "nothing is converted before it is confirmed"

    assert cli.main(["dicom", "--site", str(site), "--yes"]) == 0

    reading = read_source(read_site_config(site), None)
    assert reading.faults == ()
    assert [(e.exam_id, e.label, sorted(e.volumes)) for e in reading.exams] == [
        ("01", 1, ["t1", "t1ce", "t2"]),
        ("02", 1, ["t1", "t1ce", "t2"]),
    ]
    assert [one.reason for one in reading.excluded] == ["never irradiated"]
    files = [path for path in (own / "bids").rglob("*") if path.is_file()]
    assert len(files) == 9 * 2 + 2
    for path in files:
        content = path.read_bytes()
        plain = gzip.decompress(content) if path.suffix == ".gz" else content
        text = (str(path.relative_to(own)).encode() + content + plain).upper()
        assert [secret for secret in SECRETS if secret.upper().encode() in text] == []
    assert stat.S_IMODE((own / "series.tsv").stat().st_mode) == 0o600
    assert sorted(path.name for path in own.iterdir()) == ["bids", "converted.json", "series.tsv"]


def test_an_edited_choice_is_kept_and_only_what_changed_is_converted(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = site.parent / "own" / "series.tsv"
    assert cli.main(["dicom", "--site", str(site), "--yes"]) == 0
    lines = choice.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("001\t01\tt2\t"))
    lines[place] = lines[place].replace("001\t01\tt2\t", "001\t01\t\t")
    choice.write_text("\n".join(lines) + "\n")
    capsys.readouterr()

    assert cli.main(["dicom", "--site", str(site), "--yes"]) == 0

    assert "0 series converted, 8 were there already" in capsys.readouterr().out
    assert rows_of(choice)[place - 1]["sequence"] == ""
    assert not list((site.parent / "own" / "bids" / "sub-001" / "ses-01" / "anat").glob("*_T2w*"))


def test_a_choice_that_contradicts_itself_is_refused_with_its_row(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = site.parent / "own" / "series.tsv"
    assert cli.main(["dicom", "--site", str(site)]) == 0
    choice.write_text(choice.read_text().replace("\tt2\t", "\tt1\t"))

    assert cli.main(["dicom", "--site", str(site), "--yes"]) == 2

    assert "t1 of this exam is chosen in row" in capsys.readouterr().err


def test_a_label_that_no_setting_names_is_not_written(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = site.parent / "labels.csv"
    labels.write_text(labels.read_text().replace("necrosis", "DOE: mixed"))

    assert cli.main(["dicom", "--site", str(site), "--yes"]) == 2

    assert "row 2: label is 'DOE: mixed', which neither label_map nor" in capsys.readouterr().err
    assert not (site.parent / "own" / "bids").exists()


def test_a_rule_that_would_write_an_identifier_is_refused(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"column": "patient_id", "exclude": ["PID0042"], "reason": "mixed pathology"}
    site.write_text(yaml.safe_dump(yaml.safe_load(site.read_text()) | {"eligibility": [rule]}))

    assert cli.main(["dicom", "--site", str(site), "--yes"]) == 2

    assert "would write identifiers into the converted exams" in capsys.readouterr().err
    assert not (site.parent / "own" / "bids").exists()


def test_a_site_that_has_not_converted_yet_is_told_how(site: Path) -> None:
    (fault,) = read_source(read_site_config(site), None).faults

    assert "gliorn-client dicom" in fault.text
