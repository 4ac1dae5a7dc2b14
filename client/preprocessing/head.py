"""The head in a volume: a deterministic mask on a coarse grid, its box, and the intensities inside it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from client.preprocessing.volume import FloatArray, Point, Volume
from common.errors import DataError

BoolArray = npt.NDArray[np.bool_]

COARSE_MM = 3.0
_NUM_BINS = 256
_BRIGHTEST_PERCENTILE = 98.0
_SHARE_OF_OTSU = 0.6
_MIN_HEAD_CM3 = 50.0


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
    """Find the head: brighter than a share of Otsu's threshold, largest piece, holes filled.

    The mean and the standard deviation are those of the 3 mm blocks, so that neither the scanner's noise nor its voxel
    size has a part in them.

    Args:
        volume: Any sequence.
        name: How the volume is named in a message.

    Raises:
        DataError: No piece of 50 cm³ stands out from the background.
    """
    coarse = block_means(volume, COARSE_MM)
    threshold = _SHARE_OF_OTSU * otsu_threshold(coarse.values)
    pieces, num_pieces = ndimage.label(ndimage.binary_opening(coarse.values > threshold))
    sizes = np.bincount(pieces.ravel(), minlength=num_pieces + 1)[1:]
    cm3 = float(coarse.spacing_mm.prod()) / 1000
    if num_pieces == 0 or sizes.max() * cm3 < _MIN_HEAD_CM3:
        raise DataError(f"{name}: no head stands out from the background; look at the volume or drop the exam")
    mask = _filled(pieces == 1 + int(sizes.argmax()), coarse)
    inside = coarse.values[mask].astype(np.float64)
    if inside.std() <= 0:
        raise DataError(f"{name}: the head has one brightness throughout; look at the volume or drop the exam")
    return Head(coarse, mask, float(inside.mean()), float(inside.std()))


def block_means(volume: Volume, size_mm: float) -> Volume:
    """Average a volume over blocks of whole voxels that come nearest to a size; a rest at the far end is cut off."""
    factors = np.maximum(1, np.rint(size_mm / volume.spacing_mm)).astype(int)
    factors = np.minimum(factors, volume.shape)
    num = np.array(volume.shape) // factors
    values: FloatArray = volume.values[tuple(slice(n * f) for n, f in zip(num, factors, strict=True))]
    for axis in range(3):
        shape = (*values.shape[:axis], int(num[axis]), int(factors[axis]), *values.shape[axis + 1 :])
        values = values.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    affine = volume.affine @ np.diag([*factors.astype(float), 1.0])
    affine[:3, 3] = volume.to_world((factors - 1) / 2)
    return Volume(values, affine)


def otsu_threshold(values: FloatArray) -> float:
    """The threshold that parts values into two groups of least variance (Otsu 1979, IEEE Trans. SMC 9:62).

    The brightest 2 % are clipped first: fat and contrast agent would pull the threshold up into the brain.
    """
    high = float(np.percentile(values, _BRIGHTEST_PERCENTILE))
    low = float(values.min())
    if high <= low:
        return low
    counts, edges = np.histogram(np.clip(values, low, high), bins=_NUM_BINS, range=(low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sum_below / below - (sum_below[-1] - sum_below) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between[:-1]))])


def _filled(mask: BoolArray, coarse: Volume) -> BoolArray:
    """Fill the holes of axial slices, closed by the scalp even where the field of view cuts the head, then the rest."""
    upwards = int(np.argmax(np.abs(coarse.affine[2, :3]) / coarse.spacing_mm))
    plane = np.ones((3, 3, 3), dtype=bool)
    plane = np.expand_dims(plane.take(1, axis=upwards), upwards)
    closed = ndimage.binary_closing(mask, structure=plane, iterations=2) | mask
    slices = [ndimage.binary_fill_holes(part) for part in np.moveaxis(closed, upwards, 0)]
    filled: BoolArray = ndimage.binary_fill_holes(np.moveaxis(np.stack(slices), 0, upwards))
    return filled
