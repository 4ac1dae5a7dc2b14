"""One cohort out of every form: a phantom hospital's table, written as BIDS and as a datalist, is the same cohort."""

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from client import cli
from client.cohort import Cohort, load_cohort
from client.config import read_site_config
from client.fresh_header import with_fresh_header
from client.sources.writing import bids_labels
from client.table import SPLITS
from common.study import Study, parse_study
from simulations.phantom.federation import write_hospitals
from simulations.phantom.spec import PhantomOptions
from tests.tiny_hospitals import study_text, write_tiny_hospital

STUDY = parse_study(
    study_text(preprocessing={"missing_sequence": "zero_fill"}, augmentation={"drop_sequence": 0.1}), origin="study"
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    options = PhantomOptions(separation=2.0, seed=1, spacing_mm=8.0)
    return write_hospitals(folder, ["F"], options, num_patients={"F": 7}, workers=1, on_patient=lambda *_: None)[0]


def other_site(site: Path, folder: Path, data: Mapping[str, object], label_map: Mapping[str, int]) -> Path:
    values = yaml.safe_load(site.read_text()) | {"data": data, "label_map": label_map, "cache": str(folder / "cache")}
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def cohort_of(site: Path, study: Study = STUDY) -> Cohort:
    return load_cohort(read_site_config(site), study)


def digests(cohort: Cohort) -> list[str]:
    return [cohort.digest(split, b"s" * 32) for split in SPLITS]


def sums(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_bids(site: Path, tmp_path: Path) -> Path:
    assert cli.main(["cohort", "--site", str(site), "--write-bids", str(tmp_path / "out")]) == 0
    data = {"bids": str(tmp_path / "out"), "desc": "cohort"}
    return other_site(site, tmp_path, data, {"necrosis": 1, "recurrence": 0})


def as_datalist(site: Path, tmp_path: Path) -> Path:
    assert cli.main(["cohort", "--site", str(site), "--write-datalist", str(tmp_path / "out.json")]) == 0
    return other_site(site, tmp_path, {"datalist": str(tmp_path / "out.json")}, {"1": 1, "0": 0})


@pytest.mark.parametrize("written", [as_bids, as_datalist])
def test_a_phantom_hospital_in_another_form_is_the_same_cohort(
    phantom: Path, tmp_path: Path, written: type, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sums(phantom.parent)

    again = cohort_of(written(phantom, tmp_path))

    first = cohort_of(phantom)
    assert digests(again) == digests(first)
    for old, new in zip(first.exams, again.exams, strict=True):
        assert new.lesion_point == old.lesion_point
        assert new.volumes.keys() == old.volumes.keys()
        for sequence, path in old.volumes.items():
            one, other = nibabel.load(path), nibabel.load(new.volumes[sequence])
            np.testing.assert_array_equal(one.get_fdata(), other.get_fdata())
            np.testing.assert_array_equal(one.affine, other.affine)
    assert sums(phantom.parent) == before
    assert "GlioRN phantom Phantom F" in capsys.readouterr().out


@pytest.mark.parametrize("written", [as_bids, as_datalist])
def test_splits_exams_and_odd_identifiers_survive(tmp_path: Path, written: type) -> None:
    site = write_tiny_hospital(tmp_path, "a", splits=(("train", 2, 1), ("validation", 1, 1)))
    table = site.parent / "table.tsv"
    header, *rows = table.read_text().splitlines()
    ids = ["007", "7", "0-0-7", 'O"x', "0-0-7"]
    exams = ["", "", "n/a", "2", "later (b)"]
    labels = ["recurrence", "recurrence", "necrosis", "recurrence", "necrosis"]
    splits = ["train", "train", "train", "validation", "train"]
    text = [header + "\texam_id"]
    for row, *new in zip(rows, ids, labels, splits, exams, strict=True):
        text.append(
            "\t".join([*('"' + word.replace('"', '""') + '"' for word in new[:3]), *row.split("\t")[3:], new[3]])
        )
    table.write_text("\n".join(text) + "\n")

    again = cohort_of(written(site, tmp_path))

    first = cohort_of(site)
    assert first.split_source == again.split_source == "table"
    assert digests(again) == digests(first)


@pytest.mark.parametrize("written", [as_bids, as_datalist])
def test_masks_go_along(tmp_path: Path, written: type) -> None:
    site = write_tiny_hospital(tmp_path, "a", splits=(("train", 1, 1),))
    table = site.parent / "table.tsv"
    header, first, second = table.read_text().splitlines()
    for name in ("lesion", "brain"):
        (site.parent / f"{name}.nii.gz").write_bytes((site.parent / "0001_t1.nii.gz").read_bytes())
    columns = f"{header}\tlesion_mask\tbrain_mask"
    table.write_text(f"{columns}\n{first}\tlesion.nii.gz\tbrain.nii.gz\n{second}\t\t\n")

    exams = cohort_of(written(site, tmp_path)).exams

    assert [(e.lesion_mask is not None, e.brain_mask is not None) for e in exams] == [(True, True), (False, False)]


def test_all_patients_in_training_stay_there(tmp_path: Path) -> None:
    site = write_tiny_hospital(tmp_path, "a", splits=(("train", 2, 2),))

    assert cohort_of(as_datalist(site, tmp_path)).num_patients("train") == 4


def test_json_shows_the_flow_and_splits_as_the_study_draws_them(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(phantom.read_text())
    values["data"] = {"table": str(phantom.parent / "table.tsv")}
    never = {"column": "patient_id", "exclude": ["sub-F001", "sub-F002"], "reason": "never irradiated"}
    mixed = {"column": "label", "exclude": ["mixed"], "reason": "mixed pathology"}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(values | {"eligibility": [mixed, never]}))
    (tmp_path / "study.yaml").write_text(
        study_text(preprocessing={"missing_sequence": "zero_fill"}, augmentation={"drop_sequence": 0.1})
    )

    status = cli.main(["cohort", "--site", f"{tmp_path}/site.yaml", "--study", f"{tmp_path}/study.yaml", "--json"])

    shown = json.loads(capsys.readouterr().out)
    assert status == 0
    assert shown["flow"] == {
        "screened": {"patients": 7, "exams": 7},
        "excluded": [["never irradiated", {"patients": 2, "exams": 2}]],
        "included": {"patients": 5, "exams": 5},
    }
    assert sum(sum(counts) for counts in shown["splits"].values()) == shown["num_exams"] == 5


def test_a_folder_that_is_not_new_and_a_datalist_that_exists_are_refused(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.json").touch()

    for option, where in (("--write-bids", phantom.parent), ("--write-datalist", tmp_path / "list.json")):
        assert cli.main(["cohort", "--site", str(phantom), option, str(where)]) == 2

    errors = capsys.readouterr().err
    assert "is there already and not empty" in errors
    assert "exists already" in errors


def test_a_fresh_header_holds_no_text_no_extension_and_no_name() -> None:
    image = nibabel.Nifti1Image(np.arange(125, dtype=np.int16).reshape(5, 5, 5), np.diag([1.0, 2.0, 3.0, 1.0]))
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        image.header[field] = b"DOE^JANE"
    image.header.set_slope_inter(2.0, 5.0)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE^JANE 19700101"))

    fresh = with_fresh_header(image.to_bytes(), name="a")

    plain = gzip.decompress(fresh)
    again = nibabel.Nifti1Image.from_bytes(plain)
    assert b"DOE" not in plain
    assert (fresh[3], fresh[4:8]) == (0, bytes(4)), "neither a name nor a time in the gzip header"
    np.testing.assert_array_equal(again.get_fdata(), nibabel.Nifti1Image.from_bytes(image.to_bytes()).get_fdata())
    np.testing.assert_array_equal(again.affine, image.affine)


def test_labels_of_bids_stay_apart_also_without_letter_case() -> None:
    assert bids_labels(["sub-01", "7", "a-b"], prefix="sub-") == {"sub-01": "01", "7": "7", "a-b": "ab"}
    assert bids_labels(["a-b", "AB"], prefix="sub-") == {"a-b": "001", "AB": "002"}


@pytest.mark.parametrize("exams", [1, 2], ids=["one exam", "two exams"])
def test_age_sex_and_months_are_carried_where_the_source_has_them(exams: int, tmp_path: Path) -> None:
    site = write_tiny_hospital(tmp_path, "a", splits=(("train", 2, 1),))
    table = site.parent / "table.tsv"
    header, *rows = table.read_text().splitlines()
    known = ["61.5\tF\t14", "n/a\tM\tn/a", "89+\t\t9.25"]
    lines = [f"{row}\t{words}\tbefore" for row, words in zip(rows, known, strict=True)]
    if exams == 2:  # a patient of two exams, with another age at the second
        second, first = rows[1].split("\t"), rows[0].split("\t")
        lines[1] = "\t".join([first[0], first[1], *second[2:], "62", "F", "20", "after"])
    table.write_text("\n".join([f"{header}\tage\tsex\tmonths_since_radiotherapy\texam_id", *lines]) + "\n")

    again = cohort_of(as_bids(site, tmp_path))

    expected = {(exam.patient_id, exam.exam_id): exam.traits for exam in cohort_of(site).exams}
    assert {(exam.patient_id, exam.exam_id): exam.traits for exam in again.exams} == expected
    assert len({traits.age_years for traits in expected.values()}) == 3
    assert "months_since_radiotherapy" in (tmp_path / "out" / "participants.json").read_text()


def test_no_column_is_written_that_the_source_does_not_have(tmp_path: Path) -> None:
    as_bids(write_tiny_hospital(tmp_path, "a", splits=(("train", 1, 1),)), tmp_path)

    header = (tmp_path / "out" / "participants.tsv").read_text().splitlines()[0].split("\t")

    assert not {"age", "sex", "months_since_radiotherapy"} & set(header)
