"""What a site counts of its cohort is what a direct count of its table, its headers and its crops gives."""

from pathlib import Path

import numpy as np
import pytest

from client.cohort_statistics import counted_rows, shown_statistics
from client.config import read_site_config
from client.loader import PreparedCohort
from client.prepare import prepare_site
from client.site import Site
from common.cohort_statistics import HIDDEN, TableName
from common.errors import DisclosureError
from common.study import parse_study
from common.tasks import SPLITS
from tests.tiny_hospitals import study_text, write_tiny_hospital

STUDY = parse_study(
    study_text(preprocessing={"missing_sequence": "zero_fill"}, augmentation={"drop_sequence": 0.1}), origin="study"
)
AGES = ("19", "45", "45", "n/a", "45", "49", "81", "60", "61", "62", "63", "64")
SEXES = ("F", "M", "F", "?", "F", "F", "F", "M", "M", "M", "M", "F")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven patients with recurrence and four with necrosis; one has two exams, the second of them older, one no T2."""
    splits = (("train", 3, 2), ("validation", 2, 1), ("test", 2, 2))
    path = write_tiny_hospital(
        tmp_path_factory.mktemp("sites"), "a", splits=splits, disclosure={"min_patients": 1, "statistics": True}
    )
    table = path.with_name("table.tsv")
    header, *rows = table.read_text().splitlines()
    fields = [row.split("\t") for row in rows]
    fields[1][0] = fields[0][0]  # the second exam of the first patient
    fields[2][4] = ""
    traits = [[str(number), age, sex] for number, (age, sex) in enumerate(zip(AGES, SEXES, strict=True), start=1)]
    lines = ["\t".join(line + more) for line, more in zip(fields, traits, strict=True)]
    table.write_text("\n".join([f"{header}\texam_id\tage\tsex", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def prepared(hospital: Path) -> PreparedCohort:
    return prepare_site(read_site_config(hospital), STUDY)


def counts(prepared: PreparedCohort, table: TableName, row: str) -> list[int]:
    return [cell.count for cell in counted_rows(prepared, STUDY.sequences)[table, row]]


def test_patients_are_counted_once_by_their_first_exam(prepared: PreparedCohort) -> None:
    assert counts(prepared, "split", "recurrence") == [2, 2, 2]
    assert counts(prepared, "split", "necrosis") == [2, 1, 2]
    assert counts(prepared, "exams", "patients") == [10, 1, 0, 0]
    assert counts(prepared, "age", "recurrence") == [1, 0, 0, 2, 0, 2, 0, 1, 0]
    assert counts(prepared, "age", "necrosis") == [0, 0, 0, 1, 0, 3, 0, 0, 1]
    assert counts(prepared, "sex", "necrosis") == [2, 2, 0, 1]
    assert counts(prepared, "months", "necrosis") == [0, 0, 0, 0, 0, 0, 5]


def test_spacing_and_missing_sequences_are_those_of_the_files(prepared: PreparedCohort) -> None:
    assert counts(prepared, "spacing", "t1") == [0, 0, 0, 0, 11, 0, 0, 0]
    assert counts(prepared, "spacing", "t2") == [0, 0, 0, 0, 10, 0, 0, 1]


def test_intensities_are_those_of_the_first_crops(prepared: PreparedCohort) -> None:
    edges = np.arange(-6.0, 6.5, 0.5)
    second = 1  # of the training exams, the first patient's other exam
    crops = [np.delete(prepared.splits["train"].images[:].numpy(), second, axis=0)]
    crops += [prepared.splits[split].images[:].numpy() for split in SPLITS[1:]]
    t1ce = np.concatenate([images[:, 2].ravel() for images in crops])

    assert counts(prepared, "intensity", "t1ce") == np.histogram(t1ce, edges)[0].tolist()
    assert sum(counts(prepared, "intensity", "t2")) == 10 * 16**3
    assert all(cell.num_patients <= 11 for cell in counted_rows(prepared, STUDY.sequences)["intensity", "t1ce"])


def test_small_counts_do_not_leave(prepared: PreparedCohort) -> None:
    shown = shown_statistics(prepared, STUDY.sequences, min_cell=3)

    assert shown is not None
    assert all(cell == HIDDEN or cell == 0 or cell >= 3 for cells in shown.rows.values() for cell in cells)
    assert shown.rows["spacing", "t2"] == (HIDDEN,) * 8
    assert set(shown.rows["intensity", "t2"]) == {HIDDEN}
    assert shown_statistics(prepared, STUDY.sequences, min_cell=12) is None


def test_site_without_consent_shows_nothing(hospital: Path) -> None:
    config = read_site_config(hospital)
    silent = config.model_copy(update={"disclosure": config.disclosure.model_copy(update={"statistics": False})})

    with pytest.raises(DisclosureError, match="write statistics: true under disclosure"):
        Site.open(silent, STUDY).show_statistics()
