"""The file of a site's own in which each DICOM series is named T1, T2, contrast-enhanced T1 or nothing.

It also says which patient and exam became which number, and so holds identifiers: it is for its owner alone, and lies
beside the converted exams, not among them.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from client.exam import SEQUENCES, shortened
from client.private_files import write_atomically
from client.sources.dicom_series import Proposal, Series, by_exam, propose_for_exam
from client.table import table_rows
from common.errors import ConfigError, list_of_faults


@dataclass(frozen=True)
class Choice:
    """One line of the file. All but `sequence` is there to help to decide.

    Attributes:
        sub: Number of the patient.
        ses: Number of the exam.
        sequence: `t1`, `t2`, `t1ce`, or empty.
        why: Why the program proposed it.
        number: Of the series on the scanner.
        description: Of the series.
        tr_ms: Repetition time.
        te_ms: Echo time.
        ti_ms: Inversion time.
        agent: Contrast agent.
        images: Images of the series.
        patient_id: As in the files.
        study_time: As in the files.
        study_uid: As in the files.
        series_uid: As in the files.
    """

    sub: str
    ses: str
    sequence: str
    why: str
    number: str
    description: str
    tr_ms: str
    te_ms: str
    ti_ms: str
    agent: str
    images: str
    patient_id: str
    study_time: str
    study_uid: str
    series_uid: str


COLUMNS = tuple(field.name for field in fields(Choice))


def choices_for(series: Sequence[Series], known: Sequence[Choice]) -> tuple[Choice, ...]:
    """A line for each series: as it stands in the file where it does, else as proposed.

    Numbers once given stay. Patients get theirs in the order of a hash, so that the number tells nothing of them, and
    exams theirs in the order of their times. A new series of an exam that the file knows is proposed for nothing.
    """
    line_of = {choice.series_uid: choice for choice in known}
    sub_of = {choice.patient_id: choice.sub for choice in known}
    ses_of = {(choice.patient_id, choice.study_uid): choice.ses for choice in known}
    for patient_id in sorted({one.patient_id for one in series} - sub_of.keys(), key=_hashed):
        sub_of[patient_id] = _next(sub_of.values(), width=3)
    choices = []
    for (patient_id, study_uid), exam in by_exam(series).items():
        exam_is_known = (patient_id, study_uid) in ses_of
        if not exam_is_known:
            taken = [ses for (patient, _), ses in ses_of.items() if patient == patient_id]
            ses_of[patient_id, study_uid] = _next(taken, width=2)
        proposals = propose_for_exam(exam)
        for one in exam:
            proposal = Proposal(None, "new since this exam was chosen") if exam_is_known else proposals[one.uid]
            new = _line(one, sub_of[patient_id], ses_of[patient_id, study_uid], proposal)
            choices.append(line_of.get(one.uid, new))
    return tuple(sorted(choices, key=lambda choice: (choice.sub, choice.ses, choice.series_uid)))


def read_choices(path: Path) -> tuple[Choice, ...]:
    """The lines of the file as somebody may have edited them; none if there is no file yet.

    Raises:
        ConfigError: All faults at once, each with its row.
    """
    if not path.exists():
        return ()
    header, rows = table_rows(path)
    if sorted(header) != sorted(COLUMNS):
        raise ConfigError(
            f"{path}: expected the columns {', '.join(COLUMNS)}; found {', '.join(header)[:200]}. Edit the column "
            "sequence alone, or delete the file to have it proposed again"
        )
    faults, choices = [], []
    for number, values in rows:
        if len(values) != len(header):
            faults.append(f"row {number}: has {len(values)} fields, expected {len(header)} as in the header")
            continue
        choice = Choice(**{name: value.strip() for name, value in zip(header, values, strict=True)})
        if choice.sequence not in ("", *SEQUENCES):
            faults.append(f"row {number}: sequence is {choice.sequence!r}, expected t1, t2, t1ce or nothing")
        if not re.fullmatch(r"[0-9]{1,9}", choice.sub) or not re.fullmatch(r"[0-9]{1,9}", choice.ses):
            faults.append(f"row {number}: sub or ses is no number; put back what stood there")
        choices.append((number, choice))
    if not rows:
        faults.append("holds a header and no rows; put them back, or delete the file to have all proposed again")
    faults += _contradictions(choices)
    if faults:
        raise ConfigError(list_of_faults(str(path), shortened(faults)))
    return tuple(choice for _, choice in choices)


def write_choices(path: Path, choices: Sequence[Choice]) -> None:
    """Write the file for its owner alone."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(choice, name) for name in COLUMNS] for choice in choices)
    write_atomically(path, text.getvalue().encode("utf-8", "replace"))


def _contradictions(choices: Sequence[tuple[int, Choice]]) -> list[str]:
    faults = []
    first: dict[tuple[str, str, str], int] = {}
    owners: dict[tuple[str, ...], tuple[str, ...]] = {}
    for number, choice in choices:
        if choice.sequence:
            place = (choice.sub, choice.ses, choice.sequence)
            row = first.setdefault(place, number)
            if row != number:
                faults.append(f"row {number}: {choice.sequence} of this exam is chosen in row {row} already; empty one")
        patient, exam = (choice.patient_id,), (choice.patient_id, choice.study_uid)
        pairs: Mapping[tuple[str, ...], tuple[str, ...]] = {
            ("sub", choice.sub): patient,
            ("of", *patient): (choice.sub,),
            ("ses", choice.sub, choice.ses): exam,
            ("of", *exam): (choice.sub, choice.ses),
            ("series", choice.series_uid): (str(number),),
        }
        if any(owners.setdefault(key, owner) != owner for key, owner in pairs.items()):
            faults.append(f"row {number}: sub, ses or the series contradicts another row; put back what stood there")
    return faults


def _line(series: Series, sub: str, ses: str, proposal: Proposal) -> Choice:
    def shown(number: float | None) -> str:
        return "" if number is None else f"{number:g}"

    return Choice(
        sub=sub,
        ses=ses,
        sequence=proposal.sequence or "",
        why=proposal.why,
        number=str(series.number),
        description=series.description,
        tr_ms=shown(series.tr_ms),
        te_ms=shown(series.te_ms),
        ti_ms=shown(series.ti_ms),
        agent=series.agent,
        images=str(series.num_images),
        patient_id=series.patient_id,
        study_time=series.study_time,
        study_uid=series.study_uid,
        series_uid=series.uid,
    )


def _next(taken: Iterable[str], *, width: int) -> str:
    numbers = [int(number) for number in taken]
    return f"{max(numbers, default=0) + 1:0{width}d}"


def _hashed(patient_id: str) -> bytes:
    return hashlib.sha256(patient_id.encode("utf-8", "replace")).digest()
