"""An exam, and everything that can be wrong with what a source says of it."""

import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.config import EligibilityRule, fault_of_file
from client.traits import UNKNOWN, Traits, traits_of
from common.errors import ConfigError, DataError, list_of_faults
from common.study import Label
from common.study import Sequence as MriSequence

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SEQUENCES: tuple[MriSequence, ...] = ("t1", "t2", "t1ce")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
MAX_FAULTS_SHOWN = 20

POINT = ("lesion_x", "lesion_y", "lesion_z")
_MISSING = ("", "n/a")


@dataclass(frozen=True)
class Exam:
    """One visit of one patient: where its volumes lie and what is known of it.

    Attributes:
        row: Number of the exam in its source, for each another. In a table its line; the header is line 1.
        patient_id: As written, leading zeros kept. Never leaves the site.
        exam_id: Tells several exams of a patient apart; "" where the source names none.
        label: 1 necrosis, 0 recurrence.
        split: As the source names it; None where it names none.
        volumes: The file of every sequence that this exam has.
        lesion_point: Centre of the lesion, world mm in RAS.
        lesion_mask: File whose non-zero voxels are the lesion.
        where: How a person finds the exam in its source, such as `sub-01/ses-01`; "" in a table, where it is the row.
        brain_mask: File whose non-zero voxels are the brain, in the world of T1ce.
        traits: What the source says of the patient at this exam; only counted, for statistics of the cohort.
    """

    row: int
    patient_id: str
    exam_id: str
    label: Label
    split: Split | None
    volumes: Mapping[MriSequence, Path]
    lesion_point: tuple[float, float, float] | None = None
    lesion_mask: Path | None = None
    where: str = ""
    brain_mask: Path | None = None
    traits: Traits = UNKNOWN

    @property
    def name(self) -> str:
        """How this exam is named to a person at the site; not for logs."""
        exam = f", exam {self.exam_id}" if self.exam_id else ""
        return f"{self.place} (patient {self.patient_id}{exam})"

    @property
    def place(self) -> str:
        """Where the source speaks of it."""
        return self.where or f"row {self.row}"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the exam in a fixed order."""
        masks = tuple(mask for mask in (self.lesion_mask, self.brain_mask) if mask is not None)
        return tuple(self.volumes[sequence] for sequence in SEQUENCES if sequence in self.volumes) + masks


@dataclass(frozen=True)
class Record:
    """What a source says of one exam, before any of it is believed.

    Attributes:
        row: Number of the exam in its source, for each another.
        where: How a person finds it, such as `row 2`.
        fields: Text by column: `patient_id`, `label`, `exam_id`, `split`, a path for each sequence, ...; "" is missing.
        folder: Where relative paths begin, and which they do not leave.
    """

    row: int
    where: str
    fields: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Exclusion:
    """An exam that a rule of the site's eligibility keeps out.

    Attributes:
        patient_id: As written.
        exam_id: As written.
        reason: The rule's.
    """

    patient_id: str
    exam_id: str
    reason: str


@dataclass
class Faults:
    """What is wrong with a source as written, and with the files that it names."""

    written: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def raise_if_any(self, origin: Path) -> None:
        """Tell all at once.

        Raises:
            ConfigError: If any fault is in the source itself.
            DataError: If the source is sound and the files that it names are not.
        """
        faults = self.written + self.files
        if faults:
            kind = ConfigError if self.written else DataError
            raise kind(list_of_faults(str(origin), shortened(faults)))


@dataclass(frozen=True)
class Source:
    """All that a source says.

    Attributes:
        kind: What the records are in the words of its owner, such as `the table`.
        records: One for each exam, also for those that will be excluded.
        columns: The names that stand in the fields of any record.
        named_splits: Whether every exam must be in a split because the source names some.
    """

    kind: str
    records: tuple[Record, ...]
    columns: frozenset[str]
    named_splits: bool


def shortened(faults: list[str]) -> list[str]:
    """The first faults of a long list and how many more there are."""
    hidden = len(faults) - MAX_FAULTS_SHOWN
    return faults if hidden <= 0 else [*faults[:MAX_FAULTS_SHOWN], f"... and {hidden} more"]


def given(value: str) -> str:
    """A field without the spaces around it; "" if it is empty or says `n/a`."""
    value = value.strip()
    return "" if value.lower() in _MISSING else value


def exams_of(
    source: Source, label_map: Mapping[str, int], eligibility: Sequence[EligibilityRule], faults: Faults
) -> tuple[tuple[Exam, ...], tuple[Exclusion, ...]]:
    """The exams of a source, sorted by patient and exam identifier, and those that are not eligible.

    Args:
        source: What is to be believed.
        label_map: Label 1 or 0 of every word in the label column.
        eligibility: The rules of the site; the first that fits an exam gives its reason.
        faults: Takes all that is wrong. An exam with a fault is left out.
    """
    for rule in eligibility:
        if rule.column not in source.columns and source.records:
            faults.written.append(
                f"eligibility names the column {rule.column!r}, which {source.kind} does not have; found: "
                f"{', '.join(sorted(source.columns))[:200]}"
            )
    exams, whole, excluded = [], [], []
    for record in source.records:
        fitting = next((rule for rule in eligibility if _excludes(rule, record)), None)
        if fitting is not None and record.fields.get("patient_id"):
            patient_id, exam_id = record.fields["patient_id"], record.fields.get("exam_id", "")
            excluded.append(Exclusion(patient_id, exam_id, fitting.reason))
            continue
        num_files = len(faults.files)
        exam = _exam(record, label_map, faults, named_splits=source.named_splits)
        if exam is not None:
            exams.append(exam)
            if len(faults.files) == num_files:
                whole.append(exam)
    _check_across_exams(exams, faults, named_splits=source.named_splits)
    in_order = tuple(sorted(whole, key=lambda exam: (exam.patient_id, exam.exam_id)))
    return in_order, tuple(sorted(excluded, key=lambda one: (one.patient_id, one.exam_id)))


def _excludes(rule: EligibilityRule, record: Record) -> bool:
    return rule.column in record.fields and record.fields[rule.column] in {given(word) for word in rule.exclude}


def _exam(record: Record, label_map: Mapping[str, int], faults: Faults, *, named_splits: bool) -> Exam | None:
    """The exam of one record, without files that are not there, or None; its faults are noted."""
    known = len(faults.written)
    fields, where = record.fields, record.where
    patient_id = fields.get("patient_id", "")
    if not patient_id:
        faults.written.append(f"{where}: patient_id is empty; every exam needs one")
    else:
        where += f" (patient {patient_id})"
    label = _label(where, fields.get("label", ""), label_map, faults)
    split = _split(where, fields.get("split", ""), faults) if named_splits else None
    point = _point(where, [fields.get(name, "") for name in POINT], faults)
    volumes = {
        sequence: file
        for sequence in SEQUENCES
        if (file := _file(where, sequence, fields.get(sequence, ""), record.folder, faults)) is not None
    }
    mask, brain = (
        _file(where, name, fields.get(name, ""), record.folder, faults) for name in ("lesion_mask", "brain_mask")
    )
    if not any(fields.get(sequence) for sequence in SEQUENCES):
        faults.written.append(f"{where}: names no volume at all; fill in t1, t2 or t1ce or delete the row")
    paths = list(volumes.values())
    if len(set(paths)) < len(paths):
        faults.written.append(f"{where}: names one file for two sequences; each sequence is a file of its own")
    if len(faults.written) > known or label is None:
        return None
    place = "" if record.where == f"row {record.row}" else record.where
    return Exam(
        record.row,
        patient_id,
        fields.get("exam_id", ""),
        label,
        split,
        volumes,
        point,
        mask,
        place,
        brain,
        traits_of(fields),
    )


def _label(where: str, word: str, label_map: Mapping[str, int], faults: Faults) -> Label | None:
    if word in label_map:
        return 1 if label_map[word] else 0
    found = "is empty" if not word else f"is {word!r}, which label_map does not hold"
    faults.written.append(
        f"{where}: label {found}; expected one of {', '.join(label_map)}. Map the word if it means necrosis or "
        "recurrence, else delete the row"
    )
    return None


def _split(where: str, word: str, faults: Faults) -> Split | None:
    for split in SPLITS:
        if word == split:
            return split
    found = "empty" if not word else repr(word)
    faults.written.append(
        f"{where}: split is {found}; write train, validation or test in every row, or delete the column to have "
        "the patients split for you"
    )
    return None


def _point(where: str, values: list[str], faults: Faults) -> tuple[float, float, float] | None:
    if not any(values):
        return None
    if not all(values):
        lacking = [name for name, value in zip(POINT, values, strict=True) if not value]
        faults.written.append(f"{where}: {' and '.join(lacking)} is empty; give all three coordinates or none")
        return None
    numbers = []
    for name, value in zip(POINT, values, strict=True):
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


def _file(where: str, column: str, value: str, folder: Path, faults: Faults) -> Path | None:
    if not value:
        return None
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        faults.written.append(f"{where}: {column} is {value!r}, expected a path without control characters")
        return None
    path = Path(value)
    if not value.lower().endswith(VOLUME_SUFFIXES):
        faults.written.append(f"{where}: {column} is {value!r}, expected a NIfTI file, .nii or .nii.gz")
        return None
    if not path.is_absolute():
        path = folder / path
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            faults.written.append(
                f"{where}: {column} is {value!r}, which leads out of the source's folder (by '..' or a link); "
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


def _check_across_exams(exams: list[Exam], faults: Faults, *, named_splits: bool) -> None:
    first: dict[str, Exam] = {}
    seen: dict[tuple[str, str], Exam] = {}
    files: dict[Path, Exam] = {}
    for exam in sorted(exams, key=lambda exam: exam.row):
        earlier = first.setdefault(exam.patient_id, exam)
        same = seen.setdefault((exam.patient_id, exam.exam_id), exam)
        if same is not exam:
            faults.written.append(
                f"{exam.name}: stands in {same.place} already; delete one, or add a column exam_id if these are two "
                "exams of the patient"
            )
        if exam.label != earlier.label:
            faults.written.append(
                f"{exam.name}: has another label than {earlier.place} of the same patient; a patient has one label"
            )
        if named_splits and exam.split != earlier.split:
            faults.written.append(
                f"{exam.name}: is in {exam.split}, {earlier.place} of the same patient in {earlier.split}; "
                "all exams of a patient belong in one split"
            )
        for file in exam.volumes.values():
            owner = files.setdefault(file, exam)
            if owner is not exam:
                faults.written.append(f"{exam.name}: names a volume of {owner.name}; each exam has files of its own")
