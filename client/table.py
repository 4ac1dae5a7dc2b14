"""Read a hospital's table of exams (.csv, .tsv or .xlsx), or say everything that is wrong with it at once."""

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from client.config import TABLE_SEPARATORS, EligibilityRule
from client.exam import (
    POINT,
    SEQUENCES,
    SPLITS,
    VOLUME_SUFFIXES,
    Exam,
    Exclusion,
    Faults,
    Record,
    Source,
    Split,
    exams_of,
    given,
    shortened,
)
from client.sources.workbook import rows_of_workbook
from common.errors import ConfigError, list_of_faults

__all__ = [
    "SEQUENCES",
    "SPLITS",
    "VOLUME_SUFFIXES",
    "Exam",
    "Split",
    "read_table",
    "shortened",
    "table_exams",
    "table_rows",
]

Rows = list[tuple[int, list[str]]]
"""Lines of a table by their number; the first line is 1."""

_REQUIRED = ("patient_id", "label")
_KNOWN = (*_REQUIRED, "exam_id", "split", *SEQUENCES, *POINT, "lesion_mask", "brain_mask")


def read_table(path: Path, label_map: Mapping[str, int]) -> tuple[Exam, ...]:
    """Read the exams of a table, sorted by patient and exam identifier.

    Paths in the table begin at the table's folder and must stay inside it; absolute ones are taken as they are.
    An empty field, or `n/a`, is a missing value. Header names are read without case; unknown columns are left alone.

    Args:
        path: A .csv (comma) or .tsv (tab) file in UTF-8, or an .xlsx workbook of one sheet.
        label_map: Label 1 or 0 of every word in the label column.

    Raises:
        ConfigError: All faults at once, if any is in the table itself.
        DataError: All faults at once, if the table is sound and files that it names are not there.
    """
    faults = Faults()
    exams, _ = table_exams(path, label_map, (), faults)
    faults.raise_if_any(path)
    return exams


def table_exams(
    path: Path,
    label_map: Mapping[str, int],
    eligibility: Sequence[EligibilityRule],
    faults: Faults,
    *,
    sheet: str | None = None,
) -> tuple[tuple[Exam, ...], tuple[Exclusion, ...]]:
    """As `read_table`, with the exams that rules of eligibility exclude, and with faults noted instead of raised.

    Raises:
        ConfigError: The file is no table with a usable header, so that nothing can be said of its rows.
    """
    header, rows = table_rows(path, sheet=sheet)
    written = _faults_of_header(header)
    if written:
        later = next((number for number, row in rows if _is_header(row)), None)
        if later is not None:
            written = [f"row {later} seems to be the header, and stands below other lines; delete what is above it"]
        raise ConfigError(list_of_faults(str(path), written))
    records = []
    for number, values in rows:
        if len(values) != len(header):
            faults.written.append(
                f"row {number}: has {len(values)} fields, expected {len(header)} as in the header; "
                "put quotes around a field that holds the separator"
            )
            continue
        fields = {name: given(value) for name, value in zip(header, values, strict=True)}
        records.append(Record(number, f"row {number}", fields, path.parent))
    if not rows:
        faults.written.append("holds a header and no rows; add one row per exam")
    source = Source("the table", tuple(records), frozenset(header), named_splits="split" in header)
    return exams_of(source, label_map, eligibility, faults)


def table_rows(path: Path, *, sheet: str | None = None) -> tuple[list[str], Rows]:
    """The header in lower case, and the lines below it that are not empty, with their numbers.

    Args:
        path: A .csv, .tsv or .xlsx file.
        sheet: Which sheet of a workbook; needed where it has several.

    Raises:
        ConfigError: It cannot be read as what its ending says.
    """
    lines = rows_of_workbook(path, sheet) if path.suffix.lower() == ".xlsx" else _text_lines(path)
    lines = [(number, row) for number, row in lines if any(value.strip() for value in row)]
    if not lines:
        raise ConfigError(f"{path}: is empty; write a header line and one row per exam (see docs/site.md)")
    header = [name.strip().lower() for name in lines[0][1]]
    if path.suffix.lower() == ".xlsx":  # a sheet has no ends of lines: what is right of the header must be empty
        return header, [(number, _fitted(row, len(header))) for number, row in lines[1:]]
    return header, lines[1:]


def _fitted(row: list[str], width: int) -> list[str]:
    beyond = [value for value in row[width:] if value.strip()]
    return [*row, *[""] * (width - len(row))] if len(row) < width else [*row[:width], *beyond]


def _text_lines(path: Path) -> Rows:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); let the account that runs this program read it, or "
            "correct `data` in site.yaml"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8, which spreadsheets call 'CSV UTF-8'"
        ) from None
    if "\x00" in text:
        raise ConfigError(f"{path}: is not a text table (it holds zero bytes); export it as CSV UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=TABLE_SEPARATORS[path.suffix.lower()], strict=True)
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ConfigError(
            f"{path}: line {reader.line_num} cannot be read ({error}); mend the quotes of this line"
        ) from None


def _is_header(row: list[str]) -> bool:
    return set(_REQUIRED) <= {value.strip().lower() for value in row}


def _faults_of_header(header: list[str]) -> list[str]:
    faults = [
        f"column {name!r} stands {header.count(name)} times in the header; keep one"
        for name in _KNOWN
        if header.count(name) > 1
    ]
    for name in _REQUIRED:
        if name not in header:
            close = difflib.get_close_matches(name, header, n=1)
            advice = f"did you mean it by {close[0]!r}?" if close else f"found: {', '.join(header)[:200]}"
            faults.append(f"column {name!r} is missing from the header; {advice}")
    if not set(SEQUENCES) & set(header):
        faults.append(
            "no column t1, t2 or t1ce in the header; add a column of paths for each sequence"
            + (" (is the separator the one of the file's ending?)" if len(header) == 1 else "")
        )
    present = [name for name in POINT if name in header]
    if present and len(present) < len(POINT):
        lacking = [name for name in POINT if name not in header]
        faults.append(f"columns {', '.join(present)} need {' and '.join(lacking)} beside them")
    return faults
