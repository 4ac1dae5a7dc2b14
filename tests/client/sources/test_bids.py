"""Exams of a BIDS folder: what is taken, and that every fault is told with its place, all at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client.config import DataSource, EligibilityRule, SiteConfig
from client.sources.reading import SourceReading, read_source
from common.errors import ConfigError, DataError

PARTICIPANTS = "participant_id\tlabel\tage\nsub-007\tnecrosis\tn/a\nsub-7\trecurrence\t61\n"
FILES = (
    "sub-007/ses-01/anat/sub-007_ses-01_T1w.nii.gz",
    "sub-007/ses-01/anat/sub-007_ses-01_ce-gadolinium_T1w.nii.gz",
    "sub-007/ses-01/anat/sub-007_ses-01_T2w.nii.gz",
    "sub-007/ses-01/anat/sub-007_ses-01_FLAIR.nii.gz",
    "sub-007/ses-02/anat/sub-007_ses-02_ce-gadolinium_T1w.nii.gz",
    "sub-7/anat/sub-7_T1w.nii",
    "sub-7/anat/sub-7_T2w.nii",
)

Read = Callable[..., SourceReading]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "bids"
    for name in FILES:
        touch(root / name)
    (root / "participants.tsv").write_text(PARTICIPANTS)
    (root / "participants.json").write_text(
        json.dumps({"label": {"Levels": {"necrosis": "radiation necrosis", "recurrence": "glioma recurrence"}}})
    )
    (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def read(root: Path, tmp_path: Path) -> Read:
    def read_it(*, eligibility: tuple[EligibilityRule, ...] = (), **settings: object) -> SourceReading:
        data = DataSource.model_validate({"bids": root, **settings})
        config = SiteConfig(
            name="a", data=data, label_map={"necrosis": 1, "recurrence": 0}, cache=tmp_path, eligibility=eligibility
        )
        return read_source(config, None)

    return read_it


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_sessions_are_exams_of_one_patient_and_zeros_stay(read: Read) -> None:
    reading = read()

    assert reading.faults == ()
    assert [(e.patient_id, e.exam_id, e.label, sorted(e.volumes)) for e in reading.exams] == [
        ("007", "01", 1, ["t1", "t1ce", "t2"]),
        ("007", "02", 1, ["t1ce"]),
        ("7", "", 0, ["t1", "t2"]),
    ]
    assert reading.exams[0].name == "sub-007/ses-01 (patient 007, exam 01)"
    assert len({exam.row for exam in reading.exams}) == 3


def test_a_sessions_table_says_more_of_a_session(read: Read, root: Path) -> None:
    (root / "sub-007" / "sub-007_sessions.tsv").write_text("session_id\tirradiated\nses-01\tyes\nses-02\tno\n")
    rule = EligibilityRule(column="irradiated", exclude=("no",), reason="never irradiated")

    reading = read(eligibility=(rule,))

    assert reading.faults == ()
    assert [(one.patient_id, one.exam_id, one.reason) for one in reading.excluded] == [("007", "02", rule.reason)]


def test_derivatives_are_taken_where_they_are_asked_for(read: Read, root: Path) -> None:
    derived = root / "derivatives" / "prep"
    for sequence in ("T1w", "ce-gadolinium_T1w"):
        head, tail = sequence.rpartition("_")[::2]
        entities = "_".join(part for part in (head, "space-T1ce_desc-preproc") if part)
        touch(derived / f"sub-7/anat/sub-7_{entities}_{tail}.nii.gz")
    touch(derived / "sub-007/ses-01/anat/sub-007_ses-01_desc-preproc_T2w.nii.gz")
    touch(derived / "sub-7/anat/sub-7_space-T1ce_label-lesion_mask.nii.gz")

    reading = read(bids=derived, desc="preproc")

    assert reading.faults == ()
    assert [(e.patient_id, sorted(e.volumes)) for e in reading.exams] == [("007", ["t2"]), ("7", ["t1", "t1ce"])]
    assert reading.exams[1].lesion_mask == derived / "sub-7/anat/sub-7_space-T1ce_label-lesion_mask.nii.gz"


def test_of_two_runs_the_one_that_is_preferred_is_taken(read: Read, root: Path) -> None:
    anat = root / "sub-7" / "anat"
    (anat / "sub-7_T1w.nii").rename(anat / "sub-7_run-1_T1w.nii")
    touch(anat / "sub-7_run-2_T1w.nii")

    told = read().faults
    reading = read(prefer=("run-2",))

    assert [("2 files for t1" in fault.text, "data.prefer" in fault.text) for fault in told] == [(True, True)]
    assert reading.exams[-1].volumes["t1"].name == "sub-7_run-2_T1w.nii"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("sub-7\t", "sub-8\t", "sub-7: has a folder and no row", id="folder without row"),
        pytest.param("sub-7\t", "sub-8\t", r"participants.tsv row 3 \(patient 8\): names no volume", id="only a row"),
        pytest.param("sub-7\t", "7\t", r"participants.tsv row 3: participant_id is '7', expected .* sub-01", id="name"),
        pytest.param("sub-7\t", "sub-007\t", r"row 3: sub-007 stands in row 2 already", id="twice"),
        pytest.param("recurrence", "mixed", r"row 3: label is 'mixed', which the Levels", id="level"),
        pytest.param("recurrence", "n/a", r"sub-7 \(patient 7\): label is empty", id="no label"),
        pytest.param("\t61", "", r"participants.tsv row 3: has 2 fields, expected 3", id="ragged"),
    ],
)
def test_a_fault_is_told_with_its_place(read: Read, root: Path, old: str, new: str, message: str) -> None:
    assert old in PARTICIPANTS
    (root / "participants.tsv").write_text(PARTICIPANTS.replace(old, new))

    with pytest.raises(ConfigError, match=message):
        read().raise_if_faulty()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param(
            "participants.tsv", "participant_id\tlable\n", "no column 'label'.*did you mean 'lable'", id="col"
        ),
        pytest.param("participants.tsv", "id\tlabel\nsub-7\tnecrosis\n", "a column participant_id in the", id="key"),
        pytest.param("participants.json", "{", r"participants.json: line 1, column 2: not readable", id="json"),
        pytest.param("participants.json", "[]", "expected an object with a description", id="list"),
        pytest.param("participants.json", '{"label": {"Levels": 3}}', "Levels is no object", id="levels"),
        pytest.param("sub-007/sub-007_sessions.tsv", "session_id\nses-03\n", "ses-03 has no folder", id="session"),
    ],
)
def test_a_file_that_is_not_as_bids_wants_it_is_told(
    read: Read, root: Path, name: str, text: str, message: str
) -> None:
    (root / name).write_text(text)

    with pytest.raises(ConfigError, match=message):
        read().raise_if_faulty()


def test_a_file_that_is_named_for_another_patient_is_told(read: Read, root: Path) -> None:
    anat = root / "sub-7" / "anat"
    (anat / "sub-7_T1w.nii").rename(anat / "sub-70_T1w.nii")

    with pytest.raises(ConfigError, match=r"sub-7: 'sub-70_T1w.nii' is named for another participant"):
        read().raise_if_faulty()


def test_a_link_into_the_dataset_is_followed_and_a_broken_one_is_told(read: Read, root: Path) -> None:
    file = root / "sub-7" / "anat" / "sub-7_T1w.nii"
    touch(root / ".git" / "annex" / "key")
    file.unlink()
    os.symlink("../../.git/annex/key", file)
    assert read().faults == ()
    (root / ".git" / "annex" / "key").unlink()

    with pytest.raises(DataError, match=r"sub-7 \(patient 7\): t1: .*does not exist"):
        read().raise_if_faulty()
