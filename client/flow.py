"""The flow of a cohort: exams that were screened, excluded and why, and included (STARD 2015, item 19)."""

from collections.abc import Sequence
from dataclasses import dataclass

from client.exam import Exam, Exclusion


@dataclass(frozen=True)
class Stage:
    """How many are in one box of the flow.

    Attributes:
        patients: Patients.
        exams: Their exams.
    """

    patients: int
    exams: int


@dataclass(frozen=True)
class Flow:
    """What became of the exams that a source lists. It stays at the site.

    Attributes:
        screened: All exams of the source.
        excluded: By reason, in the order of the reasons. A patient counts here if none of the exams is left, under the
            reason of the first, so that patients and exams both add up: screened = included + all excluded.
        included: The cohort.
    """

    screened: Stage
    excluded: tuple[tuple[str, Stage], ...]
    included: Stage


def flow_of(exams: Sequence[Exam], excluded: Sequence[Exclusion]) -> Flow:
    """Count a cohort's exams and those that rules of eligibility excluded."""
    left = {exam.patient_id for exam in exams}
    reason_of_patient: dict[str, str] = {}
    for exclusion in excluded:
        if exclusion.patient_id not in left:
            reason_of_patient.setdefault(exclusion.patient_id, exclusion.reason)
    reasons = list(reason_of_patient.values())
    boxes = {
        reason: Stage(reasons.count(reason), sum(exclusion.reason == reason for exclusion in excluded))
        for reason in sorted({exclusion.reason for exclusion in excluded})
    }
    return Flow(
        screened=Stage(len(left) + len(reasons), len(exams) + len(excluded)),
        excluded=tuple(boxes.items()),
        included=Stage(len(left), len(exams)),
    )
