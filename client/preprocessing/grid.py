"""The common grid of an exam's sequences, and one interpolation of a volume onto it."""

from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from scipy import ndimage

from client.preprocessing.volume import Affine, FloatArray, Point, Shape, Volume

_FWHM_PER_SIGMA = 2.3548200450309493
_MARGIN_VOXELS = 2


@dataclass(frozen=True)
class Grid:
    """A grid along the world's axes: index 0 runs to the right, 1 to the front, 2 upwards (RAS).

    Attributes:
        centre: World mm of the middle of the grid; between two voxels where a size is even.
        spacing_mm: Distance of neighbouring voxels along each axis.
        shape: Voxels along each axis.
    """

    centre: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    shape: Shape

    @property
    def affine(self) -> Affine:
        """From voxel indices to world mm; shape (4, 4)."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = np.array(self.centre) - (np.array(self.shape) - 1) / 2 * np.array(self.spacing_mm)
        return affine

    @property
    def corners(self) -> Point:
        """World mm of the eight outermost voxels; shape (8, 3)."""
        picks = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
        corners: Point = picks * (np.array(self.shape) - 1) * np.array(self.spacing_mm) + self.affine[:3, 3]
        return corners


def resample(volume: Volume, grid: Grid, *, outside: float) -> FloatArray:
    """Bring a volume onto a grid by one trilinear interpolation of the part that the grid needs.

    Where the volume is finer than the grid it is smoothed first, along each of its axes by the Gaussian whose width
    (FWHM) takes the voxel's own width to the grid's: w² = grid² - own². Otherwise fine detail and noise would alias.

    Args:
        volume: On any grid, oblique ones included.
        grid: Where the values are wanted.
        outside: Value of voxels that the volume does not cover.

    Returns:
        Shape `grid.shape`.
    """
    sigmas = smoothing_sigmas(volume, grid)
    margin = np.ceil(4 * sigmas).astype(int) + _MARGIN_VOXELS
    corners = volume.to_indices(grid.corners)
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - margin, 0, np.array(volume.shape))
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + margin + 1, 0, np.array(volume.shape))
    if (high <= low).any():
        return np.full(grid.shape, outside, dtype=np.float32)
    part = volume.values[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    if sigmas.any():
        part = ndimage.gaussian_filter(part, sigmas, mode="nearest")
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world(low)
    # Interpolated as differences from `outside`, since zero is the one value that can be had outside.
    source = MetaTensor(torch.from_numpy(np.ascontiguousarray(part - np.float32(outside)))[None], affine=affine)
    to_grid = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True, dtype=torch.float32)
    resampled = to_grid(source, dst_affine=torch.from_numpy(grid.affine), spatial_size=grid.shape)
    values: FloatArray = resampled.numpy()[0] + np.float32(outside)
    return values


def smoothing_sigmas(volume: Volume, grid: Grid) -> Point:
    """Standard deviation in voxels of the smoothing along each axis of the volume; shape (3,)."""
    own = volume.spacing_mm
    directions = volume.affine[:3, :3] / own
    wanted = np.linalg.norm(directions * np.array(grid.spacing_mm)[:, None], axis=0)
    sigmas: Point = np.sqrt(np.clip(wanted**2 - own**2, 0, None)) / _FWHM_PER_SIGMA / own
    sigmas[sigmas < 0.2] = 0.0
    return sigmas
