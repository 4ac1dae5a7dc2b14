"""A hospital's folder on disk."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from client.config import read_site_config
from client.table import read_table
from common.errors import ConfigError
from simulations.phantom.federation import num_patients_to_draw, write_hospitals
from simulations.phantom.grid import Array
from simulations.phantom.hospital import HOSPITALS, PhantomOptions, WrittenHospital, is_complete, write_hospital

COARSE = PhantomOptions(separation=2.0, seed=5, spacing_mm=5.0)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenHospital:
    return write_hospital(HOSPITALS["B"], tmp_path_factory.mktemp("b") / "hospital-b", COARSE, num_patients=12)


def test_table_names_every_image_and_a_point(written: WrittenHospital) -> None:
    rows = read(written.table)

    header = written.table.read_text().splitlines()[0]
    traits = ["age", "sex", "months_since_radiotherapy"]
    points = ["lesion_x", "lesion_y", "lesion_z"]
    assert header.split("\t") == ["patient_id", "label", "t1", "t2", "t1ce", *points, *traits]
    assert [row["patient_id"] for row in rows] == [f"sub-B{n:03d}" for n in range(1, 13)]
    assert sorted(row["label"] for row in rows) == ["necrosis"] + 11 * ["recurrence"]
    named = {row[name] for row in rows for name in ("t1", "t2", "t1ce")} - {""}
    on_disk = {path.relative_to(written.folder).as_posix() for path in written.folder.rglob("*.nii.gz")}
    assert named == on_disk
    assert "sub-B001/anat/sub-B001_ce-gadolinium_T1w.nii.gz" in named
    assert all(np.isfinite(float(row[f"lesion_{axis}"])) for row in rows for axis in "xyz")


def test_participants_are_in_bids_form(written: WrittenHospital) -> None:
    rows = read(written.folder / "participants.tsv")
    described = json.loads((written.folder / "participants.json").read_text())
    dataset = json.loads((written.folder / "dataset_description.json").read_text())

    assert list(rows[0]) == list(described)
    assert [row["participant_id"] for row in rows] == [row["patient_id"] for row in read(written.table)]
    assert all(row["mgmt"] in {"methylated", "unmethylated", "n/a"} for row in rows)
    assert all(row["who_grade"] in {"2", "3", "4"} and float(row["months_since_radiotherapy"]) > 0 for row in rows)
    assert "" not in {value for row in rows for value in row.values()}
    assert dataset["BIDSVersion"]


def test_sidecars_tell_the_sequence(written: WrittenHospital) -> None:
    sidecar = json.loads((written.folder / "sub-B001/anat/sub-B001_ce-gadolinium_T1w.json").read_text())

    assert sidecar["RepetitionTime"] == 0.5
    assert sidecar["MagneticFieldStrength"] == 1.5
    assert sidecar["ContrastBolusIngredient"] == "GADOLINIUM"
    assert sidecar["SliceThickness"] == 6.0


def test_site_config_is_said_to_be_synthetic(written: WrittenHospital) -> None:
    text = written.site_config.read_text()
    config = yaml.safe_load(text)

    assert config["name"] == "hospital-b"
    assert config["data"] == {"table": "table.tsv"}
    assert config["label_map"] == {"necrosis": 1, "recurrence": 0}
    assert text.startswith("#")
    assert "nobody was scanned" in text


def test_a_site_reads_what_is_written_for_it(written: WrittenHospital) -> None:
    config = read_site_config(written.site_config)

    exams = read_table(config.data.path, config.label_map)

    assert config.name == "hospital-b"
    assert [exam.patient_id for exam in exams] == [row["patient_id"] for row in read(written.table)]
    assert sum(exam.label for exam in exams) == 1


def test_images_have_sound_headers_and_agree_within_a_patient(written: WrittenHospital) -> None:
    for row in read(written.table):
        affines = []
        for name in ("t1", "t2", "t1ce"):
            if row[name]:
                image = nib.load(written.folder / row[name])
                header = image.header
                assert int(header["qform_code"]) == int(header["sform_code"]) == 1
                np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
                assert header.get_xyzt_units()[0] == "mm"
                assert header.get_data_dtype() in (np.int16, np.uint16)
                assert header.get_slope_inter() in ((1.0, 0.0), (None, None))
                assert bytes(header["descrip"]).strip(b"\0") == b""
                assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
                np.testing.assert_allclose(header.get_zooms(), (5.0, 5.0, 6.0), atol=1e-5)
                assert np.asarray(image.dataobj).max() > 100
                affines.append(image.affine)
        assert all((affine == affines[0]).all() for affine in affines)


def test_compressed_stream_holds_no_name_and_no_time_and_is_whole(written: WrittenHospital) -> None:
    path = written.folder / read(written.table)[0]["t1ce"]
    start = path.read_bytes()[:10]

    assert start[3] == 0  # no flags: no file name, no comment
    assert start[4:8] == bytes(4)  # no time
    assert len(gzip.decompress(path.read_bytes())) == 352 + 2 * np.prod(nib.load(path).shape)


def brightness(path: Path) -> tuple[Array, Array]:
    image = nib.load(path)
    voxels = np.asarray(image.dataobj, dtype=float)
    # White matter is the commonest signal of the middle of a head.
    middle = voxels[tuple(slice(n // 3, -n // 3) for n in voxels.shape)]
    return voxels / np.median(middle), image.affine


@pytest.mark.parametrize("name", ["A", "C"])
def test_enhancement_is_where_the_table_says(name: str, tmp_path: Path) -> None:
    options = PhantomOptions(separation=1.0, seed=2, spacing_mm=3.0)
    hospital = write_hospital(HOSPITALS[name], tmp_path / "h", options, num_patients=6)
    truth = {row["patient_id"]: row for row in read(hospital.folder / "derivatives/phantom/truth.tsv")}

    for row in read(hospital.table):
        (before, affine), (after, _) = (brightness(hospital.folder / row[key]) for key in ("t1", "t1ce"))
        added = after - before
        point = np.array([float(row[f"lesion_{axis}"]) for axis in "xyz"])
        known = np.array([float(truth[row["patient_id"]][axis]) for axis in "xyz"])
        radius = float(truth[row["patient_id"]]["diameter_mm"]) / 2
        mm = np.moveaxis(np.indices(added.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        in_lesion = np.linalg.norm(mm - point, axis=-1) < radius
        elsewhere = (np.linalg.norm(mm, axis=-1) < 45) & (np.linalg.norm(mm - point, axis=-1) > 1.5 * radius + 10)
        assert np.linalg.norm(point - known) < 9.0  # three errors of 2 mm and a bit
        assert added[in_lesion].mean() > added[elsewhere].mean() + 0.15, row["patient_id"]


def test_same_bytes_for_any_number_of_workers_and_for_every_run(tmp_path: Path) -> None:
    options = PhantomOptions(seed=11, spacing_mm=8.0)  # at this seed every patient has all sequences
    counts = {"A": 3, "C": 2}

    for folder, workers in (("one", 1), ("again", 1), ("two", 2)):
        write_hospitals(tmp_path / folder, ["A", "C"], options, num_patients=counts, workers=workers)
    write_hospital(HOSPITALS["C"], tmp_path / "alone", options, num_patients=2)

    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "again") == contents(tmp_path / "two")
    assert contents(tmp_path / "one/hospital-c") == contents(tmp_path / "alone")
    assert len([name for name in one if name.endswith("T2w.nii.gz")]) == 5


def test_other_seed_makes_other_images(tmp_path: Path) -> None:
    images = [
        contents(
            write_hospital(
                HOSPITALS["A"], tmp_path / str(seed), PhantomOptions(seed=seed, spacing_mm=10.0), num_patients=2
            ).folder
        )["sub-A001/anat/sub-A001_T1w.nii.gz"]
        for seed in (0, 1)
    ]

    assert images[0] != images[1]


def test_finished_hospital_is_reused_and_a_damaged_one_written_again(tmp_path: Path) -> None:
    folder, options = tmp_path / "h", PhantomOptions(spacing_mm=10.0)
    drawn: list[int] = []

    def write() -> WrittenHospital:
        return write_hospital(HOSPITALS["A"], folder, options, num_patients=2, on_patient=lambda: drawn.append(1))

    first, second = write(), write()
    assert (first.reused, second.reused, len(drawn)) == (False, True, 2)
    assert is_complete(HOSPITALS["A"], folder, options, 2)
    assert not is_complete(HOSPITALS["A"], folder, options, 3)
    assert not is_complete(HOSPITALS["A"], folder, PhantomOptions(spacing_mm=10.0, seed=1), 2)

    before = contents(folder)
    (folder / "sub-A002/anat/sub-A002_T2w.nii.gz").unlink()
    assert not is_complete(HOSPITALS["A"], folder, options, 2)
    third = write()
    assert (third.reused, len(drawn)) == (False, 4)
    assert contents(folder) == before


def test_interrupted_hospital_is_recognised_and_leaves_nothing_behind(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    folder, options = tmp_path / "h", PhantomOptions(spacing_mm=10.0)
    with pytest.raises(StopError):
        write_hospital(HOSPITALS["A"], folder, options, num_patients=5, on_patient=stop)
    assert not is_complete(HOSPITALS["A"], folder, options, 5)

    write_hospital(HOSPITALS["A"], folder, options, num_patients=2)

    assert {path.name for path in folder.glob("sub-*")} == {"sub-A001", "sub-A002"}
    assert not (folder / "incomplete.json").exists()


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sub-patient").mkdir()
    (tmp_path / "sub-patient/scan.nii.gz").write_bytes(b"somebody's")

    with pytest.raises(ConfigError, match=r"holds files that no phantom hospital wrote.*choose another one"):
        write_hospital(HOSPITALS["A"], tmp_path, PhantomOptions(spacing_mm=10.0), num_patients=2)

    assert (tmp_path / "sub-patient/scan.nii.gz").read_bytes() == b"somebody's"


def test_label_noise_turns_recorded_labels_and_nothing_else(tmp_path: Path) -> None:
    tables = []
    for noise in (0.0, 1.0):
        options = PhantomOptions(seed=3, spacing_mm=10.0, label_noise=noise)
        hospital = write_hospital(HOSPITALS["C"], tmp_path / str(noise), options, num_patients=5)
        rows = read(hospital.table)
        truth = [row["label"] for row in read(hospital.folder / "derivatives/phantom/truth.tsv")]
        tables.append((rows, truth))

    (clean, truth), (wrong, same_truth) = tables
    assert [row["label"] for row in clean] == truth == same_truth
    assert all(a["label"] != b["label"] for a, b in zip(clean, wrong, strict=True))
    assert [{**row, "label": ""} for row in clean] == [{**row, "label": ""} for row in wrong]


def test_label_noise_of_the_tiny_hospital_is_a_tenth(tmp_path: Path) -> None:
    hospital = write_hospital(HOSPITALS["F"], tmp_path / "f", PhantomOptions(spacing_mm=10.0), num_patients=120)

    recorded = [row["label"] for row in read(hospital.table)]
    truth = [row["label"] for row in read(hospital.folder / "derivatives/phantom/truth.tsv")]

    assert 0.04 < np.mean([a != b for a, b in zip(recorded, truth, strict=True)]) < 0.18


def test_atypical_share_looks_like_the_other_class(tmp_path: Path) -> None:
    options = PhantomOptions(spacing_mm=10.0, atypical=0.3, label_noise=0.0)
    hospital = write_hospital(HOSPITALS["D"], tmp_path / "d", options, num_patients=80)

    rows = read(hospital.folder / "derivatives/phantom/truth.tsv")

    assert 0.17 < np.mean([row["label"] != row["look"] for row in rows]) < 0.43


def test_duplicate_patient_has_the_same_images_under_another_identifier(tmp_path: Path) -> None:
    options = PhantomOptions(seed=3, spacing_mm=10.0, duplicate_patient=("C", "D"))

    write_hospitals(tmp_path, ["C", "D"], options, num_patients={"C": 3, "D": 4})

    source, copy = read(tmp_path / "hospital-c/table.tsv")[0], read(tmp_path / "hospital-d/table.tsv")[-1]
    assert (source["patient_id"], copy["patient_id"]) == ("sub-C001", "sub-D004")
    assert source["label"] == copy["label"]
    assert source["t1ce"] != ""
    assert (tmp_path / "hospital-c" / source["t1ce"]).read_bytes() == (
        tmp_path / "hospital-d" / copy["t1ce"]
    ).read_bytes()
    assert len(read(tmp_path / "hospital-d/table.tsv")) == 4


def test_federation_writes_the_hospitals_asked_for_and_counts_what_is_left(tmp_path: Path) -> None:
    options, counts = PhantomOptions(spacing_mm=10.0), {"A": 2, "E": 3}
    drawn: list[int] = []

    assert num_patients_to_draw(tmp_path, ["E", "A"], options, counts) == 5
    sites = write_hospitals(tmp_path, ["E", "A"], options, num_patients=counts, on_patient=lambda: drawn.append(1))

    assert sites == [tmp_path / "hospital-e/site.yaml", tmp_path / "hospital-a/site.yaml"]
    assert len(drawn) == 5
    assert num_patients_to_draw(tmp_path, ["E", "A"], options, counts) == 0


@pytest.mark.parametrize("names", [["A", "Z"], ["A", "a"], []], ids=["unknown", "twice", "none"])
def test_hospitals_that_do_not_exist_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected some of A, B, C, D, E, F, P, each once"):
        write_hospitals(tmp_path, names, PhantomOptions())


def test_options_out_of_range_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        PhantomOptions(separation=-1.0, atypical=2.0, duplicate_patient=("A", "A"))

    text = str(refusal.value)
    assert "3 faults" in text
    assert "separation is -1.0, expected a number from 0.0 to 2.5" in text
    assert "atypical" in text
    assert "duplicate_patient" in text


def test_one_patient_is_too_few_for_both_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 patients are asked for, expected 2 or more"):
        write_hospital(HOSPITALS["A"], tmp_path / "a", PhantomOptions(), num_patients=1)


def test_workers_do_not_load_torch() -> None:
    program = "import sys, simulations.phantom.federation; print(sorted({'torch', 'monai', 'flwr'} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
