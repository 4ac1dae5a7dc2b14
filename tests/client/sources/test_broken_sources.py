"""Sources that were damaged end in a message with a place, never in another exception, and never pass unread."""

import io
import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook

from client.config import DataSource, SiteConfig
from client.exam import Exam
from client.sources.dicom_choice import COLUMNS, read_choices
from client.sources.reading import SourceReading, read_source
from client.sources.workbook import rows_of_workbook
from client.table import read_table
from common.errors import ConfigError, DataError

LABELS = {"necrosis": 1, "recurrence": 0}
TABLE = """patient_id,exam_id,label,split,t1,lesion_x,lesion_y,lesion_z
007,1,necrosis,train,a.nii,1,2,3
8,1,recurrence,test,b.nii,,,
"""
DATALIST = json.dumps(
    {
        "modality": {"0": "t1", "1": "t2", "2": "t1ce"},
        "training": [{"patient_id": "007", "image": ["a.nii", None, None], "label": "necrosis", "fold": 1}],
        "validation": [{"patient_id": "8", "image": {"t1": "b.nii"}, "label": "recurrence", "lesion_mask": "c.nii"}],
    }
)
PARTICIPANTS = "participant_id\tlabel\tsplit\nsub-007\tnecrosis\ttrain\nsub-8\trecurrence\ttest\n"
DESCRIPTION = '{"label": {"Levels": {"necrosis": "a", "recurrence": "b"}}}'
SESSIONS = "session_id\tgliorn_exam_id\nses-1\tone\n"
SPLICES = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"\t",
    b",",
    b"\n",
    b"../",
    b"n/a",
    b"{",
    b"[",
    b"null",
    b"1e999",
    b"\\ud800",
]


def workbook(rows: Sequence[Sequence[object]], sheets: tuple[str, ...] = ("Sheet",)) -> bytes:
    book = Workbook()
    assert book.active is not None
    book.active.title = sheets[0]
    for row in rows:
        book.active.append(list(row))
    for name in sheets[1:]:
        book.create_sheet(name)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


XLSX = workbook([list(line.split(",")) for line in TABLE.splitlines()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    for name in ("a.nii", "b.nii", "c.nii"):
        (folder / name).touch()
    for name in ("sub-007/ses-1/anat/sub-007_ses-1_T1w.nii", "sub-8/anat/sub-8_T2w.nii"):
        (folder / "bids" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "bids" / name).touch()
    return folder


def read(folder: Path, **data: object) -> SourceReading:
    config = SiteConfig(name="a", data=DataSource.model_validate(data), label_map=LABELS, cache=folder)
    return read_source(config, None)


def of_table(folder: Path, content: bytes) -> SourceReading:
    (folder / "table.csv").write_bytes(content)
    return read(folder, table=folder / "table.csv")


def of_workbook(folder: Path, content: bytes) -> SourceReading:
    (folder / "table.xlsx").write_bytes(content)
    return read(folder, table=folder / "table.xlsx")


def of_datalist(folder: Path, content: bytes) -> SourceReading:
    (folder / "list.json").write_bytes(content)
    return read(folder, datalist=folder / "list.json")


def of_bids(folder: Path, *, participants: bytes, description: bytes, sessions: bytes) -> SourceReading:
    (folder / "bids" / "participants.tsv").write_bytes(participants)
    (folder / "bids" / "participants.json").write_bytes(description)
    (folder / "bids" / "sub-007" / "sub-007_sessions.tsv").write_bytes(sessions)
    return read(folder, bids=folder / "bids")


def of_participants(folder: Path, content: bytes) -> SourceReading:
    return of_bids(folder, participants=content, description=DESCRIPTION.encode(), sessions=SESSIONS.encode())


def of_description(folder: Path, content: bytes) -> SourceReading:
    return of_bids(folder, participants=PARTICIPANTS.encode(), description=content, sessions=SESSIONS.encode())


def of_sessions(folder: Path, content: bytes) -> SourceReading:
    return of_bids(folder, participants=PARTICIPANTS.encode(), description=DESCRIPTION.encode(), sessions=content)


FORMS: dict[str, tuple[Callable[[Path, bytes], SourceReading], bytes]] = {
    "table": (of_table, TABLE.encode()),
    "workbook": (of_workbook, XLSX),
    "datalist": (of_datalist, DATALIST.encode()),
    "participants": (of_participants, PARTICIPANTS.encode()),
    "description": (of_description, DESCRIPTION.encode()),
    "sessions": (of_sessions, SESSIONS.encode()),
}


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after a few cuts, flipped bytes, doubled pieces and splices."""
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.integers(0, 12)))
        piece = draw(
            st.sampled_from([*SPLICES, content[begin:end] * 2, bytes(byte ^ 4 for byte in content[begin:end])])
        )
        content = content[:begin] + piece + content[end:]
    return content


def require_usable(exam: Exam) -> None:
    assert exam.patient_id
    assert exam.volumes
    assert all(path.is_file() for path in exam.files)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_damaged_is_read_whole(folder: Path, form: str) -> None:
    reader, content = FORMS[form]

    reading = reader(folder, content)

    assert reading.faults == ()
    assert [exam.patient_id for exam in reading.exams] == ["007", "8"]


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_source_ends_in_a_message_with_a_place(folder: Path, form: str, data: st.DataObject) -> None:
    reader, content = FORMS[form]

    reading = reader(folder, data.draw(mutated(content)))

    for exam in reading.exams:
        require_usable(exam)
    for fault in reading.faults:
        assert fault.text.strip()
        fault.text.encode()
    if reading.faults:
        with pytest.raises((ConfigError, DataError), match=str(reading.path.parent)):
            reading.raise_if_faulty()
    else:
        assert reading.exams, "nothing was read, and nothing was said"


@given(content=mutated(("\t".join(COLUMNS) + "\n" + "\t".join(["1"] * len(COLUMNS)) + "\n").encode()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_choice_of_series_is_read_or_refused(folder: Path, content: bytes) -> None:
    (folder / "series.tsv").write_bytes(content)

    try:
        choices = read_choices(folder / "series.tsv")
    except ConfigError as error:
        told = str(error)
        choices = ()
    else:
        told = ""

    assert all(choice.sequence in ("", "t1", "t2", "t1ce") for choice in choices)
    assert "series.tsv" in told or choices


def test_a_workbook_keeps_the_zeros_that_it_shows(folder: Path) -> None:
    book = Workbook()
    assert book.active is not None
    book.active.append(["patient_id", "label", "t1"])
    book.active.append([7, "necrosis", "a.nii"])
    book.active.append(["008", "recurrence", "b.nii"])
    book.active.append([9.0, "recurrence", "c.nii"])
    book.active["A2"].number_format = "000"
    book.save(folder / "zeros.xlsx")

    assert [exam.patient_id for exam in read_table(folder / "zeros.xlsx", LABELS)] == ["007", "008", "9"]


@pytest.mark.parametrize(
    ("rows", "sheets", "message"),
    [
        pytest.param([["patient_id"], [date(2021, 9, 14)]], ("a",), "cell A2: holds a datetime .*as text", id="date"),
        pytest.param([["patient_id"], ["#N/A"]], ("a",), "cell A2: holds the error #N/A", id="error"),
        pytest.param([["patient_id"]], ("a", "b"), "has 2 sheets.*data.sheet: one of 'a', 'b'", id="sheets"),
    ],
)
def test_a_cell_that_is_no_text_is_told_with_its_place(
    folder: Path, rows: list[list[object]], sheets: tuple[str, ...], message: str
) -> None:
    (folder / "cells.xlsx").write_bytes(workbook(rows, sheets))

    with pytest.raises(ConfigError, match=message):
        rows_of_workbook(folder / "cells.xlsx", None)


def test_a_sheet_is_found_by_its_name_or_refused(folder: Path) -> None:
    (folder / "sheets.xlsx").write_bytes(workbook([["x"]], ("one", "two")))

    assert rows_of_workbook(folder / "sheets.xlsx", "one") == [(1, ["x"])]
    with pytest.raises(ConfigError, match="has no sheet 'three'"):
        rows_of_workbook(folder / "sheets.xlsx", "three")


def test_a_title_above_the_header_is_told_by_the_row_of_the_header(tmp_path: Path) -> None:
    book = Workbook()
    sheet = book.create_sheet("exams", 0)
    del book["Sheet"]
    sheet.append(["Cohort of the department"])
    sheet.merge_cells("A1:D1")
    for line in TABLE.splitlines():
        sheet.append(line.split(","))
    book.save(tmp_path / "exams.xlsx")

    with pytest.raises(ConfigError, match="row 2 seems to be the header, and stands below other lines"):
        read_table(tmp_path / "exams.xlsx", LABELS)


def test_a_folder_without_participants_is_told_what_is_expected(tmp_path: Path) -> None:
    config = SiteConfig(name="a", data=DataSource(bids=tmp_path), label_map=LABELS, cache=tmp_path / "cache")

    with pytest.raises(ConfigError, match=r"participants\.tsv: does not exist, expected .* in data\.bids"):
        read_source(config, None).raise_if_faulty()
