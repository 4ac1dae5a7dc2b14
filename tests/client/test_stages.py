"""Stages of preparing: what a changed setting costs, what a flipped byte is found by, and the extra that is needed."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from client import cli
from client.commands.prepare import shown_progress
from client.config import SiteConfig, read_site_config
from client.prepare import prepare_site
from client.preprocessing.bias import estimate_bias
from client.preprocessing.head import find_head
from client.preprocessing.pipeline import ExamFiles, prepare_exam
from client.preprocessing.registration import register_rigidly, shift_and_turn
from client.preprocessing.volume import Volume, read_volume
from client.verification import verify_site
from common.errors import ConfigError, DataError
from common.study import PreprocessingSpec, Study, parse_study
from simulations.phantom.hospital import write_hospital
from simulations.phantom.motion import true_motions
from simulations.phantom.spec import HOSPITALS, PhantomOptions
from tests.tiny_hospitals import study_text, write_tiny_hospital

OPTIONS = PhantomOptions(misregistration_mm=3.0, spacing_mm=3.0)
FIELDS = {"registration": "rigid", "bias_correction": "n4"}


@pytest.fixture(scope="module")
def one_patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site.yaml of a phantom hospital whose table names its first patient alone, misregistered."""
    folder = tmp_path_factory.mktemp("phantom") / "hospital-a"
    hospital = write_hospital(HOSPITALS["A"], folder, OPTIONS, num_patients=2)
    hospital.table.write_text("\n".join(hospital.table.read_text().splitlines()[:2]) + "\n")
    return hospital.site_config


def study_with(**changes: object) -> Study:
    sequences = changes.pop("sequences", ["t1", "t2", "t1ce"])
    return parse_study(study_text(preprocessing=changes, sequences=sequences), origin="study.yaml")


def with_cache(site: Path, cache: Path) -> SiteConfig:
    return read_site_config(site).model_copy(update={"cache": cache})


ALL = {"registration": 2, "bias": 3, "centre": 1, "channel": 3}
CHANGES: Mapping[str, tuple[dict[str, object], dict[str, int]]] = {
    "the same again": ({}, {}),
    "spacing": ({"spacing_mm": [5.0, 4.0, 4.0]}, {"channel": 3}),
    "size": ({"size_voxels": [20, 16, 16]}, {"channel": 3}),
    "crop": ({"crop": "head"}, {"centre": 1, "channel": 3}),
    "no registration": ({"registration": "none"}, {"centre": 1, "channel": 2}),
    "no bias correction": ({"bias_correction": "none"}, {"centre": 1, "channel": 3}),
    "fewer sequences, in another order": ({"sequences": ["t1ce", "t1"]}, {}),
}


def test_a_changed_setting_costs_only_what_depends_on_it(one_patient: Path, tmp_path: Path) -> None:
    config = with_cache(one_patient, tmp_path / "cache")
    assert dict(prepare_site(config, study_with(**FIELDS)).stages_computed) == ALL

    for name, (changes, computed) in CHANGES.items():
        prepared = prepare_site(config, study_with(**(FIELDS | changes)))

        assert (name, dict(prepared.stages_computed)) == (name, computed)
        assert prepared.num_from_cache == int(not computed)


def test_registration_of_an_exam_brings_its_sequences_together(one_patient: Path, tmp_path: Path) -> None:
    motions = true_motions(HOSPITALS["A"], 0, OPTIONS)
    folder = one_patient.parent
    volumes = {
        sequence: read_volume(next(folder.glob(f"sub-A001/anat/*001_{suffix}.nii.gz")).read_bytes(), name=sequence)
        for sequence, suffix in (("t1", "T1w"), ("t2", "T2w"), ("t1ce", "ce-gadolinium_T1w"))
    }
    head = find_head(volumes["t1ce"], name="t1ce")

    for sequence in ("t1", "t2"):
        found = register_rigidly(volumes[sequence], volumes["t1ce"], head, name=sequence)

        shift_mm, degrees = shift_and_turn(found @ np.linalg.inv(motions[sequence]), head.box_centre)
        before_mm, before_degrees = shift_and_turn(motions[sequence], head.box_centre)
        assert before_mm > 0.3 or before_degrees > 0.5, "nothing was there to be found"
        assert shift_mm < 0.5
        assert degrees < 0.5


def ball(affine: npt.NDArray[np.float64], *, middle: tuple[float, float, float] = (0, 0, 0)) -> Volume:
    indices = np.stack(np.meshgrid(*(np.arange(50),) * 3, indexing="ij"), axis=-1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    noise = np.abs(np.random.default_rng(0).normal(0, 10, (50, 50, 50)))
    values = 1000.0 * (np.linalg.norm(world - np.array(middle), axis=-1) < 80) + noise
    return Volume(values.astype(np.float32), affine)


AFFINE = np.array([[4.0, 0, 0, -98], [0, 4, 0, -98], [0, 0, 4, -98], [0, 0, 0, 1]])


@pytest.mark.parametrize(("away_mm", "message"), [(50.0, "would move it by"), (900.0, "too little of it overlaps")])
def test_a_sequence_of_another_place_is_refused(away_mm: float, message: str) -> None:
    fixed, moving = ball(AFFINE), ball(AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += away_mm

    with pytest.raises(DataError, match=f"e: t2: .*{message}"):
        register_rigidly(Volume(moving.values, moved), fixed, find_head(fixed, name="e"), name="e: t2")


def test_the_shading_of_a_coil_is_found() -> None:
    plain = ball(AFFINE)
    x = np.arange(50)[:, None, None] * 4.0 - 98
    shading = np.exp(0.3 * np.sin(x / 60)) * np.ones((50, 50, 50))
    shaded = find_head(Volume((plain.values * shading).astype(np.float32), AFFINE), name="e")

    field = estimate_bias(shaded)

    inner = plain.values[shaded.mask] > 900
    left = (shading / field)[shaded.mask][inner]
    before = shading[shaded.mask][inner]
    assert left.std() / left.mean() < 0.25 * before.std() / before.mean()


def test_shading_is_taken_out_of_the_prepared_volume() -> None:
    plain = ball(AFFINE)
    x = np.arange(50)[:, None, None] * 4.0 - 98
    stripes = 1 + 0.3 * np.sign(np.sin(np.arange(50)[None, :, None]))  # gives the head a sd that no shading makes
    values = (plain.values * stripes * np.exp(0.3 * np.sin(x / 60))).astype(np.float32)
    data = nibabel.Nifti1Image(values, AFFINE).to_bytes()
    spec = PreprocessingSpec(spacing_mm=(4, 4, 4), size_voxels=(24, 24, 24), crop="head", registration="rigid")

    slopes = {}
    for correction in ("none", "n4"):
        exam = prepare_exam(
            ExamFiles("e", {"t1": data}), spec.model_copy(update={"bias_correction": correction}), ("t1",)
        )
        slopes[correction] = float(exam.image[0, -3:].mean() - exam.image[0, :3].mean())

    assert slopes["none"] > 1.0
    assert abs(slopes["n4"]) < 0.25 * slopes["none"]


def test_a_brain_mask_decides_the_brightness_and_the_middle_of_the_head() -> None:
    head = ball(AFFINE)
    values = head.values.copy()
    brain = np.zeros((50, 50, 50), dtype=np.uint8)
    brain[14:30, 18:32, 18:32] = 1
    values[brain == 1] += np.linspace(0, 500, int(brain.sum()), dtype=np.float32)
    files = ExamFiles(
        "e",
        {"t1": nibabel.Nifti1Image(values, AFFINE).to_bytes()},
        brain_mask=nibabel.Nifti1Image(brain, AFFINE).to_bytes(),
    )
    spec = PreprocessingSpec(spacing_mm=(4, 4, 4), size_voxels=(16, 16, 16), crop="head")

    masked = prepare_exam(files, spec, ("t1",))
    plain = prepare_exam(dataclasses.replace(files, brain_mask=None), spec, ("t1",))

    middle = AFFINE[:3, 3] + 4 * np.array([21.5, 24.5, 24.5])
    assert masked.centre == pytest.approx(tuple(middle))
    assert plain.centre == pytest.approx((0, 0, 0), abs=4)
    assert masked.image[0, :, 1:-1, 1:-1].mean() == pytest.approx(0, abs=0.15)


def test_a_brain_mask_of_another_place_is_refused() -> None:
    away = AFFINE.copy()
    away[2, 3] += 500
    brain = (ball(AFFINE).values > 500).astype(np.uint8)
    files = ExamFiles(
        "e",
        {"t1": nibabel.Nifti1Image(ball(AFFINE).values, AFFINE).to_bytes()},
        brain_mask=nibabel.Nifti1Image(brain, away).to_bytes(),
    )

    with pytest.raises(DataError, match=r"e: t1: less than 100 cm³ of it lie in brain_mask"):
        prepare_exam(files, PreprocessingSpec(spacing_mm=(4, 4, 4), size_voxels=(16, 16, 16), crop="head"), ("t1",))


@pytest.mark.parametrize("setting", [{"registration": "rigid"}, {"bias_correction": "n4"}], ids=str)
def test_a_missing_extra_is_told_before_any_work(
    setting: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_site_config(write_tiny_hospital(tmp_path, "a", splits=(("train", 1, 1),)))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    seen: list[int] = []

    with pytest.raises(ConfigError, match=r"needs SimpleITK.*pip install 'gliorn\[prep\]'"):
        prepare_site(config, study_with(**setting), on_exam=lambda done, total: seen.append(done))

    assert seen == []
    assert prepare_site(config, study_with()).num_from_cache == 0


@pytest.fixture
def prepared_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("client.digests.SETTLED_NS", 0)
    site = write_tiny_hospital(tmp_path, "a", splits=(("train", 2, 1),))
    prepare_site(read_site_config(site), study_with())
    return site


def flip_a_byte(path: Path) -> None:
    """As a disk does it: neither size nor times change."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_nothing_is_found_where_nothing_has_changed(prepared_site: Path) -> None:
    seen: list[tuple[int, int]] = []

    found = verify_site(
        read_site_config(prepared_site), study_with(), workers=2, on_exam=lambda *numbers: seen.append(numbers)
    )

    assert (found.num_exams, found.num_files, found.faults, found.unprepared) == (3, 9, (), ())
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_flipped_byte_in_a_file_is_found_and_the_exam_is_named(
    prepared_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("digests", "prepare"):  # what a disk flips by itself changes no time, not even ctime
        monkeypatch.setattr(f"client.{module}.file_state", lambda path: str(os.stat(path).st_size))
    prepare_site(read_site_config(prepared_site), study_with())
    flip_a_byte(prepared_site.parent / "0002_t2.nii.gz")

    found = verify_site(read_site_config(prepared_site), study_with())

    (fault,) = found.faults
    assert fault.startswith("row 3 (patient 0002): t2: ")
    assert "has other bytes than when it was prepared" in fault


@pytest.mark.parametrize("stage", ["centre", "channel"])
def test_a_flipped_byte_in_the_cache_is_found_and_the_exam_is_named(prepared_site: Path, stage: str) -> None:
    flip_a_byte(sorted((prepared_site.parent / "cache" / "exams").glob(f"*.{stage}.exam"))[0])

    found = verify_site(read_site_config(prepared_site), study_with())

    (fault,) = found.faults
    assert fault.startswith("row ")
    assert "in the cache is damaged; `gliorn-client prepare` makes it again" in fault
    prepare_site(read_site_config(prepared_site), study_with())
    assert verify_site(read_site_config(prepared_site), study_with()).faults == ()


def test_an_exam_that_somebody_changed_is_unprepared_and_not_damaged(prepared_site: Path) -> None:
    first, second = (prepared_site.parent / f"000{number}_t1.nii.gz" for number in (1, 2))
    first.write_bytes(second.read_bytes())

    found = verify_site(read_site_config(prepared_site), study_with())

    assert found.faults == ()
    assert found.unprepared == ("row 2 (patient 0001)",)


def test_settings_of_another_study_are_unprepared(prepared_site: Path) -> None:
    found = verify_site(read_site_config(prepared_site), study_with(spacing_mm=[5.0, 5.0, 5.0]))

    assert len(found.unprepared) == 3


def test_prepare_says_what_it_computed_and_verify_that_all_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("client.digests.SETTLED_NS", 0)
    site, study = write_tiny_hospital(tmp_path, "a", splits=(("train", 2, 1),)), tmp_path / "study.yaml"
    study.write_text(study_text())
    arguments = ["prepare", "--site", str(site), "--study", str(study)]

    assert cli.main(arguments) == 0
    assert "computed now: centre 3, channel 9" in capsys.readouterr().out
    assert cli.main([*arguments, "--verify"]) == 0
    assert "3 exams looked at; 9 of their files compared" in capsys.readouterr().out

    flip_a_byte(next((site.parent / "cache" / "exams").glob("*.channel.exam")))
    assert cli.main([*arguments, "--verify"]) == 2
    assert "1 fault" in (err := capsys.readouterr().err)
    assert "in the cache is damaged" in err
    assert cli.main(arguments) == 0
    assert "computed now: channel 1" in capsys.readouterr().out


def test_a_log_gets_a_line_now_and_then_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter(range(0, 1000, 10))

    with shown_progress(False, clock=lambda: float(next(seconds))) as on_exam:
        for done in range(1, 8):
            on_exam(done, 100 if done < 7 else 7)

    assert capsys.readouterr().err.splitlines() == [
        "3 of 100 exams, about 16 min left",
        "6 of 100 exams, about 16 min left",
        "7 of 7 exams",
    ]
