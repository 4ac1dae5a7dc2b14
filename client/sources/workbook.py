"""Read a sheet of an Excel workbook as rows of text, with what a spreadsheet did to the text found out.

openpyxl and not a faster reader, since it tells the number format of a cell: an identifier that was typed as 007 and
that is shown as 007 may be stored as the number 7.
"""

import itertools
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import cast
from xml.etree.ElementTree import ParseError

from openpyxl import load_workbook
from openpyxl.cell.cell import Cell, MergedCell
from openpyxl.cell.read_only import EmptyCell, ReadOnlyCell
from openpyxl.utils.exceptions import InvalidFileException
from openpyxl.worksheet._read_only import ReadOnlyWorksheet
from openpyxl.worksheet.worksheet import Worksheet

from common.errors import ConfigError, list_of_faults

MAX_ROWS = 100_000
MAX_BYTES = 200_000_000
"""Of a workbook once it is unpacked, against files made to fill the memory."""
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    InvalidFileException,
    ParseError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What openpyxl and the libraries below it raise over a damaged workbook: it has no error of its own for that."""
_ZEROS = re.compile(r"0+")

AnyCell = Cell | MergedCell | EmptyCell | ReadOnlyCell


def rows_of_workbook(path: Path, sheet: str | None) -> list[tuple[int, list[str]]]:
    """All rows of a sheet with their numbers; formulas count as the values that were stored with them.

    Args:
        path: An .xlsx file.
        sheet: Name of the sheet; None if the workbook has only one.

    Raises:
        ConfigError: The workbook cannot be read, or all cells at once that are no text and no plain number.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: unpacks to {size} bytes, expected at most {MAX_BYTES}; export it as CSV UTF-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions that do not concern the cells
            book = load_workbook(path, read_only=True, data_only=True, keep_links=False)
            try:
                worksheet = _sheet(book.sheetnames, sheet, path)
                return _rows(book[worksheet], path)
            finally:
                book.close()
    except _BROKEN as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path}: is not a readable Excel workbook ({reason}); save it again as .xlsx, or as CSV UTF-8"
        ) from None


def _sheet(names: list[str], wanted: str | None, path: Path) -> str:
    listed = ", ".join(repr(name) for name in names)[:200]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise ConfigError(f"{path}: has {len(names)} sheets, expected one; write data.sheet: one of {listed}")
    if wanted not in names:
        raise ConfigError(f"{path}: has no sheet {wanted!r} (data.sheet); found {listed}")
    return wanted


def _rows(worksheet: object, path: Path) -> list[tuple[int, list[str]]]:
    if not isinstance(worksheet, ReadOnlyWorksheet):
        raise ConfigError(f"{path}: the sheet holds a chart and no cells; name another one by data.sheet")
    worksheet.reset_dimensions()  # the stored ones may be wrong, and are what rows would be filled up to
    rows, faults = [], []
    all_rows = cast(Worksheet, worksheet).iter_rows()  # which is what openpyxl's stubs lend it from
    for number, cells in enumerate(itertools.islice(all_rows, MAX_ROWS + 1), start=1):
        if number > MAX_ROWS:
            raise ConfigError(f"{path}: has more than {MAX_ROWS} rows; delete the empty ones at its end")
        values = []
        for cell in cells:
            text, fault = _text(cell)
            values.append(text)
            if fault:
                faults.append(f"cell {cell.coordinate}: {fault}")
        rows.append((number, values))
    if faults:
        shown = faults if len(faults) <= 20 else [*faults[:20], f"... and {len(faults) - 20} more"]
        raise ConfigError(list_of_faults(str(path), shown))
    return rows


def _text(cell: AnyCell) -> tuple[str, str]:
    """What stands in a cell as text, and what is wrong with it."""
    value = cell.value
    if cell.data_type == "e":
        return "", f"holds the error {value}; mend the formula"
    if value is None or isinstance(value, str):
        return value or "", ""
    if isinstance(value, bool):
        return str(value).upper(), ""
    if isinstance(value, int | float):
        return _number(value, number_format=str(cell.number_format)), ""
    return "", f"holds a {type(value).__name__} ({value}), expected text; format the column as text and type it again"


def _number(value: float, *, number_format: str) -> str:
    if not abs(value) < 2**53 or value != int(value):
        return repr(value)
    zeros = _ZEROS.fullmatch(number_format)
    return str(int(value)).zfill(len(zeros[0])) if zeros and value >= 0 else str(int(value))
