"""From NIfTI files to arrays: what is refused, and that the world's geometry is kept on any grid."""

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from client.preprocessing.grid import Grid, resample
from client.preprocessing.head import block_means, fill_holes, find_head
from client.preprocessing.pipeline import Z_LIMIT, ExamFiles, prepare_exam
from client.preprocessing.volume import Volume, read_volume
from common.errors import DataError
from common.study import PreprocessingSpec, Sequence

Array = npt.NDArray[np.float64]
SEQUENCES: tuple[Sequence, ...] = ("t1", "t2", "t1ce")
SPEC = PreprocessingSpec(spacing_mm=(4.0, 4.0, 4.0), size_voxels=(17, 17, 17), crop="lesion")
LESION = (24.0, 8.0, 4.0)


def spaced(*mm: float) -> Array:
    return np.diag([*mm, 1.0])


def turned(degrees: float) -> Array:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])
    about_z = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    both: Array = about_z @ about_x
    return both


def centred(affine: Array, shape: tuple[int, int, int], middle: tuple[float, float, float] = (0, 0, 0)) -> Array:
    """The affine moved so that the grid's middle lies at a point of the world."""
    moved = affine.copy()
    moved[:3, 3] = np.array(middle) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return moved


def scanned(affine: Array, shape: tuple[int, int, int], *, lesion: tuple[float, float, float] = LESION) -> Array:
    """A head of radius 80 mm, 1000 bright, with a smooth bright spot of 8 mm (sd) about the lesion."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    spot = np.exp(-((world - np.array(lesion)) ** 2).sum(axis=-1) / (2 * 8.0**2))
    values: Array = 1000.0 * (np.linalg.norm(world, axis=-1) < 80) + 2000 * spot
    return values


def nifti(values: npt.NDArray[np.generic], affine: Array, *, zipped: bool = False) -> bytes:
    data: bytes = nibabel.Nifti1Image(values, affine).to_bytes()
    return gzip.compress(data, mtime=0) if zipped else data


def middle_of_spot(channel: npt.NDArray[np.float32]) -> Array:
    """Indices of the middle of what is brighter than the head."""
    bright = np.where(channel > 1.5, channel, 0).astype(np.float64)
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in channel.shape), indexing="ij"))
    middle: Array = (indices * bright).sum(axis=(1, 2, 3)) / bright.sum()
    return middle


PLAIN = centred(spaced(4, 4, 4), (50, 50, 50))
GRIDS = {
    "RAS": (PLAIN, (50, 50, 50)),
    "LPS": (centred(spaced(-4, -4, 4), (50, 50, 50), (3, -5, 1)), (50, 50, 50)),
    "PSR": (centred(np.array([[0, 0, 4.0, 0], [-4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 1]]), (50, 48, 46)), (50, 48, 46)),
    "oblique 15 degrees": (centred(turned(15) @ spaced(3, 4, 3), (60, 50, 60)), (60, 50, 60)),
    "thick slices": (centred(spaced(1.5, 1.5, 6), (120, 120, 30)), (120, 120, 30)),
    "oblique thick slices": (centred(turned(12) @ spaced(-1.5, -1.5, 6), (120, 120, 30)), (120, 120, 30)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_point_of_the_world_lands_at_the_same_voxel_from_any_grid(name: str) -> None:
    affine, shape = GRIDS[name]
    data = nifti(scanned(affine, shape).astype(np.float32), affine)
    away = (LESION[0] - 12.0, LESION[1] + 8.0, LESION[2])

    exam = prepare_exam(ExamFiles("e", {"t1": data}, lesion_point=away), SPEC, ("t1",))

    np.testing.assert_allclose(
        middle_of_spot(exam.image[0]), [8 + 3, 8 - 2, 8], atol=0.2
    )  # 12 mm right, 8 mm back of the centre


def test_sequences_on_different_grids_end_on_one() -> None:
    names = ("RAS", "oblique thick slices", "PSR")
    volumes: dict[Sequence, bytes] = {
        sequence: nifti(scanned(*GRIDS[name]).astype(np.float32), GRIDS[name][0])
        for sequence, name in zip(SEQUENCES, names, strict=True)
    }

    exam = prepare_exam(ExamFiles("e", volumes, lesion_point=LESION), SPEC, SEQUENCES)

    assert exam.image.shape == (3, 17, 17, 17)
    for channel in exam.image:
        np.testing.assert_allclose(middle_of_spot(channel), [8, 8, 8], atol=0.2)


def test_resampling_onto_the_own_grid_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    volume = Volume(values, centred(spaced(2, 3, 4), (9, 8, 7), (5, 6, 7)))

    again = resample(volume, Grid((5.0, 6.0, 7.0), (2.0, 3.0, 4.0), (9, 8, 7)), outside=0.0)

    np.testing.assert_allclose(again, values, atol=1e-5)


def test_what_lies_outside_the_volume_gets_the_value_that_is_asked_for() -> None:
    volume = Volume(np.full((6, 6, 6), 7, dtype=np.float32), centred(spaced(2, 2, 2), (6, 6, 6)))

    near = resample(volume, Grid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (20, 4, 4)), outside=-1.0)
    far = resample(volume, Grid((900.0, 0.0, 0.0), (2.0, 2.0, 2.0), (4, 4, 4)), outside=-1.0)

    assert near[0, 0, 0] == -1
    assert near[10, 2, 2] == pytest.approx(7)
    assert (far == -1).all()


def test_noise_of_a_fine_grid_is_averaged_and_not_picked() -> None:
    noise = np.random.default_rng(0).normal(size=(120, 120, 20)).astype(np.float32)
    volume = Volume(noise, centred(spaced(0.5, 0.5, 5), (120, 120, 20)))

    coarse = resample(volume, Grid((0.0, 0.0, 0.0), (3.0, 3.0, 3.0), (16, 16, 16)), outside=0.0)

    assert coarse.std() < 0.3


def test_z_scores_have_mean_zero_and_sd_one_inside_the_head() -> None:
    whole = PreprocessingSpec(spacing_mm=(4.0, 4.0, 4.0), size_voxels=(60, 60, 60), crop="head")
    rng = np.random.default_rng(0)
    ramp = scanned(PLAIN, (50, 50, 50)) * np.linspace(0.3, 1.7, 50)[:, None, None] + rng.normal(0, 5, (50, 50, 50))
    data = nifti(np.abs(ramp).astype(np.float32), PLAIN)

    exam = prepare_exam(ExamFiles("e", {"t1": data}), whole, ("t1",))

    world = Grid((0.0, 0.0, 0.0), whole.spacing_mm, whole.size_voxels)
    axes = [np.arange(n) * 4 + world.affine[axis, 3] for axis, n in enumerate(world.shape)]
    head = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0) < 76
    assert exam.centre == pytest.approx((0, 0, 0), abs=4)
    assert exam.image[0][head].mean() == pytest.approx(0, abs=0.1)
    assert exam.image[0][head].std() == pytest.approx(1, abs=0.1)
    assert np.abs(exam.image).max() <= Z_LIMIT


@pytest.mark.parametrize("gain", [0.01, 50.0])
def test_a_scanners_gain_has_no_influence(gain: float) -> None:
    values = scanned(PLAIN, (50, 50, 50)) + np.random.default_rng(0).random((50, 50, 50))
    plain, loud = (
        prepare_exam(
            ExamFiles("e", {"t1": nifti((values * factor).astype(np.float32), PLAIN)}, lesion_point=LESION),
            SPEC,
            ("t1",),
        )
        for factor in (1.0, gain)
    )

    np.testing.assert_allclose(loud.image, plain.image, atol=1e-3)


def test_an_absent_sequence_is_a_channel_of_zeros() -> None:
    data = nifti(scanned(PLAIN, (50, 50, 50)).astype(np.float32), PLAIN)
    spec = SPEC.model_copy(update={"missing_sequence": "zero_fill"})

    exam = prepare_exam(ExamFiles("e", {"t1": data}, lesion_point=LESION), spec, ("t1", "t2"))

    assert exam.image[0].any()
    assert not exam.image[1].any()


def test_a_mask_gives_the_centre_in_world_coordinates() -> None:
    affine = centred(spaced(-2, -2, 5), (90, 90, 36))
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in (90, 90, 36)), indexing="ij"), axis=-1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    mask = nifti((np.linalg.norm(world - np.array(LESION), axis=-1) < 12).astype(np.uint8), affine)
    data = nifti(scanned(PLAIN, (50, 50, 50)).astype(np.float32), PLAIN)

    exam = prepare_exam(ExamFiles("e", {"t1": data}, lesion_mask=mask), SPEC, ("t1",))

    assert exam.centre_source == "mask"
    assert exam.centre == pytest.approx(LESION, abs=0.5)


def test_every_value_of_a_mask_but_zero_is_the_lesion() -> None:
    values = np.zeros((50, 50, 50), dtype=np.float32)
    values[30, 26, 25] = 0.25
    data = nifti(scanned(PLAIN, (50, 50, 50)).astype(np.float32), PLAIN)

    exam = prepare_exam(ExamFiles("e", {"t1": data}, lesion_mask=nifti(values, PLAIN)), SPEC, ("t1",))

    assert exam.centre == pytest.approx(((30 - 24.5) * 4, (26 - 24.5) * 4, (25 - 24.5) * 4))


@pytest.mark.parametrize(
    ("marked", "affine", "message"),
    [
        pytest.param((), PLAIN, "patient 7: lesion_mask: every voxel is 0", id="empty"),
        pytest.param(
            (30, 26, 25),
            centred(spaced(4, 4, 4), (50, 50, 50), (0, 400, 0)),
            r"patient 7: the middle of lesion_mask \[22.0, 406.0, 2.0\] lies outside every volume",
            id="in another space",
        ),
    ],
)
def test_an_unfit_mask_is_refused(marked: tuple[int, ...], affine: Array, message: str) -> None:
    values = np.zeros((50, 50, 50), dtype=np.float32)
    if marked:
        values[marked] = 1
    data = nifti(scanned(PLAIN, (50, 50, 50)).astype(np.float32), PLAIN)

    with pytest.raises(DataError, match=message):
        prepare_exam(ExamFiles("patient 7", {"t1": data}, lesion_mask=nifti(values, affine)), SPEC, ("t1",))


def test_a_point_outside_every_volume_is_refused() -> None:
    data = nifti(scanned(PLAIN, (50, 50, 50)).astype(np.float32), PLAIN)

    with pytest.raises(DataError, match=r"patient 7: the lesion's point \[24.0, 240.0, 4.0\] lies outside .*LPS"):
        prepare_exam(ExamFiles("patient 7", {"t1": data}, lesion_point=(24, 240, 4)), SPEC, ("t1",))


def test_without_point_mask_and_t1ce_the_study_decides() -> None:
    data = nifti(scanned(PLAIN, (50, 50, 50)).astype(np.float32), PLAIN)

    with pytest.raises(DataError, match="the lesion has to be found from t1 and t1ce, and one is missing"):
        prepare_exam(ExamFiles("e", {"t1": data}), SPEC, ("t1",))


def test_a_volume_without_a_head_is_refused() -> None:
    speck = np.zeros((40, 40, 40), dtype=np.float32)
    speck[20:23, 20:23, 20:23] = 100

    with pytest.raises(DataError, match="e: t1: no head stands out"):
        prepare_exam(ExamFiles("e", {"t1": nifti(speck, PLAIN)}, lesion_point=LESION), SPEC, ("t1",))


def test_the_head_is_filled_where_it_is_dark_and_holds_no_air() -> None:
    affine, shape = PLAIN, (50, 50, 50)
    values = scanned(affine, shape)
    values[22:28, 22:28, 22:28] = 0  # a cavity
    values += np.abs(np.random.default_rng(0).normal(0, 40, shape))

    head = find_head(Volume(values.astype(np.float32), affine), name="e")

    truth = scanned(affine, shape) >= 1000
    assert head.mask[25, 25, 25]
    overlap = 2 * (head.mask & truth).sum() / (head.mask.sum() + truth.sum())
    assert overlap > 0.98


def test_block_means_keep_the_place_in_the_world() -> None:
    volume = Volume(scanned(*GRIDS["oblique thick slices"]).astype(np.float32), GRIDS["oblique thick slices"][0])

    coarse = block_means(volume, 3.0)

    assert coarse.shape == (60, 60, 30)
    brightest = np.unravel_index(coarse.values.argmax(), coarse.shape)
    np.testing.assert_allclose(coarse.to_world(np.array(brightest)), LESION, atol=4)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(4, 23)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.4, 0.5, 1.0, 2.0, 5.0])] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_block_means_are_numpys_to_the_last_bit(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> None:
    values = np.random.default_rng(seed).normal(500, 300, shape).astype(np.float32)

    blocks = block_means(Volume(np.asfortranarray(values), spaced(*spacing)), 3.0).values

    factors = np.minimum(np.maximum(1, np.rint(3.0 / np.array(spacing))).astype(int), shape)
    expected = values
    for axis, factor in enumerate(factors):
        num = shape[axis] // factor
        expected = expected.take(range(num * factor), axis=axis)
        expected = expected.reshape(*expected.shape[:axis], num, factor, *expected.shape[axis + 1 :])
        expected = expected.mean(axis=axis + 1, dtype=np.float32)
    np.testing.assert_allclose(blocks, expected, rtol=3e-7 if max(factors) > 7 else 0)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    share=st.sampled_from([0.0, 0.4, 0.6, 0.8, 1.0]),
    upwards=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_holes_are_those_that_scipy_fills(shape: tuple[int, int, int], share: float, upwards: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < share

    slices = fill_holes(mask, [axis for axis in range(3) if axis != upwards])
    whole = fill_holes(mask, [0, 1, 2])

    expected = np.stack([ndimage.binary_fill_holes(part) for part in np.moveaxis(mask, upwards, 0)])
    np.testing.assert_array_equal(slices, np.moveaxis(expected, 0, upwards))
    np.testing.assert_array_equal(whole, ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("name", GRIDS)
def test_default_settings_give_the_bytes_of_the_plain_steps(name: str) -> None:
    affine, shape = GRIDS[name]
    rng = np.random.default_rng(0)
    data = nifti((scanned(affine, shape) + np.abs(rng.normal(0, 20, shape))).astype(np.int16), affine, zipped=True)

    exam = prepare_exam(ExamFiles("e", {"t1": data}, lesion_point=LESION), SPEC, ("t1", "t2"))

    volume = read_volume(data, name="e")
    head = find_head(volume, name="e")
    values = resample(volume, Grid(LESION, SPEC.spacing_mm, SPEC.size_voxels), outside=head.mean)
    scores = np.clip((values - head.mean) / head.std, -Z_LIMIT, Z_LIMIT)
    plain = np.stack([scores, np.zeros_like(scores)])
    assert hashlib.sha256(exam.image.tobytes()).hexdigest() == hashlib.sha256(plain.tobytes()).hexdigest()


Break = Callable[[npt.NDArray[np.float32]], bytes]


QFORM_CODE, SFORM_CODE, SROW_Y, SROW_Z = 252, 254, 296, 312
"""Where the fields of a NIfTI-1 header begin; nibabel itself does not write an unsound header."""


def _without_codes(values: npt.NDArray[np.float32]) -> bytes:
    data = bytearray(nifti(values, PLAIN))
    data[QFORM_CODE : SFORM_CODE + 2] = bytes(4)
    return bytes(data)


def _with_nan(values: npt.NDArray[np.float32]) -> bytes:
    values[10:12, 10, 10] = np.nan
    return nifti(values, PLAIN)


def _disagreeing(values: npt.NDArray[np.float32]) -> bytes:
    image = nibabel.Nifti1Image(values, PLAIN)
    image.set_qform(centred(spaced(4, 4, 4), (50, 50, 50), (3, 0, 0)), code=1)
    image.set_sform(PLAIN, code=1)
    data: bytes = image.to_bytes()
    return data


def _placed_slice(values: npt.NDArray[np.float32]) -> bytes:
    image = nibabel.Nifti1Image(values[..., 0], PLAIN)
    image.set_qform(PLAIN, code=1)
    image.set_sform(PLAIN, code=1)
    data: bytes = image.to_bytes()
    return data


def _singular(values: npt.NDArray[np.float32]) -> bytes:
    data = bytearray(nifti(values, PLAIN))
    data[SROW_Z : SROW_Z + 16] = data[SROW_Y : SROW_Y + 16]
    return bytes(data)


def _flipped_byte(values: npt.NDArray[np.float32]) -> bytes:
    data = bytearray(nifti(values, PLAIN, zipped=True))
    data[-6] ^= 1  # in the checksum: the voxels themselves are whole
    return bytes(data)


def _colour(values: npt.NDArray[np.float32]) -> bytes:
    rgb = np.zeros(values.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nifti(rgb, PLAIN)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        pytest.param(lambda v: b"", "is empty", id="no bytes"),
        pytest.param(lambda v: b"DICM" * 200, "is not a readable NIfTI file", id="another format"),
        pytest.param(lambda v: nifti(v, PLAIN)[:-1000], "cannot be read|not a readable", id="cut short"),
        pytest.param(lambda v: nifti(v, PLAIN, zipped=True)[:-4], "damaged or cut short", id="gzip trailer cut"),
        pytest.param(_flipped_byte, "damaged or cut short.*CRC", id="gzip checksum"),
        pytest.param(_with_nan, "holds 2 voxels that are NaN", id="NaN"),
        pytest.param(lambda v: nifti(v * 0 + 3, PLAIN), "every voxel is 3", id="constant"),
        pytest.param(lambda v: nifti(np.stack([v, v], -1), PLAIN), "expected one 3D volume", id="4D"),
        pytest.param(lambda v: nifti(v[..., 0], PLAIN), "expected one 3D volume", id="2D"),
        pytest.param(_placed_slice, "expected one 3D volume", id="2D with sform and qform"),
        pytest.param(_colour, "colour or complex", id="RGB"),
        pytest.param(lambda v: nifti(v.astype(np.complex64), PLAIN), "colour or complex", id="complex"),
        pytest.param(_without_codes, "codes are both 0", id="no codes"),
        pytest.param(_singular, "affine is singular", id="singular"),
        pytest.param(lambda v: nifti(v, PLAIN / 1000 + np.diag([0, 0, 0, 0.999])), "units of metres", id="metres"),
        pytest.param(_disagreeing, "up to 3.0 mm apart", id="sform and qform"),
    ],
)
def test_an_unfit_file_is_refused_by_its_name(broken: Break, message: str) -> None:
    data = broken(scanned(PLAIN, (50, 50, 50)).astype(np.float32))

    with pytest.raises(DataError, match=f"(?s)^patient 7: t1: .*({message})"):
        read_volume(data, name="patient 7: t1")


def test_a_fourth_axis_of_one_is_dropped() -> None:
    values = scanned(PLAIN, (50, 50, 50)).astype(np.float32)

    volume = read_volume(nifti(values[..., None], PLAIN, zipped=True), name="e")

    np.testing.assert_array_equal(volume.values, values)


def test_integers_are_read_with_their_scale(tmp_path: Path) -> None:
    values = scanned(PLAIN, (50, 50, 50))
    image = nibabel.Nifti1Image(values, PLAIN)
    image.set_data_dtype(np.int16)

    volume = read_volume(image.to_bytes(), name="e")

    np.testing.assert_allclose(volume.values, values, atol=0.1)
