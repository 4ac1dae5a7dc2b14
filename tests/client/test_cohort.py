"""Splits by patient, class counts, and the digest that freezes a cohort without telling who is in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.cohort import Cohort, load_cohort, part_sizes, split_by_patient
from client.config import SiteConfig
from client.table import SPLITS, Exam
from common.errors import ConfigError, DataError
from common.study import Label, SplitSpec, Study

SPEC = SplitSpec()


class Hospital(Protocol):
    folder: Path

    def config(self) -> SiteConfig: ...
    def edit_table(self, old: str, new: str) -> None: ...


MakeHospital = Callable[[int], Hospital]


def exams_of(labels: dict[str, Label], visits: dict[str, int] | None = None) -> tuple[Exam, ...]:
    return tuple(
        Exam(2, patient, str(visit), label, None, {"t1": Path(f"{patient}_{visit}.nii")})
        for patient, label in sorted(labels.items())
        for visit in range((visits or {}).get(patient, 1))
    )


cohorts = st.dictionaries(
    st.text("abc0123456789", min_size=1, max_size=6), st.sampled_from((0, 1)), min_size=1, max_size=40
)


@given(cohorts, st.integers(0, 2**31 - 1), st.data())
def test_no_patient_is_on_two_sides_and_the_order_of_rows_is_nothing(
    labels: dict[str, Label], seed: int, data: st.DataObject
) -> None:
    visits = {patient: data.draw(st.integers(1, 3)) for patient in labels}
    exams = exams_of(labels, visits)
    shuffled = tuple(data.draw(st.permutations(exams)))

    cohort = split_by_patient(exams, SPEC, site="a", seed=seed)
    again = split_by_patient(shuffled, SPEC, site="a", seed=seed)

    assert cohort.split_of == again.split_of
    patients = [{exam.patient_id for exam in cohort.exams_of(split)} for split in SPLITS]
    assert sum(len(part) for part in patients) == len(labels)
    assert sum(len(cohort.exams_of(split)) for split in SPLITS) == len(exams)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 99))
def test_each_class_has_its_share_of_every_part(num_negative: int, num_positive: int, seed: int) -> None:
    labels: dict[str, Label] = dict.fromkeys((f"n{i}" for i in range(num_negative)), 0)
    labels.update(dict.fromkeys((f"p{i}" for i in range(num_positive)), 1))

    cohort = split_by_patient(exams_of(labels), SPEC, site="a", seed=seed)

    for place, split in enumerate(SPLITS):
        wanted = part_sizes(num_negative, SPEC)[place], part_sizes(num_positive, SPEC)[place]
        assert cohort.class_counts(split) == wanted


@given(st.integers(0, 500), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_parts_add_up_and_none_is_empty_from_three_patients_on(
    num_patients: int, validation: float, test: float
) -> None:
    sizes = part_sizes(num_patients, SplitSpec(validation=validation, test=test))

    assert sum(sizes) == num_patients
    assert min(sizes) >= (1 if num_patients >= 3 else 0)


@pytest.mark.parametrize(
    ("num_patients", "sizes"),
    [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (6, 2, 2)), (13, (7, 3, 3))],
)
def test_sizes_of_the_parts(num_patients: int, sizes: tuple[int, int, int]) -> None:
    assert part_sizes(num_patients, SPEC) == sizes


def test_another_seed_or_site_gives_another_split() -> None:
    exams = exams_of({f"{i:02d}": 0 for i in range(40)})

    splits = [
        split_by_patient(exams, SPEC, site=site, seed=seed).split_of for site, seed in [("a", 1), ("a", 2), ("b", 1)]
    ]

    assert splits[0] != splits[1]
    assert splits[0] != splits[2]


def folds_of(
    labels: dict[str, Label], num_folds: int, *, repeat: int = 0, seed: int = 1, site: str = "a"
) -> list[Cohort]:
    """The cohort of every fold."""
    specs = [SplitSpec(num_folds=num_folds, fold=fold, repeat=repeat) for fold in range(num_folds)]
    return [split_by_patient(exams_of(labels), spec, site=site, seed=seed) for spec in specs]


@settings(deadline=None)
@given(cohorts, st.integers(2, 20), st.integers(0, 1000), st.integers(0, 2**31 - 1))
def test_every_patient_is_in_the_test_of_exactly_one_fold(
    labels: dict[str, Label], num_folds: int, repeat: int, seed: int
) -> None:
    cohorts = folds_of(labels, num_folds, repeat=repeat, seed=seed)

    tested = [patient for cohort in cohorts for patient, split in cohort.split_of.items() if split == "test"]
    assert sorted(tested) == sorted(labels)
    assert all(cohort.split_of.keys() == labels.keys() for cohort in cohorts)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 20), st.integers(0, 99))
def test_folds_have_their_share_of_each_class_and_the_rest_its_share_of_validation(
    num_negative: int, num_positive: int, num_folds: int, seed: int
) -> None:
    labels: dict[str, Label] = dict.fromkeys((f"n{i}" for i in range(num_negative)), 0)
    labels.update(dict.fromkeys((f"p{i}" for i in range(num_positive)), 1))

    cohorts = folds_of(labels, num_folds, seed=seed)

    sizes = [cohort.num_patients("test") for cohort in cohorts]
    assert max(sizes) - min(sizes) <= 1
    for label, total in enumerate((num_negative, num_positive)):
        assert {cohort.class_counts("test")[label] for cohort in cohorts} <= {
            total // num_folds,
            -(-total // num_folds),
        }
        for cohort in cohorts:
            validation, rest = cohort.class_counts("validation")[label], total - cohort.class_counts("test")[label]
            assert validation == (max(1, int(rest * 0.2 + 0.5)) if rest > 1 else 0)


def test_folds_are_those_of_the_seed_the_site_and_the_repeat_alone() -> None:
    labels: dict[str, Label] = {f"{i:02d}": 0 for i in range(40)}
    spec = SplitSpec(num_folds=4)

    same = split_by_patient(tuple(reversed(exams_of(labels))), spec, site="a", seed=1).split_of
    others = [folds_of(labels, 4, **change)[0].split_of for change in ({"seed": 2}, {"site": "b"}, {"repeat": 1})]

    first = folds_of(labels, 4)[0].split_of
    assert same == first
    assert all(other != first for other in others)


def test_each_fold_draws_its_own_validation_patients() -> None:
    folds = folds_of({f"{i:02d}": 0 for i in range(40)}, 4)

    drawn = [frozenset(p for p, split in fold.split_of.items() if split == "validation") for fold in folds]

    assert len(set(drawn)) == 4


def test_folds_are_refused_where_the_table_names_the_test_patients(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(1)
    hospital.edit_table("lesion_z\n", "lesion_z\tsplit\n")
    hospital.edit_table("\t4\n", "\t4\ttrain\n")
    folded = study.model_copy(update={"split": SplitSpec(num_folds=5)})

    with pytest.raises(ConfigError, match=r"draws them anew for each of its 5 folds .* table without the column split"):
        load_cohort(hospital.config(), folded)


def test_a_split_that_the_table_names_is_kept(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(3)
    text = (hospital.folder / "table.tsv").read_text().splitlines()
    words = ["split", "test", "train", "validation"]
    (hospital.folder / "table.tsv").write_text(
        "".join(f"{line}\t{word}\n" for line, word in zip(text, words, strict=True))
    )

    cohort = load_cohort(hospital.config(), study)

    assert cohort.split_source == "table"
    assert cohort.split_of == {"000": "test", "001": "train", "002": "validation"}


def test_a_named_split_without_training_patients_is_refused(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(1)
    hospital.edit_table("lesion_z\n", "lesion_z\tsplit\n")
    hospital.edit_table("\t4\n", "\t4\ttest\n")

    with pytest.raises(ConfigError, match="no patient is in split train"):
        load_cohort(hospital.config(), study)


def test_a_missing_sequence_is_refused_with_the_exam_and_what_to_do(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(3)
    hospital.edit_table("scans/001_t2.nii.gz", "n/a")

    with pytest.raises(DataError, match=r"row 3 \(patient 001\): lacks t2\n.*delete these rows"):
        load_cohort(hospital.config(), study)


def digest_of(cohort: Cohort, secret: bytes = b"s" * 32) -> str:
    return cohort.digest("train", secret)


def test_the_digest_changes_with_the_cases_and_with_the_secret_alone() -> None:
    labels: dict[str, Label] = {f"{i:02d}": 0 for i in range(9)}
    cohort = split_by_patient(exams_of(labels), SPEC, site="a", seed=1)
    same = split_by_patient(tuple(reversed(exams_of(labels))), SPEC, site="a", seed=1)
    more = split_by_patient(exams_of({**labels, "99": 1}), SPEC, site="a", seed=1)

    assert digest_of(cohort) == digest_of(same)
    assert len({digest_of(cohort), digest_of(more), digest_of(cohort, b"t" * 32)}) == 3
