"""What a hospital lists, read without refusing anything: the rows as they are written, and what is wrong with them."""

import math
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.config import SiteConfig, fault_of_file
from client.exam import POINT, SEQUENCES, VOLUME_SUFFIXES, Exam, given
from client.preflight.findings import Hit
from client.sources.reading import SourceReading, read_source
from client.table import table_rows
from common.study import Study

MASKS = ("lesion_mask", "brain_mask")
ROLES = (*SEQUENCES, *MASKS)
"""Columns that name a volume."""

_KNOWN = ("patient_id", "exam_id", "label", "split", *ROLES, *POINT)


@dataclass(frozen=True)
class Row:
    """One exam as it is listed.

    Attributes:
        number: Line in the table; the header is line 1. In other sources the number of the exam.
        where: How a person finds it, such as `row 2`.
        patient_id: As written.
        exam_id: As written, "" without one.
        label: The word in the label column.
        split: The word in the split column; None without such a column.
        written: What stands in the columns t1, t2, t1ce and of masks, where something does.
        files: The files among them that are there.
        point: Centre of the lesion, world mm in RAS.
    """

    number: int
    where: str
    patient_id: str
    exam_id: str
    label: str
    split: str | None
    written: Mapping[str, str]
    files: Mapping[str, Path]
    point: tuple[float, float, float] | None = None

    @property
    def name(self) -> str:
        """How this exam is named to a person at the site; not for logs."""
        exam = f", exam {self.exam_id}" if self.exam_id else ""
        return f"{self.where} (patient {self.patient_id}{exam})"


@dataclass(frozen=True)
class Listing:
    """All exams that a hospital lists.

    Attributes:
        rows: One an exam, in the table's order.
        folder: Where relative paths begin and where the files should be; None where a source has no folder.
        columns: The table's columns in lower case, in order; empty where the source is no table.
        cells: For each column that this program does not know, its values.
        hits: What is wrong with the writing.
    """

    rows: tuple[Row, ...]
    folder: Path | None
    columns: tuple[str, ...] = ()
    cells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hits: tuple[Hit, ...] = ()


def listing_of(config: SiteConfig, study: Study | None) -> tuple[Listing, SourceReading]:
    """What a site lists, and how a round would read it.

    A table is listed row by row, faults and all. From any other source come the exams that are sound as written, and
    what is said against the others.
    """
    reading = read_source(config, study)
    data = config.data
    folder = next((path for path in (data.bids, data.converted) if path is not None), data.path.parent)
    if reading.unreadable:
        return Listing((), folder, hits=(Hit("source-unreadable", "", reading.unreadable),)), reading
    if data.table is None:
        hits = tuple(Hit("source-refused", "", fault.text) for fault in reading.faults)
        return Listing(rows_of_exams(reading.exams, config.label_map, folder), folder, hits=hits), reading
    excluded = {(exclusion.patient_id, exclusion.exam_id) for exclusion in reading.excluded}
    header, lines = table_rows(data.table, sheet=data.sheet)
    return listing_of_table(data.table, header, lines, excluded=excluded), reading


def rows_of_exams(exams: Sequence[Exam], label_map: Mapping[str, int], folder: Path) -> tuple[Row, ...]:
    """Exams that were read already, from whatever source, as rows."""
    words = {label: word for word, label in reversed(tuple(label_map.items()))}
    rows = []
    for exam in exams:
        files: dict[str, Path] = {str(sequence): path for sequence, path in exam.volumes.items()}
        masks = {"lesion_mask": exam.lesion_mask, "brain_mask": exam.brain_mask}
        files |= {role: path for role, path in masks.items() if path is not None}
        rows.append(
            Row(
                number=exam.row,
                where=exam.place,
                patient_id=exam.patient_id,
                exam_id=exam.exam_id,
                label=words[exam.label],
                split=exam.split,
                written={role: _relative(path, folder) for role, path in files.items()},
                files=files,
                point=exam.lesion_point,
            )
        )
    return tuple(rows)


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def listing_of_table(
    path: Path,
    header: Sequence[str],
    lines: Sequence[tuple[int, list[str]]],
    *,
    excluded: Collection[tuple[str, str]] = (),
) -> Listing:
    """A table row by row; what is wrong with a row becomes a hit.

    Args:
        path: The table.
        header: Names of the columns in lower case.
        lines: Numbers and fields of the other lines (`client.table.table_rows`).
        excluded: Patient and exam identifiers of exams that are not eligible, and so not checked.
    """
    rows: list[Row] = []
    cells: dict[str, list[str]] = {name: [] for name in header if name not in _KNOWN}
    hits: list[Hit] = []
    for number, line in lines:
        if len(line) != len(header):
            found = f"has {len(line)} fields, the header {len(header)}"
            hits.append(Hit("row-incomplete", f"row {number}", found))
            continue
        fields = {name: given(value) for name, value in zip(header, line, strict=True)}
        if (fields["patient_id"], fields.get("exam_id", "")) in excluded:
            continue
        for name, values in cells.items():
            values.append(fields[name])
        row, own = _row(number, fields, path.parent)
        rows.append(row)
        hits += own
    return Listing(tuple(rows), path.parent, tuple(header), {k: tuple(v) for k, v in cells.items()}, tuple(hits))


def _row(number: int, fields: Mapping[str, str], folder: Path) -> tuple[Row, list[Hit]]:
    """One row, and what is wrong with its writing and its paths."""
    written = {role: fields[role] for role in ROLES if fields.get(role)}
    files: dict[str, Path] = {}
    found: list[tuple[str, str]] = []
    for role, value in written.items():
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            found.append(("row-incomplete", f"{role} is {value!r}, a path with control characters"))
            continue
        path = Path(value) if Path(value).is_absolute() else folder / value
        if not value.lower().endswith(VOLUME_SUFFIXES):
            found.append(("file-unreadable", f"{role} is {value!r}, expected a NIfTI file, .nii or .nii.gz"))
            continue
        fault = fault_of_file(path)
        if fault is not None:
            found.append(("file-absent", f"{role}: {path} {fault}"))
            continue
        if not Path(value).is_absolute() and not is_inside(path, folder):
            found.append(("link-outside", f"{role}: {value!r} leads out of {folder}"))
        files[role] = path
    if len(set(files.values())) < len(files):
        found.append(("file-shared", "names one file for two sequences"))
    if not fields["patient_id"]:
        found.append(("row-incomplete", "patient_id is empty"))
    if not any(role in written for role in SEQUENCES):
        found.append(("row-incomplete", "names no volume"))
    point, fault = _point([fields.get(name, "") for name in POINT])
    if fault:
        found.append(("row-incomplete", fault))
    split = fields.get("split") if "split" in fields else None
    row = Row(
        number,
        f"row {number}",
        fields["patient_id"],
        fields.get("exam_id", ""),
        fields["label"],
        split,
        written,
        files,
        point,
    )
    return row, [Hit(check, row.name, detail) for check, detail in found]


def _point(values: list[str]) -> tuple[tuple[float, float, float] | None, str]:
    if not any(values):
        return None, ""
    try:
        x, y, z = (float(value) for value in values)
    except ValueError:
        return None, f"the lesion's point is {values}, expected three numbers or none"
    if not all(math.isfinite(number) for number in (x, y, z)):
        return None, f"the lesion's point is {values}, expected three finite numbers"
    return (x, y, z), ""


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, links followed, lies in a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
