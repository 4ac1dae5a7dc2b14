"""Exams of a MONAI datalist: orders, splits, folds, and faults with their place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.config import DataSource, SiteConfig
from client.sources.reading import SourceReading, read_source
from common.errors import ConfigError

Read = Callable[..., SourceReading]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.nii").touch()

    def read_it(document: object, **settings: object) -> SourceReading:
        text = document if isinstance(document, str) else json.dumps(document)
        (tmp_path / "datalist.json").write_text(text)
        data = DataSource.model_validate({"datalist": tmp_path / "datalist.json", **settings})
        config = SiteConfig(name="a", data=data, label_map={"1": 1, "0": 0}, cache=tmp_path)
        return read_source(config, None)

    return read_it


def entry(patient: str, *files: str | None, label: object = 0, **more: object) -> dict[str, Any]:
    return {"patient_id": patient, "image": [*files, *[None] * (3 - len(files))], "label": label, **more}


def test_a_list_stands_in_the_order_of_the_study_and_null_is_a_sequence_not_taken(read: Read) -> None:
    reading = read({"training": [entry("07", "a.nii", None, "c.nii", label=1)]})

    (exam,) = reading.exams
    assert reading.faults == ()
    assert (exam.patient_id, exam.label, exam.split) == ("07", 1, None)
    assert {name: path.name for name, path in exam.volumes.items()} == {"t1": "a.nii", "t1ce": "c.nii"}


def test_modality_settles_the_order(read: Read) -> None:
    reading = read({"modality": {"0": "T1gd", "1": "T1w", "2": "T2w"}, "training": [entry("p", "a.nii", "b.nii")]})

    assert {name: path.name for name, path in reading.exams[0].volumes.items()} == {"t1ce": "a.nii", "t1": "b.nii"}


def test_an_object_names_its_sequences(read: Read) -> None:
    reading = read({"training": [{"patient_id": 7, "image": {"t2": "a.nii"}, "label": 0, "lesion_x": 1.5}]})

    assert [fault.text for fault in reading.faults] == [
        "training[0] (patient 7): lesion_y and lesion_z is empty; give all three coordinates or none"
    ]


def test_lists_are_splits(read: Read) -> None:
    reading = read({"training": [entry("p", "a.nii")], "testing": [entry("q", "b.nii")]})

    assert [(exam.patient_id, exam.split) for exam in reading.exams] == [("p", "train"), ("q", "test")]


def test_a_fold_validates_where_site_yaml_says_which(read: Read) -> None:
    document = {"training": [entry("p", "a.nii", fold=0), entry("q", "b.nii", fold=1)], "test": [entry("r", "c.nii")]}

    assert [exam.split for exam in read(document, validation_fold=1).exams] == ["train", "validation", "test"]
    assert [exam.split for exam in read(document, validation_fold=-1).exams] == ["train", "train", "test"]
    with pytest.raises(ConfigError, match=r"entries name folds; write data.validation_fold"):
        read(document).raise_if_faulty()


def test_an_entry_is_a_patient_only_where_site_yaml_says_so(read: Read) -> None:
    document = {"training": [{"image": ["a.nii", "b.nii", "c.nii"], "label": 1}]}

    assert read(document, one_exam_per_patient=True).exams[0].patient_id == "a.nii"
    with pytest.raises(ConfigError, match=r"training\[0\]: names no patient_id.*one_exam_per_patient"):
        read(document).raise_if_faulty()


def test_words_of_other_keys_are_for_eligibility(read: Read, tmp_path: Path) -> None:
    read({"training": [entry("p", "a.nii", irradiated=True), entry("q", "b.nii", irradiated=False)]})
    config = SiteConfig.model_validate(
        {
            "name": "a",
            "data": {"datalist": tmp_path / "datalist.json"},
            "label_map": {"1": 1, "0": 0},
            "cache": tmp_path,
            "eligibility": ({"column": "irradiated", "exclude": ("false",), "reason": "never irradiated"},),
        }
    )

    reading = read_source(config, None)

    assert ([e.patient_id for e in reading.exams], [e.patient_id for e in reading.excluded]) == (["p"], ["q"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param("{", r"line 1, column 2: not readable as JSON", id="cut"),
        pytest.param('{"training": [], "training": []}', "'training' is given twice", id="key twice"),
        pytest.param('{"training": [NaN]}', "holds NaN", id="nan"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        pytest.param('{"training": ["\\ud800"]}', "half a character", id="surrogate"),
        pytest.param([], "is \\[\\], expected an object", id="list"),
        pytest.param({"train": []}, "none of the lists training.*found: train", id="no list"),
        pytest.param({"training": {}}, "training is {}, expected a list", id="object"),
        pytest.param({"training": []}, "holds no entry", id="nothing"),
        pytest.param({"training": ["a.nii"]}, r"training\[0\]: is 'a.nii', expected an object", id="text"),
        pytest.param({"training": [entry("p", "a.nii", label=0.5)]}, r"label is 0.5, expected a whole", id="label"),
        pytest.param({"training": [entry("p", "a.nii", label=True)]}, r"label is True, expected", id="bool"),
        pytest.param({"training": [entry("p", "a.nii", label=2)]}, r"\[0\] \(patient p\): label is '2'", id="map"),
        pytest.param({"test": [{"patient_id": "p", "image": "a.nii"}]}, "1 files, expected 3: t1, t2", id="length"),
        pytest.param({"training": [entry("p", "a.nii") | {"image": {"flair": "a"}}]}, "sequence 'flair'", id="flair"),
        pytest.param({"training": [entry("p", "a.nii") | {"image": 3}]}, "image is 3, expected a list", id="image"),
        pytest.param({"training": [{**entry("p", "a.nii"), "patient_id": []}]}, r"patient_id is \[\]", id="id"),
        pytest.param(
            {"modality": {"0": "MRI"}, "training": [entry("p", "a.nii")]}, "modality is .*expected each", id="modality"
        ),
        pytest.param(
            {"training": [entry("p", "a.nii")], "test": [entry("p", "b.nii", exam_id="2")]},
            r"is in test, training\[0\] of the same patient in train",
            id="two splits",
        ),
    ],
)
def test_a_fault_is_told_with_its_place(read: Read, document: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(document).raise_if_faulty()


def test_an_exam_whose_file_is_not_there_is_a_fault_and_no_exam(read: Read) -> None:
    reading = read({"training": [entry("p", "a.nii"), entry("q", "b.nii", "gone.nii")]})

    assert [exam.patient_id for exam in reading.exams] == ["p"]
    assert [fault.kind for fault in reading.faults] == ["files"]
