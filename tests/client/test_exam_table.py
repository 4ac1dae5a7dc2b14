"""The table of exams: what is read, and that every fault is told with its row, all at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client.table import Exam, read_table
from common.errors import ConfigError, DataError

LABELS = {"necrosis": 1, "recurrence": 0}
TABLE = """patient_id,label,t1,t2,t1ce,lesion_x,lesion_y,lesion_z
007,necrosis,a/t1.nii,a/t2.nii,a/t1ce.nii,1.5,-2,30
7,recurrence,b/t1.nii,b/t2.nii,b/t1ce.nii,,,
"""

ReadText = Callable[[str], tuple[Exam, ...]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for patient in "ab":
        (tmp_path / "site" / patient).mkdir(parents=True)
        for sequence in ("t1", "t2", "t1ce"):
            (tmp_path / "site" / patient / f"{sequence}.nii").touch()
    return tmp_path / "site"


@pytest.fixture
def read(folder: Path) -> ReadText:
    def read_text(text: str) -> tuple[Exam, ...]:
        (folder / "table.csv").write_text(text, encoding="utf-8")
        return read_table(folder / "table.csv", LABELS)

    return read_text


def test_identifiers_stay_text_so_that_007_and_7_are_two_patients(read: ReadText) -> None:
    exams = read(TABLE)

    assert [(exam.patient_id, exam.label) for exam in exams] == [("007", 1), ("7", 0)]
    assert [exam.lesion_point for exam in exams] == [(1.5, -2.0, 30.0), None]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("patient_id,label", "\ufeffpatient_id,label", id="byte order mark"),
        pytest.param("patient_id,label", " Patient_ID , LABEL", id="case and spaces in the header"),
        pytest.param("\n", "\r\n", id="windows line ends"),
        pytest.param("7,recurrence", "  7 , recurrence ", id="spaces in fields"),
        pytest.param("7,recurrence,b/t1.nii", '7,"recurrence","b/t1.nii"', id="quotes"),
        pytest.param("\n", "\n\n", id="empty lines"),
    ],
)
def test_ways_of_writing_that_mean_the_same(read: ReadText, old: str, new: str) -> None:
    plain = read(TABLE)

    assert [(e.patient_id, e.label, e.volumes) for e in read(TABLE.replace(old, new))] == [
        (e.patient_id, e.label, e.volumes) for e in plain
    ]


def test_an_empty_field_and_not_available_are_a_missing_sequence(read: ReadText) -> None:
    exams = read(TABLE.replace("a/t2.nii", "n/a").replace("b/t1ce.nii", ""))

    assert [set(exam.volumes) for exam in exams] == [{"t1", "t1ce"}, {"t1", "t2"}]


def test_columns_that_are_not_known_are_left_alone(read: ReadText) -> None:
    exams = read("age,age,patient_id,label,t1\n40,41,p,necrosis,a/t1.nii\n")

    assert exams[0].volumes.keys() == {"t1"}


def test_tabs_part_the_fields_of_a_tsv(folder: Path) -> None:
    (folder / "table.tsv").write_text(TABLE.replace(",", "\t"))

    assert len(read_table(folder / "table.tsv", LABELS)) == 2


def test_exams_of_one_patient_are_told_apart_by_exam_id(read: ReadText) -> None:
    exams = read("patient_id,exam_id,label,t1\np,2,necrosis,a/t1.nii\np,1,necrosis,b/t1.nii\n")

    assert [exam.exam_id for exam in exams] == ["1", "2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("label,", "lable,", r"'label' is missing.*did you mean it by 'lable'", id="missing column"),
        pytest.param("t1,t2", "t1,t1", r"'t1' stands 2 times", id="column twice"),
        pytest.param("t1,t2,t1ce", "x,y,z", r"no column t1, t2 or t1ce", id="no sequences"),
        pytest.param(",lesion_z", ",depth", r"lesion_x, lesion_y need lesion_z", id="two coordinates in the header"),
        pytest.param(",1.5,-2,30", ",1.5,-2", r"row 2: has 7 fields, expected 8", id="ragged row"),
        pytest.param("007,", ",", r"row 2: patient_id is empty", id="no identifier"),
        pytest.param("7,recurrence", "7,mixed", r"row 3 \(patient 7\): label is 'mixed'.*necrosis, rec", id="label"),
        pytest.param("7,recurrence", "7,Necrosis", r"label is 'Necrosis', which label_map does not", id="letter case"),
        pytest.param("7,recurrence", "7,", r"row 3 \(patient 7\): label is empty", id="no label"),
        pytest.param("7,recurrence", "007,necrosis", r"row 3 \(patient 007\): stands in row 2 already", id="twice"),
        pytest.param(",-2,", ",\N{MINUS SIGN}2 mm,", r"lesion_y is .*expected a number of millimetres", id="no number"),
        pytest.param(",-2,", ",inf,", r"lesion_y is 'inf'", id="infinite"),
        pytest.param(",-2,", ",,", r"lesion_y is empty; give all three", id="one coordinate lacks"),
        pytest.param("b/t1.nii,b/t2.nii,b/t1ce.nii", ",,", r"row 3 .*names no volume at all", id="no volume"),
        pytest.param("b/t2.nii", "b/t1.nii", r"names one file for two sequences", id="one file twice"),
        pytest.param("b/t2.nii", "a/t2.nii", r"row 3 .*names a volume of row 2 \(patient 007\)", id="another's file"),
        pytest.param("b/t2.nii", "b/t2.dcm", r"t2 is 'b/t2.dcm', expected a NIfTI file", id="dicom"),
        pytest.param("b/t2.nii", "../site2/t2.nii", r"leads out of the source's folder", id="parent folder"),
        pytest.param("7,recurrence", '7,"recurrence', r"cannot be read \(unexpected end of data\)", id="open quote"),
    ],
)
def test_a_fault_of_the_table_is_told_with_its_row(read: ReadText, old: str, new: str, message: str) -> None:
    assert old in TABLE

    with pytest.raises(ConfigError, match=message):
        read(TABLE.replace(old, new, 1) if old == "7,recurrence" else TABLE.replace(old, new))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty; write a header line", id="empty"),
        pytest.param(b"patient_id,label,t1\n", "a header and no rows", id="header alone"),
        pytest.param(b"patient_id,label,t1\nJos\xe9,necrosis,a\n", "not UTF-8 text", id="latin-1"),
        pytest.param("patient_id,label,t1\n".encode("utf-16-le"), "not a text table", id="utf-16"),
        pytest.param(b"patient_id;label;t1\n1;necrosis;a\n", "'patient_id' is missing", id="semicolons"),
    ],
)
def test_a_file_that_is_no_table_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "table.csv").write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        read_table(folder / "table.csv", LABELS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(
            "p,1,necrosis,train,a/t1.nii\np,2,necrosis,test,b/t1.nii\n",
            "is in test, row 2 .* in train",
            id="two splits",
        ),
        pytest.param(
            "p,1,necrosis,train,a/t1.nii\np,2,recurrence,train,b/t1.nii\n", "has another label than row 2", id="labels"
        ),
        pytest.param("p,1,necrosis,,a/t1.nii\n", "split is empty; write train", id="one row without split"),
        pytest.param("p,1,necrosis,dev,a/t1.nii\n", "split is 'dev'; write train", id="unknown split"),
    ],
)
def test_a_patient_has_one_split_and_one_label(read: ReadText, rows: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("patient_id,exam_id,label,split,t1\n" + rows)


def test_a_file_that_is_not_there_is_a_fault_of_the_data(read: ReadText, folder: Path) -> None:
    (folder / "b" / "t2.nii").unlink()

    with pytest.raises(DataError, match=r"row 3 \(patient 7\): t2: .*b/t2.nii does not exist"):
        read(TABLE)


def test_a_link_out_of_the_folder_is_refused(read: ReadText, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.nii"
    outside.touch()
    (folder / "b" / "t2.nii").unlink()
    os.symlink(outside, folder / "b" / "t2.nii")

    with pytest.raises(ConfigError, match="leads out of the source's folder"):
        read(TABLE)


def test_an_absolute_path_is_taken_as_it_is(read: ReadText, tmp_path: Path) -> None:
    outside = tmp_path / "outside.nii"
    outside.touch()

    assert read(TABLE.replace("b/t2.nii", str(outside)))[1].volumes["t2"] == outside


def test_all_faults_are_told_at_once_and_a_long_list_is_cut(read: ReadText) -> None:
    rows = "".join(f"p{i},mixed,a/t1.nii\n" for i in range(30))

    with pytest.raises(ConfigError) as error:
        read("patient_id,label,t1\n" + rows)

    lines = str(error.value).splitlines()
    assert lines[1].startswith("  - row 2 (patient p0)")
    assert len(lines) == 22
    assert lines[-1] == "  - ... and 10 more"


def test_volumes_that_the_file_system_refuses_are_told_together(read: ReadText, folder: Path) -> None:
    (folder / "b" / "loop.nii").symlink_to("loop.nii")
    text = TABLE.replace("a/t1.nii", "x" * 300 + ".nii").replace("b/t1.nii", "b/loop.nii")

    with pytest.raises(DataError, match=r"(?s)2 faults.*row 2 .*name too long.*row 3 .*symbolic links"):
        read(text)


def test_a_brain_mask_is_a_file_of_the_exam(folder: Path, read: ReadText) -> None:
    (folder / "a" / "brain.nii.gz").touch()
    masked = TABLE.replace("lesion_z\n", "lesion_z,brain_mask\n").replace(",30\n", ",30,a/brain.nii.gz\n")

    first, second = read(masked.replace(",,,\n", ",,,,\n"))

    assert first.brain_mask == folder / "a" / "brain.nii.gz"
    assert first.brain_mask in first.files
    assert second.brain_mask is None
    with pytest.raises(DataError, match=r"brain_mask: .*absent.nii does not exist"):
        read(masked.replace(",,,\n", ",,,,\n").replace("a/brain.nii.gz", "a/absent.nii"))
