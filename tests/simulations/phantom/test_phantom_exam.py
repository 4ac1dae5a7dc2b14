"""Scanners: grids, motion, noise, what is absent."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from simulations.phantom.exam import GAIN_SD, Exam, Stored, draw_exam, take_images
from simulations.phantom.geometry import Head, draw_head
from simulations.phantom.grid import Array
from simulations.phantom.patient import present_sequences
from simulations.phantom.scanners import SCANNERS, Scanner
from simulations.phantom.spec import HOSPITALS, PhantomOptions, draw_labels, random_stream

AXES = {"A": "RAS", "B": "LPS", "C": "PSR", "D": "LAS", "E": "RAS", "F": "LPS", "P": "RAS"}
SPACINGS = {
    "A": (1, 1, 1),
    "B": (0.5, 0.5, 6),
    "C": (0.9, 0.9, 1.2),
    "D": (0.86, 0.86, 5),
    "E": (0.43, 0.43, 5.5),
    "F": (1, 1, 5),
    "P": (1, 1, 1),
}
OBLIQUE = {"A": 2, "B": 12, "C": 5, "D": 15, "E": 8, "F": 10, "P": 2}


def angle_deg(rotation: Array) -> float:
    return float(np.rad2deg(np.arccos((np.trace(rotation) - 1) / 2)))


@pytest.mark.parametrize("hospital", list(HOSPITALS))
def test_grid_has_the_axes_spacing_and_tilt_of_the_scanner(hospital: str) -> None:
    exam = draw_exam(SCANNERS[hospital], None, 0.0, np.random.default_rng(0))

    affine = exam.grid.affine
    straight = nib.orientations.inv_ornt_aff(nib.io_orientation(affine), exam.grid.shape)
    straight = np.linalg.inv(straight)[:3, :3]
    turn = affine[:3, :3] / exam.grid.spacing_mm @ np.linalg.inv(straight)
    assert "".join(nib.aff2axcodes(affine)) == AXES[hospital]
    np.testing.assert_allclose(exam.grid.spacing_mm, SPACINGS[hospital])
    assert angle_deg(turn) == pytest.approx(OBLIQUE[hospital], abs=1e-6)
    assert min(np.array(exam.grid.shape) * exam.grid.spacing_mm) > 180  # a whole head fits


def test_coarser_spacing_leaves_thick_slices_and_axes_as_they_are() -> None:
    exams = {name: draw_exam(SCANNERS[name], 2.5, 0.0, np.random.default_rng(0)) for name in "ABC"}

    np.testing.assert_allclose(exams["A"].grid.spacing_mm, (2.5, 2.5, 2.5))
    np.testing.assert_allclose(exams["B"].grid.spacing_mm, (2.5, 2.5, 6))
    np.testing.assert_allclose(exams["C"].grid.spacing_mm, (2.5, 2.5, 2.5))
    assert "".join(nib.aff2axcodes(exams["C"].grid.affine)) == "PSR"


def test_head_lies_a_few_millimetres_off_the_isocentre() -> None:
    generator = np.random.default_rng(0)
    exams = [draw_exam(SCANNERS["A"], None, 0.0, generator) for _ in range(300)]

    shifts = np.array([exam.to_scanner(np.zeros(3), "t1ce") for exam in exams])

    assert shifts.std() == pytest.approx(4.0, abs=0.3)
    assert np.abs(shifts).max() <= 8.0


def test_gains_are_lognormal_and_differ_between_the_images_of_an_exam() -> None:
    generator = np.random.default_rng(0)
    gains = [draw_exam(SCANNERS["A"], None, 0.0, generator).gains for _ in range(300)]

    logs = np.log([[gain[name] for name in ("t1", "t2", "t1ce")] for gain in gains])

    assert logs.std() == pytest.approx(GAIN_SD, abs=0.01)
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.2


def test_misregistration_moves_t1_and_t2_against_t1ce_within_the_limits() -> None:
    generator = np.random.default_rng(0)
    exams = [draw_exam(SCANNERS["A"], None, 3.0, generator) for _ in range(100)]

    motions = [np.linalg.inv(exam.poses["t1ce"]) @ exam.poses[name] for exam in exams for name in ("t1", "t2")]
    shifts = [float(np.linalg.norm(motion[:3, 3])) for motion in motions]
    angles = [angle_deg(motion[:3, :3]) for motion in motions]
    assert 1.0 < np.mean(shifts) < 2.0
    assert max(shifts) <= 3.0
    assert 0.6 < np.mean(angles) < 1.4
    assert max(angles) <= 2.0


def test_misregistered_image_shows_the_head_elsewhere() -> None:
    head = draw_head(np.random.default_rng(1))
    still = draw_exam(SCANNERS["A"], 4.0, 0.0, np.random.default_rng(2))
    moved = replace(still, poses={**still.poses, "t2": still.poses["t2"] @ shift_along_x(8.0)})

    def center_of_head(exam: Exam) -> float:
        taken = take_images(SCANNERS["A"], exam, head, None, sequences=["t2"], generator=np.random.default_rng(3))["t2"]
        return float(np.mean(np.nonzero(taken > 0.3 * SCANNERS["A"].scale)[0]) * 4.0)

    # The pose says where in the head a point of the scanner lies: the picture moves the other way.
    assert center_of_head(moved) - center_of_head(still) == pytest.approx(-8.0, abs=0.5)


def shift_along_x(mm: float) -> Array:
    motion = np.eye(4)
    motion[0, 3] = mm
    return motion


@pytest.mark.parametrize("hospital", ["A", "F"])
def test_noise_is_rician_with_the_scanner_s_snr(hospital: str) -> None:
    scanner = replace(SCANNERS[hospital], bias=0.0)
    head, exam = draw_head(np.random.default_rng(1)), draw_exam(scanner, 3.0, 0.0, np.random.default_rng(1))

    first, second = (take(scanner, exam, head, "t1", seed=seed).astype(float) for seed in (2, 3))

    sd = scanner.scale * exam.gains["t1"] / scanner.snr
    air = first[:6, :6]
    # Rayleigh: the mean is sd * sqrt(pi / 2), the standard deviation sd * sqrt(2 - pi / 2).
    assert air.mean() == pytest.approx(sd * np.sqrt(np.pi / 2), rel=0.05)
    assert air.std() == pytest.approx(sd * np.sqrt(2 - np.pi / 2), rel=0.05)
    bright = (first + second) / 2 > 8 * sd
    assert (first - second)[bright].std() == pytest.approx(np.sqrt(2) * sd, rel=0.03)


@pytest.mark.parametrize("hospital", ["A", "E", "F"])
def test_white_matter_is_stored_at_the_scanner_s_scale_times_the_gain(hospital: str) -> None:
    scanner = replace(SCANNERS[hospital], bias=0.0, snr=1e6)
    head, exam = draw_head(np.random.default_rng(1)), draw_exam(scanner, 3.0, 0.0, np.random.default_rng(1))

    image = take(scanner, exam, head, "t1")

    white = round(scanner.scale * exam.gains["t1"])
    middle = image[16:-16, 16:-16, image.shape[2] // 3 : -image.shape[2] // 3]
    values, counts = np.unique(middle, return_counts=True)
    assert abs(int(values[counts.argmax()]) - white) <= 1


def test_bias_shades_the_image_smoothly() -> None:
    scanner = replace(SCANNERS["C"], snr=1e6)
    head, exam = draw_head(np.random.default_rng(1)), draw_exam(scanner, 4.0, 0.0, np.random.default_rng(2))

    shaded, plain = (take(one, exam, head, "t2").astype(float) for one in (scanner, replace(scanner, bias=0.0)))

    inside = plain > 1000
    shade = np.log(np.where(inside, shaded, 1) / np.where(inside, plain, 1))
    steps = np.abs(np.diff(shade, axis=0))[inside[1:] & inside[:-1]]
    assert 0.05 < shade[inside].std() < 0.6
    assert steps.max() < 0.06


def take(scanner: Scanner, exam: Exam, head: Head, sequence: str, seed: int = 0) -> Stored:
    generator = np.random.default_rng(seed)
    return take_images(scanner, exam, head, None, sequences=[sequence], generator=generator)[sequence]


def test_missing_rates_are_those_of_the_hospital() -> None:
    generator = np.random.default_rng(0)

    draws = [present_sequences(HOSPITALS["D"], 0, PhantomOptions(), generator) for _ in range(8000)]

    absent = {name: np.mean([name not in draw for draw in draws]) for name in ("t1", "t2", "t1ce")}
    assert absent == pytest.approx({"t1": 0.05, "t2": 0.15, "t1ce": 0.05}, abs=0.012)
    assert all(draws)


def test_tiny_hospital_never_has_t2() -> None:
    generator = np.random.default_rng(0)

    draws = {present_sequences(HOSPITALS["F"], 1, PhantomOptions(), generator) for _ in range(50)}

    assert draws == {("t1", "t1ce")}


def test_label_correlated_missingness_takes_t1ce_from_necrosis() -> None:
    options = PhantomOptions(label_correlated_missingness=True)
    generator = np.random.default_rng(0)

    absent = [
        np.mean(["t1ce" not in present_sequences(HOSPITALS["B"], label, options, generator) for _ in range(12000)])
        for label in (0, 1)
    ]

    assert absent[0] == pytest.approx(0.07, abs=0.008)
    assert absent[1] == pytest.approx(0.112, abs=0.01)


@pytest.mark.parametrize(
    ("hospital", "num_patients", "num_necrosis"),
    [("A", 120, 22), ("B", 60, 7), ("C", 45, 16), ("D", 30, 8), ("E", 24, 2), ("F", 10, 3), ("E", 4, 1), ("C", 2, 1)],
)
def test_count_of_necrosis_is_the_rounded_share_and_never_nothing(
    hospital: str, num_patients: int, num_necrosis: int
) -> None:
    labels = draw_labels(HOSPITALS[hospital], num_patients, PhantomOptions(seed=7))

    assert sum(labels) == num_necrosis
    assert len(labels) == num_patients


def test_streams_differ_in_everything_that_names_them() -> None:
    names = [(0, "A", "head", 0), (1, "A", "head", 0), (0, "B", "head", 0), (0, "A", "look", 0), (0, "A", "head", 1)]

    first = {name: random_stream(*name).random() for name in names}

    assert len(set(first.values())) == len(names)
    assert random_stream(0, "A", "head", 0).random() == first[0, "A", "head", 0]
