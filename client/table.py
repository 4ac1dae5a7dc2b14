"""Read a hospital's table of exams (.csv or .tsv), or say everything that is wrong with it at once."""

import csv
import difflib
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.config import TABLE_SEPARATORS, fault_of_file
from common.errors import ConfigError, DataError, list_of_faults
from common.study import Label, Sequence

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SEQUENCES: tuple[Sequence, ...] = ("t1", "t2", "t1ce")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
MAX_FAULTS_SHOWN = 20

_REQUIRED = ("patient_id", "label")
_POINT = ("lesion_x", "lesion_y", "lesion_z")
_KNOWN = (*_REQUIRED, "exam_id", "split", *SEQUENCES, *_POINT, "lesion_mask")
_EMPTY = ("", "n/a")


@dataclass(frozen=True)
class Exam:
    """One visit of one patient: where its volumes lie and what is known of it.

    Attributes:
        row: Line in the table; the header is line 1.
        patient_id: As written, leading zeros kept. Never leaves the site.
        exam_id: Tells several exams of a patient apart; "" where the table has no such column.
        label: 1 necrosis, 0 recurrence.
        split: As the table names it; None where the table has no such column.
        volumes: The file of every sequence that this exam has.
        lesion_point: Centre of the lesion, world mm in RAS.
        lesion_mask: File whose non-zero voxels are the lesion.
    """

    row: int
    patient_id: str
    exam_id: str
    label: Label
    split: Split | None
    volumes: Mapping[Sequence, Path]
    lesion_point: tuple[float, float, float] | None = None
    lesion_mask: Path | None = None

    @property
    def name(self) -> str:
        """How this exam is named to a person at the site; not for logs."""
        exam = f", exam {self.exam_id}" if self.exam_id else ""
        return f"row {self.row} (patient {self.patient_id}{exam})"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the exam in a fixed order."""
        mask = () if self.lesion_mask is None else (self.lesion_mask,)
        return tuple(self.volumes[sequence] for sequence in SEQUENCES if sequence in self.volumes) + mask


@dataclass
class _Faults:
    """What is wrong with the table as written, and with the files that it names."""

    written: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def raise_if_any(self, origin: Path) -> None:
        faults = self.written + self.files
        if faults:
            kind = ConfigError if self.written else DataError
            raise kind(list_of_faults(str(origin), shortened(faults)))


def shortened(faults: list[str]) -> list[str]:
    """The first faults of a long list and how many more there are."""
    hidden = len(faults) - MAX_FAULTS_SHOWN
    return faults if hidden <= 0 else [*faults[:MAX_FAULTS_SHOWN], f"... and {hidden} more"]


def read_table(path: Path, label_map: Mapping[str, int]) -> tuple[Exam, ...]:
    """Read the exams of a table, sorted by patient and exam identifier.

    Paths in the table begin at the table's folder and must stay inside it; absolute ones are taken as they are.
    An empty field, or `n/a`, is a missing value. Header names are read without case; unknown columns are left alone.

    Args:
        path: A .csv (comma) or .tsv (tab) file in UTF-8.
        label_map: Label 1 or 0 of every word in the label column.

    Raises:
        ConfigError: All faults at once, if any is in the table itself.
        DataError: All faults at once, if the table is sound and files that it names are not there.
    """
    header, rows = _header_and_rows(path)
    faults = _Faults()
    exams = []
    for number, values in rows:
        if len(values) != len(header):
            faults.written.append(
                f"row {number}: has {len(values)} fields, expected {len(header)} as in the header; "
                "put quotes around a field that holds the separator"
            )
            continue
        fields = {
            name: "" if value.strip().lower() in _EMPTY else value.strip()
            for name, value in zip(header, values, strict=True)
        }
        exam = _exam(number, fields, label_map, path.parent, faults)
        if exam is not None:
            exams.append(exam)
    if not rows:
        faults.written.append("holds a header and no rows; add one row per exam")
    _check_across_rows(exams, faults, named_splits="split" in header)
    faults.raise_if_any(path)
    return tuple(sorted(exams, key=lambda exam: (exam.patient_id, exam.exam_id)))


def _header_and_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); check data.table") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8, which spreadsheets call 'CSV UTF-8'"
        ) from None
    if "\x00" in text:
        raise ConfigError(f"{path}: is not a text table (it holds zero bytes); export it as CSV UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=TABLE_SEPARATORS[path.suffix.lower()], strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ConfigError(
            f"{path}: line {reader.line_num} cannot be read ({error}); mend the quotes of this line"
        ) from None
    lines = [(number, row) for number, row in lines if any(value.strip() for value in row)]
    if not lines:
        raise ConfigError(f"{path}: is empty; write a header line and one row per exam (see docs/site.md)")
    header = [name.strip().lower() for name in lines[0][1]]
    faults = _faults_of_header(header)
    if faults:
        raise ConfigError(list_of_faults(str(path), faults))
    return header, lines[1:]


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
    given = [name for name in _POINT if name in header]
    if given and len(given) < len(_POINT):
        lacking = [name for name in _POINT if name not in header]
        faults.append(f"columns {', '.join(given)} need {' and '.join(lacking)} beside them")
    return faults


def _exam(
    number: int, fields: Mapping[str, str], label_map: Mapping[str, int], folder: Path, faults: _Faults
) -> Exam | None:
    """The exam of one row, or None with its faults noted."""
    known = len(faults.written)
    where = f"row {number}"
    patient_id = fields["patient_id"]
    if not patient_id:
        faults.written.append(f"{where}: patient_id is empty; every exam needs one")
    else:
        where += f" (patient {patient_id})"
    label = _label(where, fields["label"], label_map, faults)
    split = _split(where, fields["split"], faults) if "split" in fields else None
    point = _point(where, [fields.get(name, "") for name in _POINT], faults)
    volumes = {
        sequence: file
        for sequence in SEQUENCES
        if (file := _file(where, sequence, fields.get(sequence, ""), folder, faults)) is not None
    }
    mask = _file(where, "lesion_mask", fields.get("lesion_mask", ""), folder, faults)
    if not any(fields.get(sequence) for sequence in SEQUENCES):
        faults.written.append(f"{where}: names no volume at all; fill in t1, t2 or t1ce or delete the row")
    paths = list(volumes.values())
    if len(set(paths)) < len(paths):
        faults.written.append(f"{where}: names one file for two sequences; each sequence is a file of its own")
    if len(faults.written) > known or label is None:
        return None
    return Exam(number, patient_id, fields.get("exam_id", ""), label, split, volumes, point, mask)


def _label(where: str, word: str, label_map: Mapping[str, int], faults: _Faults) -> Label | None:
    if word in label_map:
        return 1 if label_map[word] else 0
    found = "is empty" if not word else f"is {word!r}, which label_map does not hold"
    faults.written.append(
        f"{where}: label {found}; expected one of {', '.join(label_map)}. Map the word if it means necrosis or "
        "recurrence, else delete the row"
    )
    return None


def _split(where: str, word: str, faults: _Faults) -> Split | None:
    for split in SPLITS:
        if word == split:
            return split
    found = "empty" if not word else repr(word)
    faults.written.append(
        f"{where}: split is {found}; write train, validation or test in every row, or delete the column to have "
        "the patients split for you"
    )
    return None


def _point(where: str, values: list[str], faults: _Faults) -> tuple[float, float, float] | None:
    if not any(values):
        return None
    if not all(values):
        lacking = [name for name, value in zip(_POINT, values, strict=True) if not value]
        faults.written.append(f"{where}: {' and '.join(lacking)} is empty; give all three coordinates or none")
        return None
    numbers = []
    for name, value in zip(_POINT, values, strict=True):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            faults.written.append(
                f"{where}: {name} is {value!r}, expected a number of millimetres with a decimal point (world, RAS)"
            )
        numbers.append(number)
    return numbers[0], numbers[1], numbers[2]


def _file(where: str, column: str, value: str, folder: Path, faults: _Faults) -> Path | None:
    if not value:
        return None
    path = Path(value)
    if not value.lower().endswith(VOLUME_SUFFIXES):
        faults.written.append(f"{where}: {column} is {value!r}, expected a NIfTI file, .nii or .nii.gz")
        return None
    if not path.is_absolute():
        path = folder / path
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            faults.written.append(
                f"{where}: {column} is {value!r}, which leads out of the table's folder (by '..' or a link); "
                "move the file into the folder or write its absolute path"
            )
            return None
    fault = fault_of_file(path)
    if fault is not None:
        faults.files.append(
            f"{where}: {column}: {path} {fault}; correct the path, or leave the field empty if the sequence "
            "was not taken"
        )
        return None
    return path


def _check_across_rows(exams: list[Exam], faults: _Faults, *, named_splits: bool) -> None:
    first: dict[str, Exam] = {}
    rows: dict[tuple[str, str], int] = {}
    files: dict[Path, Exam] = {}
    for exam in sorted(exams, key=lambda exam: exam.row):
        earlier = first.setdefault(exam.patient_id, exam)
        same = rows.setdefault((exam.patient_id, exam.exam_id), exam.row)
        if same != exam.row:
            faults.written.append(
                f"{exam.name}: stands in row {same} already; delete one, or add a column exam_id if these are two "
                "exams of the patient"
            )
        if exam.label != earlier.label:
            faults.written.append(
                f"{exam.name}: has another label than row {earlier.row} of the same patient; a patient has one label"
            )
        if named_splits and exam.split != earlier.split:
            faults.written.append(
                f"{exam.name}: is in {exam.split}, row {earlier.row} of the same patient in {earlier.split}; "
                "all exams of a patient belong in one split"
            )
        for file in exam.volumes.values():
            owner = files.setdefault(file, exam)
            if owner is not exam:
                faults.written.append(f"{exam.name}: names a volume of {owner.name}; each exam has files of its own")
