"""Write a cohort as a BIDS derivative or as a datalist; whatever it was read from stays as it is.

The images of a derivative are copies with fresh headers. Hard links would take no room, but carry along what converters
write into headers, and whoever changed one later would change the hospital's own file.
"""

import csv
import io
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from client.cohort import Cohort
from client.exam import POINT, SEQUENCES, Exam
from client.fresh_header import with_fresh_header
from client.private_files import make_private_folder, write_atomically
from client.sources.bids import EXAM_COLUMN, MASKS, PATIENT_COLUMN
from client.sources.sidecar import sidecar_of
from client.traits import AGE, MONTHS, SEX
from common.errors import ConfigError, DataError, list_of_faults
from common.study import CLASS_NAMES, Sequence

DESC = "cohort"
"""The `desc` of what is written, by which `data.desc` asks for it."""
LEVELS = dict(zip(CLASS_NAMES, ("glioma recurrence", "radiation necrosis"), strict=True))
_ENTITIES: Mapping[Sequence, tuple[str, str]] = {
    "t1": ("", "T1w"),
    "t2": ("", "T2w"),
    "t1ce": ("ce-gadolinium_", "T1w"),
}
_COLUMNS = {
    "participant_id": {"Description": "label of the patient's folder"},
    PATIENT_COLUMN: {"Description": "identifier of the patient in the hospital's own source"},
    "label": {"Description": "reference standard", "Levels": LEVELS},
    "split": {"Description": "part of the cohort", "Levels": {"train": "", "validation": "", "test": ""}},
}
_TRAITS = {
    AGE: {"Description": "age at the exam", "Units": "years"},
    SEX: {"Description": "sex", "Levels": {"F": "female", "M": "male", "O": "other"}},
    MONTHS: {"Description": "time from the end of radiotherapy to the exam", "Units": "months"},
}
"""What statistics of the cohort count; a column for each that the source says of any exam."""
_LISTS = {"train": "training", "validation": "validation", "test": "test"}


def write_bids(cohort: Cohort, folder: Path) -> int:
    """Write the exams of a cohort as a BIDS derivative; participants.tsv comes last, when all is there.

    Returns:
        The number of images.

    Raises:
        ConfigError: The folder exists and is not empty, or cannot be written.
        DataError: All images at once that are damaged; the others are written.
    """
    require_new(folder)
    make_private_folder(folder)
    description = {
        "Name": f"Cohort of {cohort.site}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "gliorn", "Version": version("gliorn")}],
    }
    _write_json(folder / "dataset_description.json", description)
    subjects = bids_labels([exam.patient_id for exam in cohort.exams], prefix="sub-")
    traits = [name for name in _TRAITS if any(_trait(exam, name) != "n/a" for exam in cohort.exams)]
    faults: list[str] = []
    num_images = 0
    participants = []
    for patient_id, subject in subjects.items():
        exams = [exam for exam in cohort.exams if exam.patient_id == patient_id]
        alone = len(exams) == 1 and not exams[0].exam_id
        sessions = {"": ""} if alone else bids_labels([exam.exam_id for exam in exams], prefix="ses-")
        for exam in exams:
            num_images += _write_exam(exam, folder, subject, sessions[exam.exam_id], faults)
        row = [f"sub-{subject}", patient_id, CLASS_NAMES[exams[0].label]]
        if cohort.split_source == "table":
            row.append(cohort.split_of[patient_id])
        known = _known_of(exams[0], traits) if alone else ["n/a"] * len([*POINT, *traits])
        participants.append([*row, *known])
        if not alone:
            rows = [
                [f"ses-{sessions[exam.exam_id]}", exam.exam_id or "n/a", *_known_of(exam, traits)] for exam in exams
            ]
            header = ["session_id", EXAM_COLUMN, *POINT, *traits]
            _write_tsv(folder / f"sub-{subject}/sub-{subject}_sessions.tsv", header, rows)
    if faults:
        raise DataError(list_of_faults(str(folder), faults))
    columns = [name for name in _COLUMNS if name != "split" or cohort.split_source == "table"]
    points = {name: {"Description": "centre of the lesion in the world (RAS)", "Units": "mm"} for name in POINT}
    described = {name: _COLUMNS[name] for name in columns} | points | {name: _TRAITS[name] for name in traits}
    _write_json(folder / "participants.json", described)
    _write_tsv(folder / "participants.tsv", [*columns, *POINT, *traits], participants)
    return num_images


def write_datalist(cohort: Cohort, path: Path, sequences: tuple[Sequence, ...] = SEQUENCES) -> None:
    """Write the exams of a cohort as a datalist that names the files where they lie.

    `image` is a list in the order of `modality` if no exam lacks a sequence, else an object by sequence, since MONAI
    reads no null. Labels are 1 (necrosis) and 0 (recurrence). Paths below the datalist's folder are relative to it.

    Raises:
        ConfigError: The file exists or cannot be written.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already; name another file, or delete it")
    home = path.resolve().parent
    make_private_folder(home)
    complete = all(set(sequences) <= set(exam.volumes) for exam in cohort.exams)
    document: dict[str, object] = {"name": cohort.site, "labels": {"0": CLASS_NAMES[0], "1": CLASS_NAMES[1]}}
    named = cohort.split_source == "table"
    lists: dict[str, list[object]] = {name: [] for name in _LISTS.values()} if named else {}
    for exam in cohort.exams:
        split = cohort.split_of[exam.patient_id] if named else "train"
        lists.setdefault(_LISTS[split], []).append(_entry(exam, home, sequences, as_list=complete))
    if complete:
        document["modality"] = {str(place): sequence for place, sequence in enumerate(sequences)}
    _write_json(path, document | lists)


def require_new(folder: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        ConfigError: It is a file, or it is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already and not empty; name a new folder")


def bids_labels(identifiers: list[str], *, prefix: str) -> dict[str, str]:
    """A label of letters and digits for each identifier, by identifier: itself where that can be, else a number."""
    distinct = list(dict.fromkeys(identifiers))
    plain = {name: re.sub(r"[^A-Za-z0-9]", "", name.removeprefix(prefix)) for name in distinct}
    folded = [label.lower() for label in plain.values()]
    if all(folded) and len(set(folded)) == len(folded):  # also apart on disks that know no letter case
        return plain
    width = max(3, len(str(len(distinct))))
    return {name: f"{number:0{width}d}" for number, name in enumerate(distinct, start=1)}


def _write_exam(exam: Exam, folder: Path, subject: str, session: str, faults: list[str]) -> int:
    home = folder / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    make_private_folder(home)
    stem = f"sub-{subject}_ses-{session}" if session else f"sub-{subject}"
    files = [
        (sequence, path, f"{stem}_{_ENTITIES[sequence][0]}desc-{DESC}_{_ENTITIES[sequence][1]}")
        for sequence, path in exam.volumes.items()
    ]
    num_written = 0
    for sequence, path, name in files:
        try:
            write_atomically(
                home / f"{name}.nii.gz", with_fresh_header(path.read_bytes(), name=f"{exam.name}: {sequence}")
            )
        except DataError as error:
            faults.append(str(error))
            continue
        num_written += 1
        sidecar = sidecar_of(path)
        if sidecar:
            _write_json(home / f"{name}.json", sidecar)
    for role, path in masks_of(exam).items():
        try:
            mask = with_fresh_header(path.read_bytes(), name=f"{exam.name}: {role}")
            write_atomically(home / f"{stem}_{MASKS[role]}_mask.nii.gz", mask)
        except DataError as error:
            faults.append(str(error))
    return num_written


def _point(exam: Exam) -> list[str]:
    return ["n/a"] * 3 if exam.lesion_point is None else [repr(number) for number in exam.lesion_point]


def _known_of(exam: Exam, traits: list[str]) -> list[str]:
    """What is known of an exam beside its label: the lesion's point, and the traits."""
    return [*_point(exam), *(_trait(exam, name) for name in traits)]


def _trait(exam: Exam, name: str) -> str:
    values = {
        AGE: exam.traits.age_years,
        SEX: None if exam.traits.sex is None else exam.traits.sex[0].upper(),
        MONTHS: exam.traits.months_since_radiotherapy,
    }
    value = values[name]
    return "n/a" if value is None else value if isinstance(value, str) else f"{value:.12g}"


def _entry(exam: Exam, home: Path, sequences: tuple[Sequence, ...], *, as_list: bool) -> dict[str, object]:
    files = {name: _named(exam.volumes[name], home) for name in SEQUENCES if name in exam.volumes}
    entry: dict[str, object] = {
        "patient_id": exam.patient_id,
        "image": [files[name] for name in sequences] if as_list else files,
        "label": exam.label,
    }
    if exam.exam_id:
        entry["exam_id"] = exam.exam_id
    if exam.lesion_point is not None:
        entry |= dict(zip(POINT, exam.lesion_point, strict=True))
    return entry | {role: _named(path, home) for role, path in masks_of(exam).items()}


def masks_of(exam: Exam) -> dict[str, Path]:
    """The masks that an exam has, by column."""
    masks = {"lesion_mask": exam.lesion_mask, "brain_mask": exam.brain_mask}
    return {role: path for role, path in masks.items() if path is not None}


def _named(file: Path, home: Path) -> str:
    absolute = file.resolve()
    return str(absolute.relative_to(home)) if absolute.is_relative_to(home) else str(absolute)


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _write_tsv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())
