"""Fields evaluated by products are the fields themselves."""

import numpy as np
import pytest

from simulations.phantom.grid import Array, Block, Waves, draw_waves, ramp


@pytest.fixture
def block() -> Block:
    """A sheared, turned grid of a few voxels."""
    affine = np.array([[0.9, -0.2, 0.5, -30.0], [0.3, 1.1, 0.1, 12.0], [-0.1, 0.2, 2.9, -8.0], [0, 0, 0, 1]])
    return Block(affine, np.arange(7.0), np.arange(3.0, 9.0), np.array([0.0, 0.5, 2.0, 2.5]))


def points(block: Block) -> Array:
    """Millimetres of every voxel; shape (k, j, i, 3)."""
    k, j, i = np.meshgrid(block.k, block.j, block.i, indexing="ij")
    return np.asarray(np.stack([i, j, k], axis=-1) @ block.affine[:3, :3].T + block.affine[:3, 3])


def field(waves: Waves, at: Array) -> Array:
    return np.asarray(waves.amplitude * np.cos(at @ waves.vectors.T + waves.phases).sum(-1))


def test_coordinate_is_the_position_along_an_axis(block: Block) -> None:
    for axis in range(3):
        np.testing.assert_allclose(block.coordinate(axis), points(block)[..., axis], atol=1e-4)


def test_quadric_is_a_squared_length(block: Block) -> None:
    matrix, center = np.array([[0.1, 0.02, 0], [0, 0.2, 0.1], [0.3, 0, 0.1]]), np.array([-20.0, 15.0, -5.0])

    expected = (((points(block) - center) @ matrix.T) ** 2).sum(-1)

    np.testing.assert_allclose(block.quadric(matrix, center), expected, atol=1e-4)


def test_waves_are_a_sum_of_cosines_with_their_slope(block: Block) -> None:
    waves = draw_waves(np.random.default_rng(0), 14.0, 30.0)

    value, slope = block.waves_and_slope(waves)

    at, step = points(block), 1e-3
    gradient = [(field(waves, at + d) - field(waves, at - d)) / (2 * step) for d in step * np.eye(3)]
    np.testing.assert_allclose(value, field(waves, at), atol=1e-4)
    np.testing.assert_allclose(block.waves(waves), field(waves, at), atol=1e-4)
    np.testing.assert_allclose(slope, np.linalg.norm(gradient, axis=0), atol=1e-4)


def test_waves_have_mean_zero_variance_one_and_the_wanted_lengths() -> None:
    generator = np.random.default_rng(0)
    at = generator.uniform(-500, 500, (2000, 3))
    waves = [draw_waves(generator, 14.0, 30.0) for _ in range(20)]

    values = np.concatenate([field(one, at) for one in waves])
    lengths = np.concatenate([2 * np.pi / np.linalg.norm(one.vectors, axis=1) for one in waves])

    assert values.mean() == pytest.approx(0.0, abs=0.05)
    assert values.var() == pytest.approx(1.0, abs=0.05)
    assert 14.0 <= lengths.min() < lengths.max() <= 30.0


def test_box_holds_every_voxel_between_the_corners(block: Block) -> None:
    lower, upper = np.array([-29.0, 14.0, -8.0]), np.array([-26.0, 19.0, -1.0])
    at = points(block)
    wanted = np.minimum(at - lower, upper - at).min(axis=-1) >= 0

    box = block.box(lower, upper)

    assert box is not None
    assert wanted.any()
    assert wanted[box].sum() == wanted.sum()
    assert block.crop(box).shape == wanted[box].shape


def test_box_far_away_holds_nothing(block: Block) -> None:
    assert block.box([500.0, 500.0, 500.0], [510.0, 510.0, 510.0]) is None


def test_ramp_is_half_at_the_surface_and_linear_over_its_width() -> None:
    distance = np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], np.float32)

    np.testing.assert_allclose(ramp(distance, 2.0), [1, 1, 0.75, 0.5, 0.25, 0, 0])
