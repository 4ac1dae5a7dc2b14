"""Planes, quadrics and sums of cosines on any voxel grid, exact and at the price of a matrix product.

On an affine grid a coordinate is a_i + b_j + c_k. A plane wave and a quadric then have a low rank over (k, j) x i, so
one small product replaces a transcendental function or a square per voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Waves:
    """A smooth random field of mean 0 and variance 1: a sum of plane waves.

    Attributes:
        vectors: Wave vectors in rad/mm; shape (N, 3).
        phases: Phases in rad; shape (N,).
    """

    vectors: Array
    phases: Array

    @property
    def amplitude(self) -> float:
        """Height of each wave such that the sum has variance 1."""
        return float(np.sqrt(2.0 / len(self.phases)))


def draw_waves(generator: np.random.Generator, shortest_mm: float, longest_mm: float, num_waves: int = 10) -> Waves:
    """Draw waves of random direction whose wavelengths are uniform between two lengths in mm."""
    directions = generator.standard_normal((num_waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = generator.uniform(shortest_mm, longest_mm, num_waves)
    phases = generator.uniform(0.0, 2 * np.pi, num_waves)
    return Waves(directions * (2 * np.pi / lengths[:, None]), phases)


class Block:
    """A box of voxels of an affine grid. Fields come out in the order (k, j, i), float32.

    Args:
        affine: From voxel indices (i, j, k) to mm; shape (4, 4).
        i: Indices along the first axis, not necessarily whole numbers; likewise j and k.
    """

    def __init__(self, affine: Array, i: Array, j: Array, k: Array) -> None:
        self.affine = affine
        self.i, self.j, self.k = i, j, k

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.k), len(self.j), len(self.i)

    def crop(self, box: Box) -> "Block":
        """The voxels of a box given as slices along (k, j, i)."""
        return Block(self.affine, self.i[box[2]], self.j[box[1]], self.k[box[0]])

    def box(self, lower: Sequence[float] | Array, upper: Sequence[float] | Array) -> Box | None:
        """Slices that hold every voxel between two corners in mm, or None where there is none."""
        corners = np.array([[(lower, upper)[n >> m & 1][m] for m in range(3)] for n in range(8)])
        inverse = np.linalg.inv(self.affine)
        indices = corners @ inverse[:3, :3].T + inverse[:3, 3]
        slices = []
        for positions, column in ((self.k, 2), (self.j, 1), (self.i, 0)):
            first = int(np.searchsorted(positions, indices[:, column].min(), side="left"))
            last = int(np.searchsorted(positions, indices[:, column].max(), side="right"))
            if first >= last:
                return None
            slices.append(slice(first, last))
        return slices[0], slices[1], slices[2]

    def _rows(self, matrix: Array) -> Array:
        """The product matrix @ (point - what i adds) for every (k, j); shape (K*J, M)."""
        step_j, step_k = matrix @ self.affine[:3, 1], matrix @ self.affine[:3, 2]
        start = matrix @ self.affine[:3, 3]
        rows = self.k[:, None, None] * step_k + self.j[None, :, None] * step_j + start  # (K, J, M)
        return rows.reshape(len(self.k) * len(self.j), len(matrix))

    def _product(self, left: Array, right: Array) -> Volume:
        product: Volume = left.astype(np.float32) @ right.astype(np.float32)
        return product.reshape(self.shape)

    def coordinate(self, axis: int, origin: float = 0.0) -> Volume:
        """Position along one axis in mm, from an origin."""
        row = self._rows(np.eye(3)[axis : axis + 1])[:, 0] - origin
        column = self.i * self.affine[axis, 0]
        shape = (len(self.k), len(self.j), 1)
        position: Volume = row.reshape(shape).astype(np.float32) + column.astype(np.float32)
        return position

    def quadric(self, matrix: Array, center: Array) -> Volume:
        """The squared length of matrix @ (point - center), never negative; matrix has shape (3, 3)."""
        rows = self._rows(matrix) - matrix @ center  # (K*J, 3)
        step = matrix @ self.affine[:3, 0]
        # Counted from the middle, so that squares of large numbers do not cancel in float32.
        middle = float(self.i.mean())
        rows, i = rows + middle * step, self.i - middle
        left = np.stack([(rows**2).sum(1), rows @ step, np.ones(len(rows))], axis=1)
        right = np.stack([np.ones_like(i), 2 * i, i**2 * (step @ step)])
        product = self._product(left, right)
        np.maximum(product, 0, out=product)
        return product

    def _wave_factors(self, waves: Waves) -> tuple[Array, Array, Array, Array]:
        rows = self._rows(waves.vectors) + waves.phases  # (K*J, N)
        columns = np.outer(waves.vectors @ self.affine[:3, 0], self.i)  # (N, I)
        scale = waves.amplitude
        return scale * np.cos(rows), scale * np.sin(rows), np.cos(columns), np.sin(columns)

    def waves(self, waves: Waves) -> Volume:
        """The value of a random field."""
        cos_row, sin_row, cos_column, sin_column = self._wave_factors(waves)
        return self._product(np.hstack([cos_row, sin_row]), np.vstack([cos_column, -sin_column]))

    def waves_and_slope(self, waves: Waves) -> tuple[Volume, Volume]:
        """The value of a random field and the length of its gradient per mm."""
        cos_row, sin_row, cos_column, sin_column = self._wave_factors(waves)
        value = self._product(np.hstack([cos_row, sin_row]), np.vstack([cos_column, -sin_column]))
        right = np.vstack([cos_column, sin_column])
        squared = np.zeros(self.shape, np.float32)
        for axis in range(3):
            along = waves.vectors[:, axis]
            part = self._product(np.hstack([sin_row * along, cos_row * along]), right)
            part *= part
            squared += part
        return value, np.sqrt(squared, out=squared)


def ramp(distance: Volume, width: float) -> Volume:
    """The share of a voxel inside a surface: 1 inside, 0 outside, linear over `width` mm. Overwrites `distance`."""
    distance *= np.float32(-1.0 / width)
    distance += np.float32(0.5)
    return np.clip(distance, 0.0, 1.0, out=distance)
