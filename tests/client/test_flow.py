"""The flow of a cohort: patients and exams add up, whatever is excluded."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from client.exam import Exam, Exclusion
from client.flow import Stage, flow_of

people = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(("", "mixed", "no reference"))), max_size=30)


def exam(patient: str, number: int) -> Exam:
    return Exam(number, patient, str(number), 0, None, {"t1": Path(f"{number}.nii")})


def test_a_patient_is_excluded_where_no_exam_is_left() -> None:
    flow = flow_of([exam("a", 1)], [Exclusion("a", "2", "mixed"), Exclusion("b", "1", "mixed")])

    assert flow.screened == Stage(2, 3)
    assert flow.excluded == (("mixed", Stage(1, 2)),)
    assert flow.included == Stage(1, 1)


@given(people)
def test_boxes_add_up_to_what_was_screened(rows: list[tuple[str, str]]) -> None:
    exams = [exam(patient, number) for number, (patient, reason) in enumerate(rows) if not reason]
    excluded = [Exclusion(patient, str(n), reason) for n, (patient, reason) in enumerate(rows) if reason]

    flow = flow_of(exams, excluded)

    boxes = [stage for _, stage in flow.excluded] + [flow.included]
    assert flow.screened == Stage(len({patient for patient, _ in rows}), len(rows))
    assert sum(stage.patients for stage in boxes) == flow.screened.patients
    assert sum(stage.exams for stage in boxes) == flow.screened.exams
