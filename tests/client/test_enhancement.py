"""The proposal of a lesion's middle, on phantom hospitals whose lesions are known."""

from pathlib import Path

import numpy as np
import pytest

from client.preprocessing.enhancement import propose_centre
from client.preprocessing.head import Head, find_head
from client.preprocessing.pipeline import ExamFiles, prepare_exam
from client.preprocessing.volume import read_volume
from client.table import Exam, read_table
from common.study import PreprocessingSpec, Sequence
from simulations.phantom.hospital import HOSPITALS, PhantomOptions, write_hospital

LABELS = {"necrosis": 1, "recurrence": 0}
SEQUENCES: tuple[Sequence, ...] = ("t1", "t1ce")


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> list[Exam]:
    """Eight patients of every hospital, both classes, with a radiologist's points."""
    root = tmp_path_factory.mktemp("phantom")
    options = PhantomOptions(seed=3, spacing_mm=2.5)
    tables = [write_hospital(spec, root / spec.site, options, num_patients=8).table for spec in HOSPITALS.values()]
    return [exam for table in tables for exam in read_table(table, LABELS)]


def head_of(exam: Exam, sequence: Sequence) -> Head:
    path = exam.volumes[sequence]
    return find_head(read_volume(path.read_bytes(), name=path.name), name=path.name)


def test_nine_of_ten_lesions_are_found_within_ten_millimetres(exams: list[Exam]) -> None:
    whole = [exam for exam in exams if set(SEQUENCES) <= set(exam.volumes)]

    apart_mm = [
        np.linalg.norm(propose_centre(head_of(exam, "t1ce"), head_of(exam, "t1")) - np.array(exam.lesion_point))
        for exam in whole
    ]

    assert len(apart_mm) >= 40
    assert np.mean(np.array(apart_mm) < 10) >= 0.9


def test_the_head_is_about_as_large_in_every_sequence(exams: list[Exam]) -> None:
    exam = next(exam for exam in exams if len(exam.volumes) == 3)

    litres = [
        head.mask.sum() * head.coarse.spacing_mm.prod() / 1e6
        for head in (head_of(exam, sequence) for sequence in exam.volumes)
    ]

    assert min(litres) > 1.8
    assert max(litres) < 3.2


@pytest.mark.parametrize(
    ("crop", "sequences", "source"),
    [
        ("enhancement", ("t1", "t1ce"), "enhancement"),
        ("lesion", ("t1", "t1ce"), "enhancement"),
        ("lesion", ("t1ce",), "t1ce"),
        ("lesion", ("t1",), "head"),
        ("head", ("t1", "t1ce"), "head"),
    ],
)
def test_an_exam_says_how_its_centre_was_found(
    exams: list[Exam], crop: str, sequences: tuple[Sequence, ...], source: str
) -> None:
    exam = next(exam for exam in exams if set(SEQUENCES) <= set(exam.volumes))
    spec = PreprocessingSpec.model_validate(
        {
            "spacing_mm": (2.5, 2.5, 2.5),
            "size_voxels": (16, 16, 16),
            "crop": crop,
            "missing_sequence": "zero_fill",
        }
    )
    contents = {sequence: Path(exam.volumes[sequence]).read_bytes() for sequence in sequences}

    prepared = prepare_exam(ExamFiles("e", contents), spec, SEQUENCES)

    assert prepared.centre_source == source


def test_the_proposal_is_the_same_every_time(exams: list[Exam]) -> None:
    exam = next(exam for exam in exams if set(SEQUENCES) <= set(exam.volumes))

    first, second = (propose_centre(head_of(exam, "t1ce"), head_of(exam, "t1")) for _ in range(2))

    np.testing.assert_array_equal(first, second)
