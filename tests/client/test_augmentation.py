"""Augmentation: what it may change and by how much."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from client.augmentation import augment, moved_places
from common.study import AugmentationSpec

OFF = {
    "flip_probability": 0.0,
    "rotation_degrees": 0.0,
    "scaling": 0.0,
    "translation_mm": 0.0,
    "intensity": 0.0,
    "noise": 0.0,
    "drop_sequence": 0.0,
}
SPACING = (2.0, 2.0, 2.0)


def only(**changes: float) -> AugmentationSpec:
    return AugmentationSpec.model_validate({**OFF, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_batch(num_exams: int = 4, size: int = 12) -> Tensor:
    return torch.randn(num_exams, 3, size, size, size, generator=generator(9))


def smooth_batch(num_exams: int = 6, size: int = 24) -> Tensor:
    """A blob per volume, off the middle by 4 voxels along the first axis and 2 along the second."""
    axis = torch.arange(size) - (size - 1) / 2
    d, h, w = torch.meshgrid(axis, axis, axis, indexing="ij")
    blob = torch.exp(-((d - 4) ** 2 + (h - 2) ** 2 + w**2) / 18)
    return blob.expand(num_exams, 1, size, size, size).clone()


def middle_of(volume: Tensor) -> Tensor:
    """Centre of mass in voxels from the middle; shape (D, H, W) to (3,)."""
    size = volume.shape[0]
    axis = torch.arange(size, dtype=volume.dtype) - (size - 1) / 2
    grids = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    return (grids * volume).sum(dim=(1, 2, 3)) / volume.sum()


def test_a_spec_of_zeros_changes_no_bit() -> None:
    batch = a_batch()

    assert torch.equal(augment(batch, only(), spacing_mm=SPACING, generator=generator()), batch)


def test_the_same_generator_gives_the_same_batch_and_the_input_stays() -> None:
    batch, spec = a_batch(), AugmentationSpec(drop_sequence=0.5)
    before = batch.clone()

    first = augment(batch, spec, spacing_mm=SPACING, generator=generator())
    second = augment(batch, spec, spacing_mm=SPACING, generator=generator())
    other = augment(batch, spec, spacing_mm=SPACING, generator=generator(1))

    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(batch, before)
    assert first.shape == batch.shape


def test_certain_flips_mirror_all_three_axes() -> None:
    batch = a_batch()

    flipped = augment(batch, only(flip_probability=1.0), spacing_mm=SPACING, generator=generator())

    assert torch.equal(flipped, batch.flip(2, 3, 4))


def test_flips_keep_the_sequences_of_an_exam_together() -> None:
    batch = a_batch(16)[:, :1].repeat(1, 3, 1, 1, 1)

    flipped = augment(batch, only(flip_probability=0.5), spacing_mm=SPACING, generator=generator())

    assert torch.equal(flipped[:, 0], flipped[:, 2])
    assert len({tuple(exam.flatten()[:5].tolist()) for exam in flipped}) > 4


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 2.0, 4.0)])
def test_a_shift_stays_within_its_bound_in_millimetres(spacing: tuple[float, float, float]) -> None:
    batch = smooth_batch()

    moved = augment(batch, only(translation_mm=4.0), spacing_mm=spacing, generator=generator())

    shifts = torch.stack([middle_of(exam[0]) - middle_of(batch[0, 0]) for exam in moved]) * torch.tensor(spacing)
    assert shifts.abs().max() <= 4.2
    assert shifts.abs().max() > 1.5


def test_a_rotation_keeps_the_distance_from_the_middle() -> None:
    batch = smooth_batch()

    turned = augment(batch, only(rotation_degrees=30.0), spacing_mm=SPACING, generator=generator())

    middles = torch.stack([middle_of(exam[0]) for exam in turned])
    torch.testing.assert_close(
        middles.norm(dim=1), middle_of(batch[0, 0]).norm().expand(len(middles)), atol=0.15, rtol=0
    )
    assert (middles - middle_of(batch[0, 0])).norm(dim=1).max() > 0.5


def test_a_rotation_is_one_of_the_world_where_voxels_are_not_cubes() -> None:
    spacing = (1.0, 1.0, 3.0)
    batch = smooth_batch()

    turned = augment(batch, only(rotation_degrees=25.0), spacing_mm=spacing, generator=generator())

    mm = torch.tensor(spacing)
    middles = torch.stack([middle_of(exam[0]) * mm for exam in turned])
    wanted = (middle_of(batch[0, 0]) * mm).norm().expand(len(middles))
    torch.testing.assert_close(middles.norm(dim=1), wanted, atol=0.3, rtol=0)


def test_scaling_moves_points_outwards_or_inwards_by_at_most_its_bound() -> None:
    batch = smooth_batch()

    scaled = augment(batch, only(scaling=0.2), spacing_mm=SPACING, generator=generator())

    ratios = torch.stack([middle_of(exam[0]).norm() for exam in scaled]) / middle_of(batch[0, 0]).norm()
    assert ratios.min() >= 1 / 1.21
    assert ratios.max() <= 1 / 0.79
    assert ratios.std() > 0.03


def test_intensity_is_one_gain_and_one_shift_per_volume() -> None:
    batch = a_batch()

    changed = augment(batch, only(intensity=0.2), spacing_mm=SPACING, generator=generator())

    for before, after in zip(batch.flatten(0, 1), changed.flatten(0, 1), strict=True):
        gain = (after.max() - after.min()) / (before.max() - before.min())
        shift = (after - gain * before).mean()
        assert 0.8 <= gain <= 1.2
        assert abs(shift) <= 0.2
        torch.testing.assert_close(after, gain * before + shift, atol=1e-5, rtol=0)


def test_noise_stays_within_its_bound() -> None:
    batch = a_batch()

    added = augment(batch, only(noise=0.3), spacing_mm=SPACING, generator=generator()) - batch

    sds = added.flatten(2).std(dim=2)
    assert sds.max() < 0.31
    assert sds.max() > 0.1


def test_an_absent_sequence_stays_absent() -> None:
    batch = a_batch()
    batch[:, 1] = 0

    changed = augment(batch, AugmentationSpec(drop_sequence=0.9), spacing_mm=SPACING, generator=generator())

    assert not changed[:, 1].any()


def test_a_dropped_sequence_leaves_at_least_one() -> None:
    batch = a_batch(64, 4)
    batch[:32, :2] = 0

    changed = augment(batch, only(drop_sequence=0.9), spacing_mm=SPACING, generator=generator())

    left = changed.flatten(2).any(dim=2).sum(dim=1)
    assert (left[:32] == 1).all()
    assert set(left[32:].tolist()) == {2, 3}


@pytest.mark.parametrize("shape", [(1, 3, 16, 16, 16), (8, 3, 20, 31, 24)], ids=str)
def test_voxels_move_as_affine_grid_moves_them_bit_by_bit(shape: tuple[int, ...]) -> None:
    theta = torch.eye(3, 4) + 0.1 * torch.randn(shape[0], 3, 4, generator=generator())

    grid = moved_places(theta, torch.Size(shape[2:]))

    assert torch.equal(grid, functional.affine_grid(theta, list(shape), align_corners=True))


def test_sequence_that_is_zero_in_the_middle_plane_alone_is_not_absent() -> None:
    batch = a_batch()
    batch[1, 2, 6] = 0

    changed = augment(batch, only(intensity=0.2), spacing_mm=SPACING, generator=generator())

    assert changed[1, 2].any()
