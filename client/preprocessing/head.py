"""The head in a volume: a deterministic mask on a coarse grid, its box, and the intensities inside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from client.preprocessing.volume import FloatArray, Point, Volume
from common.errors import DataError

BoolArray = npt.NDArray[np.bool_]

COARSE_MM = 3.0
_SHARE_OF_RANGE = 0.07
_MIN_PIECE_CM3 = 5.0
_MIN_HEAD_CM3 = 100.0


@dataclass(frozen=True)
class Head:
    """Where the head is in a volume, and how bright it is.

    Attributes:
        coarse: The volume averaged onto blocks of about 3 mm.
        mask: The head in `coarse`; same shape.
        mean: Mean intensity inside the mask.
        std: Standard deviation inside the mask, positive.
    """

    coarse: Volume
    mask: BoolArray
    mean: float
    std: float

    @property
    def box_centre(self) -> Point:
        """Middle of the head's box along the world's axes, world mm; shape (3,)."""
        world = self.coarse.to_world(np.argwhere(self.mask))
        centre: Point = (world.min(axis=0) + world.max(axis=0)) / 2
        return centre


def find_head(volume: Volume, *, name: str) -> Head:
    """Find the head, scalp included, and its brightness.

    Head is what is brighter than 7 % of the way from the 2nd to the 98th percentile (like BET's first threshold, there
    10 %: Smith 2002, Human Brain Mapping 17:143), in pieces of 5 cm³ or more, since dark bone parts the scalp from the
    brain, and the holes of these. The mean and the standard deviation are those of the 3 mm blocks, so that neither the
    scanner's noise nor its voxel size has a part in them.

    Args:
        volume: Any sequence.
        name: How the volume is named in a message.

    Raises:
        DataError: Less than 100 cm³ stand out from the background.
    """
    coarse = block_means(volume, COARSE_MM)
    low, high = np.percentile(coarse.values, [2, 98])
    bright = ndimage.binary_opening(coarse.values > low + _SHARE_OF_RANGE * (high - low))
    pieces, num_pieces = ndimage.label(bright)
    cm3 = float(coarse.spacing_mm.prod()) / 1000
    large = np.bincount(pieces.ravel(), minlength=num_pieces + 1) * cm3 >= _MIN_PIECE_CM3
    large[0] = False
    mask = _filled(large[pieces], coarse)
    if mask.sum() * cm3 < _MIN_HEAD_CM3:
        raise DataError(f"{name}: no head stands out from the background; look at the volume or drop the exam")
    return Head(coarse, mask, *brightness(coarse, mask, name=name))


def inside_brain(head: Head, brain: Volume, *, name: str) -> Head:
    """The same volume with the brain of a mask in place of the head: its box and its brightness.

    Args:
        head: The head, in the same world as the brain.
        brain: Any grid; what is not 0 is the brain.
        name: How the volume is named in a message.

    Raises:
        DataError: Less than 100 cm³ of the volume lie in the brain.
    """
    indices = np.indices(head.coarse.shape).reshape(3, -1).T
    nearest = np.rint(brain.to_indices(head.coarse.to_world(indices))).astype(int)
    covered = ((nearest >= 0) & (nearest < np.array(brain.shape))).all(axis=1)
    mask = np.zeros(len(indices), dtype=bool)
    mask[covered] = brain.values[tuple(nearest[covered].T)] != 0
    mask = mask.reshape(head.coarse.shape)
    if mask.sum() * float(head.coarse.spacing_mm.prod()) / 1000 < _MIN_HEAD_CM3:
        raise DataError(
            f"{name}: less than {_MIN_HEAD_CM3:g} cm³ of it lie in brain_mask; the mask belongs to the T1ce of the "
            "exam, in its world mm: make it again, or leave the field empty"
        )
    return Head(head.coarse, mask, *brightness(head.coarse, mask, name=name))


def brightness(coarse: Volume, mask: BoolArray, *, name: str) -> tuple[float, float]:
    """Mean and standard deviation inside a mask.

    Raises:
        DataError: Everything there is equally bright.
    """
    inside = coarse.values[mask].astype(np.float64)
    if inside.std() <= 0:
        raise DataError(f"{name}: the head has one brightness throughout; look at the volume or drop the exam")
    return float(inside.mean()), float(inside.std())


def block_means(volume: Volume, size_mm: float) -> Volume:
    """Average a volume over blocks of whole voxels that come nearest to a size; a rest at the far end is cut off."""
    factors = np.maximum(1, np.rint(size_mm / volume.spacing_mm)).astype(int)
    factors = np.minimum(factors, volume.shape)
    num = np.array(volume.shape) // factors
    values: FloatArray = volume.values[tuple(slice(n * f) for n, f in zip(num, factors, strict=True))]
    for axis in range(3):
        values = _means_along(values, axis, int(factors[axis]))
    affine = volume.affine @ np.diag([*factors.astype(float), 1.0])
    affine[:3, 3] = volume.to_world((factors - 1) / 2)
    return Volume(values, affine)


def _means_along(values: FloatArray, axis: int, factor: int) -> FloatArray:
    """Means of every `factor` neighbours along an axis, summed slice by slice: a fraction of the time of `mean`."""
    if factor == 1:
        return values
    parts = [values[(slice(None),) * axis + (slice(first, None, factor),)] for first in range(factor)]
    sums: FloatArray = parts[0] + parts[1]
    for part in parts[2:]:
        sums += part
    sums /= np.float32(factor)
    return sums


def _filled(mask: BoolArray, coarse: Volume) -> BoolArray:
    """Fill the holes of axial slices, which the scalp closes even where the field of view cuts the head."""
    upwards = int(np.argmax(np.abs(coarse.affine[2, :3]) / coarse.spacing_mm))
    plane = np.ones((3, 3, 3), dtype=bool)
    plane = np.expand_dims(plane.take(1, axis=upwards), upwards)
    closed = ndimage.binary_closing(mask, structure=plane, iterations=2) | mask
    within = [axis for axis in range(3) if axis != upwards]
    return fill_holes(fill_holes(closed, within), [0, 1, 2])


def fill_holes(mask: BoolArray, axes: Sequence[int]) -> BoolArray:
    """Fill what no path of steps along the axes leads out of.

    What scipy's `binary_fill_holes` gives for the whole volume, or for each of its slices, in one pass.

    Args:
        mask: Three axes.
        axes: Those along which steps lead; two of them for slices.
    """
    faces = np.zeros((3, 3, 3), dtype=bool)
    for axis in axes:
        faces[tuple(slice(None) if each == axis else slice(1, 2) for each in range(3))] = True
    pieces, num_pieces = ndimage.label(~mask, structure=faces)
    outside = np.zeros(num_pieces + 1, dtype=bool)
    for axis in axes:
        for end in (0, -1):
            outside[pieces.take(end, axis=axis).ravel()] = True
    outside[0] = False
    filled: BoolArray = ~outside[pieces]
    return filled
