"""Rigid registration of a sequence to the exam's reference, by mutual information (SimpleITK, extra `prep`)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from client.preprocessing.head import Head, block_means
from client.preprocessing.itk import WORLD_TO_LPS, simpleitk, to_image
from client.preprocessing.volume import Affine, Volume
from common.errors import DataError

GRID_MM = 2.0
MAX_SHIFT_MM = 30.0
MAX_TURN_DEGREES = 20.0

_HISTOGRAM_BINS = 48
_WINSOR_PERCENT = (1.0, 99.0)
_BRIGHT_PERCENT = 90.0
_AIR_SHARE = 0.15
"""What is darker than this share of the way to bright tissue counts as air."""
_AIR_BINS_SHARE = 0.25
_TONES = 512
_SPLINE_DEGREE = 3
_AROUND_HEAD_BLOCKS = 4
_PADDING_MM = 20.0
_SMOOTHING_SHARE_OF_SPACING = 0.65
_SEED = 7
_RADIUS_MM = 60.0
"""A turn by an angle moves the brain about as far as this many mm times the angle: the scale between the two."""


@dataclass(frozen=True)
class _Level:
    """How sharp the volumes are, and at how many points they are compared."""

    smoothing_mm: float
    num_points: int


_LEVELS = (_Level(4.0, 15_000), _Level(1.5, 120_000))


def register_rigidly(moving: Volume, fixed: Volume, fixed_head: Head, *, name: str) -> Affine:
    """Where a head lies in the reference, by how it lies in another sequence.

    Mattes' mutual information (Mattes 2003, IEEE Trans. Med. Imaging 22:120) over random points of the reference's
    head and its surroundings, from which the head's edge stands out, maximised by gradient descent over three angles
    and three shifts, from smooth to sharp. The volumes are averaged to about 2 mm, and the head's brightness is
    equalised, so that bright fluid does not leave brain two of the histogram's bins.

    Along thick slices each is smoothed by half a slice and interpolated by cubic splines to about 2 mm. Between the
    slices themselves only straight lines would be drawn, which blur; slices that need no interpolation then look more
    alike than those in the right place, and turns out of the plane are not found, for both sequences commonly lie on
    one grid (Pluim 2000, Computer Vision and Image Understanding 77:211).

    The points are drawn with a fixed seed and on one thread, so the same volumes give the same transform.

    Args:
        moving: The sequence to be moved.
        fixed: The reference.
        fixed_head: Where the head is in the reference.
        name: How the sequence is named in a message.

    Returns:
        From the sequence's world mm to the reference's; shape (4, 4), a rotation and a shift.

    Raises:
        DataError: No overlap, or a motion that no patient makes between two sequences.
        ConfigError: SimpleITK is not installed.
    """
    sitk = simpleitk()
    fixed_blocks, moving_blocks = _toned(block_means(fixed, GRID_MM)), _toned(block_means(moving, GRID_MM))
    around = ndimage.binary_dilation(fixed_head.mask, iterations=_AROUND_HEAD_BLOCKS)
    coarse_mask = to_image(Volume(around.astype(np.float32), fixed_head.coarse.affine))
    transform = sitk.Euler3DTransform()
    transform.SetCenter((WORLD_TO_LPS @ fixed_head.box_centre).tolist())
    try:
        for level in _LEVELS:
            _climb(transform, level, fixed=fixed_blocks, moving=moving_blocks, coarse_mask=coarse_mask)
    except RuntimeError:  # ITK's text names a file of its own source
        raise DataError(
            f"{name}: cannot be registered, since too little of it overlaps the reference; look at both volumes, or "
            "drop the exam"
        ) from None
    to_fixed = np.linalg.inv(_matrix(transform)).astype(np.float64)
    _require_plausible(to_fixed, fixed_head, name)
    return to_fixed


def _climb(transform: Any, level: _Level, *, fixed: Volume, moving: Volume, coarse_mask: Any) -> None:
    """Improve a transform in place, on volumes of one sharpness."""
    sitk = simpleitk()
    fixed_image, moving_image = (to_image(_smoothed(volume, level)) for volume in (fixed, moving))
    # Points that leave the moving volume would not count, which would make leaving it worth while.
    margin = [math.ceil(_PADDING_MM / mm) for mm in moving_image.GetSpacing()]
    moving_image = sitk.ZeroFluxNeumannPad(moving_image, margin, margin)
    mask = sitk.Resample(coarse_mask, fixed_image, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8)
    num_inside = max(1, int(sitk.GetArrayViewFromImage(mask).sum()))
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_HISTOGRAM_BINS)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    share = min(1.0, level.num_points / num_inside)
    method.SetMetricSamplingPercentage(share, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-3,
        numberOfIterations=120,
        relaxationFactor=0.8,
        gradientMagnitudeTolerance=1e-9,
    )
    method.SetOptimizerScales([_RADIUS_MM**2] * 3 + [1.0] * 3)
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed_image, moving_image)


def _toned(volume: Volume) -> Volume:
    """Equalised within the head: a share of the values for the air, the others as often as each other; 0 to 1."""
    low, bright, high = np.percentile(volume.values, (_WINSOR_PERCENT[0], _BRIGHT_PERCENT, _WINSOR_PERCENT[1]))
    values = np.clip(volume.values, low, high)
    air = low + _AIR_SHARE * ((bright if bright > low else high) - low)  # the air may be most of a volume
    if air <= low:
        return Volume(np.zeros_like(volume.values), volume.affine)
    counts, edges = np.histogram(values[values > air], bins=_TONES)
    ranks = np.interp(values, edges, np.concatenate([[0.0], np.cumsum(counts) / counts.sum()]))
    in_air = _AIR_BINS_SHARE * (values - low) / (air - low)
    toned = np.where(values > air, _AIR_BINS_SHARE + (1 - _AIR_BINS_SHARE) * ranks, in_air)
    return Volume(toned.astype(np.float32), volume.affine)


def _smoothed(volume: Volume, level: _Level) -> Volume:
    """Smoothed, and with points every 2 mm or so along axes that are coarser."""
    spacing = volume.spacing_mm
    sigmas = np.maximum(_SMOOTHING_SHARE_OF_SPACING * spacing, level.smoothing_mm) / spacing
    values = ndimage.gaussian_filter(volume.values, sigmas, truncate=3.0)
    to_coarse = np.eye(4)
    for axis, parts in enumerate(np.maximum(1, np.rint(spacing / GRID_MM)).astype(int)):
        size = values.shape[axis]
        if parts > 1 and size > _SPLINE_DEGREE:
            places = np.arange((size - 1) * parts + 1) / parts
            spline = make_interp_spline(np.arange(size), values, k=_SPLINE_DEGREE, axis=axis)
            values = spline(places).astype(np.float32)
            to_coarse[axis, axis] = 1 / parts
    return Volume(values, volume.affine @ to_coarse)


def shift_and_turn(motion: Affine, centre: npt.ArrayLike) -> tuple[float, float]:
    """How far a rigid motion moves a point, mm, and by what angle it turns, degrees."""
    point = np.asarray(centre, dtype=np.float64)
    shift = float(np.linalg.norm(motion[:3, :3] @ point + motion[:3, 3] - point))
    skew = motion[:3, :3] - motion[:3, :3].T  # 2 sin of the angle times the axis; exact where the cosine is not
    sine = float(np.linalg.norm([skew[2, 1], skew[0, 2], skew[1, 0]])) / 2
    return shift, float(np.degrees(np.arctan2(sine, (np.trace(motion[:3, :3]) - 1) / 2)))


def moved(volume: Volume, motion: Affine) -> Volume:
    """The same voxels at another place of the world; nothing is interpolated."""
    return Volume(volume.values, motion @ volume.affine)


def _matrix(transform: Any) -> Affine:
    """An ITK transform, which maps the reference's points in LPS to the moving ones, as a matrix in RAS."""
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    shift, centre = np.array(transform.GetTranslation()), np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = WORLD_TO_LPS @ rotation @ WORLD_TO_LPS
    matrix[:3, 3] = WORLD_TO_LPS @ (shift + centre - rotation @ centre)
    return matrix


def _require_plausible(motion: Affine, head: Head, name: str) -> None:
    shift_mm, degrees = shift_and_turn(motion, head.box_centre)
    if shift_mm > MAX_SHIFT_MM or degrees > MAX_TURN_DEGREES:
        raise DataError(
            f"{name}: registration would move it by {shift_mm:.0f} mm and {degrees:.0f} degrees, expected at most "
            f"{MAX_SHIFT_MM:g} mm and {MAX_TURN_DEGREES:g} degrees within an exam; look whether both volumes are of "
            "this exam, or drop it"
        )
