"""A proposal for the middle of the lesion: the most enhancing piece inside the brain, T1ce against T1.

Deterministic and without anything learnt. It stands in where no radiologist has marked the lesion.
"""

import numpy as np
from scipy import ndimage

from client.preprocessing.grid import Grid, resample
from client.preprocessing.head import BoolArray, Head
from client.preprocessing.volume import FloatArray, Point, Shape, Volume

GRID_MM = 3.0
GRID_SHAPE: Shape = (60, 72, 60)
"""180 x 216 x 180 mm about the middle of the head's box."""

DEPTH_MM = 18.0
"""Nearer to the head's surface than this are scalp, skull and the sagittal sinus, which take up contrast agent too."""

_SMOOTHING_MM = 3.0
_NOISE_LEVEL = 4.0
_BRIGHT_PERCENTILE = 95.0
_SHARE_OF_BRIGHT = 0.3
_NEIGHBOURHOOD_MM = 20.0
_PEAK_SMOOTHING_MM = 10.0
_MAD_TO_SD = 1.4826


def propose_centre(t1ce: Head, t1: Head | None) -> Point:
    """The middle of the piece that takes up most contrast agent, world mm; shape (3,).

    On a 3 mm grid, deeper than 18 mm below the skin: each volume is divided by its median there, T1 is taken from T1ce,
    and what exceeds 4 sd of noise and 30 % of the brightest neighbourhood falls into pieces. The piece with the largest
    sum gives its centroid, weighted by the difference. Without T1 the mirror image of T1ce stands in for it,
    which finds far fewer lesions.

    Args:
        t1ce: After contrast agent.
        t1: Before; None where the exam has none.

    Returns:
        The middle of the head where nothing enhances.
    """
    x, y, z = t1ce.box_centre.tolist()
    grid = Grid((x, y, z), (GRID_MM,) * 3, GRID_SHAPE)
    mask = _mask_on(t1ce, grid)
    depth_mm = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] * GRID_MM
    inner: BoolArray = depth_mm > DEPTH_MM
    if not inner.any():
        return t1ce.box_centre
    after = _relative(t1ce, grid, inner)
    before = after[::-1] if t1 is None else _relative(t1, grid, inner)
    uptake = after - before
    uptake = np.where(inner, uptake, np.float32(0))
    uptake = ndimage.gaussian_filter(uptake, _SMOOTHING_MM / GRID_MM)
    noise = _MAD_TO_SD * float(np.median(np.abs(uptake[inner] - np.median(uptake[inner]))))
    above: FloatArray = np.where(inner, np.clip(uptake - _NOISE_LEVEL * noise, 0, None), np.float32(0))
    if not above.any():
        return t1ce.box_centre
    above = np.clip(above - _SHARE_OF_BRIGHT * _brightness_around_peak(above), 0, None)
    pieces, num_pieces = ndimage.label(above > 0, structure=np.ones((3, 3, 3)))
    sums = ndimage.sum_labels(above, pieces, np.arange(1, num_pieces + 1))
    indices = np.array(ndimage.center_of_mass(above * (pieces == 1 + int(np.argmax(sums)))))
    centre: Point = grid.affine[:3, :3] @ indices + grid.affine[:3, 3]
    return centre


def _mask_on(head: Head, grid: Grid) -> BoolArray:
    mask: BoolArray = resample(Volume(head.mask.astype(np.float32), head.coarse.affine), grid, outside=0.0) > 0.5
    return mask


def _relative(head: Head, grid: Grid, inner: BoolArray) -> FloatArray:
    """A volume over its median inside the brain; shape `grid.shape`."""
    values = resample(head.coarse, grid, outside=head.mean)
    median = float(np.median(values[inner]))
    relative: FloatArray = values / np.float32(median if median > 0 else head.mean)
    return relative


def _brightness_around_peak(above: FloatArray) -> float:
    """How bright the neighbourhood with the most uptake is: the 95th percentile, so that one voxel decides nothing."""
    broad = ndimage.gaussian_filter(above, _PEAK_SMOOTHING_MM / GRID_MM)
    peak = np.unravel_index(int(broad.argmax()), broad.shape)
    offsets = np.indices(above.shape) - np.array(peak).reshape(3, 1, 1, 1)
    near = (offsets**2).sum(axis=0) * GRID_MM**2 < _NEIGHBOURHOOD_MM**2
    return float(np.percentile(above[near], _BRIGHT_PERCENTILE))
