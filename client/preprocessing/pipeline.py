"""One exam from its files' bytes to one array: the order of the steps of preprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from client.preprocessing.enhancement import propose_centre
from client.preprocessing.grid import Grid, resample
from client.preprocessing.head import Head, find_head
from client.preprocessing.volume import FloatArray, Point, Volume, read_volume
from common.errors import DataError
from common.study import PreprocessingSpec, Sequence

PREPROCESSING_VERSION = 3
"""Raised with every change that alters a prepared array, so that no cache serves an old one."""

CentreSource = Literal["point", "mask", "enhancement", "t1ce", "head"]
CENTRE_SOURCES: tuple[CentreSource, ...] = get_args(CentreSource)

Z_LIMIT = 6.0
"""Prepared intensities are clipped to this many standard deviations."""


@dataclass(frozen=True)
class ExamFiles:
    """What preprocessing knows of an exam.

    Attributes:
        name: How a message to the site's people names the exam.
        volumes: Bytes of the file of every sequence that the exam has.
        lesion_point: World mm in RAS.
        lesion_mask: Bytes of the mask's file.
    """

    name: str
    volumes: Mapping[Sequence, bytes]
    lesion_point: tuple[float, float, float] | None = None
    lesion_mask: bytes | None = None


@dataclass(frozen=True)
class PreparedExam:
    """An exam as the network sees it.

    Attributes:
        image: Shape (sequences, D, H, W) with D to the right, H to the front, W upwards; z-scores, 0 where a
            sequence is missing or nothing was recorded.
        centre: Middle of the crop, world mm.
        centre_source: How the middle was found.
    """

    image: FloatArray
    centre: tuple[float, float, float]
    centre_source: CentreSource


def prepare_exam(files: ExamFiles, spec: PreprocessingSpec, sequences: tuple[Sequence, ...]) -> PreparedExam:
    """Read, centre, resample and scale the volumes of one exam.

    Each volume is interpolated once, from its own grid straight onto the common one (axes RAS, the study's spacing and
    size). Intensities become z-scores by the mean and sd of the volume's own head, clipped to ±6.

    Args:
        files: The exam.
        spec: The study's settings.
        sequences: Channels, in order.

    Raises:
        DataError: Says which file is unfit and why.
    """
    volumes: dict[Sequence, Volume] = {}
    heads: dict[Sequence, Head] = {}
    for sequence, data in files.volumes.items():
        name = f"{files.name}: {sequence}"
        volumes[sequence] = read_volume(data, name=name)
        heads[sequence] = find_head(volumes[sequence], name=name)
    centre, source = _centre(files, volumes, heads, spec)
    grid = Grid((float(centre[0]), float(centre[1]), float(centre[2])), spec.spacing_mm, spec.size_voxels)
    image = np.zeros((len(sequences), *grid.shape), dtype=np.float32)
    for channel, sequence in enumerate(sequences):
        if sequence in volumes:
            head = heads[sequence]
            values = resample(volumes[sequence], grid, outside=head.mean)
            image[channel] = np.clip((values - head.mean) / head.std, -Z_LIMIT, Z_LIMIT)
    return PreparedExam(image, grid.centre, source)


def _centre(
    files: ExamFiles,
    volumes: Mapping[Sequence, Volume],
    heads: Mapping[Sequence, Head],
    spec: PreprocessingSpec,
) -> tuple[Point, CentreSource]:
    if spec.crop == "head":
        return _head_centre(heads), "head"
    if spec.crop == "lesion" and files.lesion_point is not None:
        point = np.array(files.lesion_point)
        _require_inside(point, volumes, f"{files.name}: the lesion's point")
        return point, "point"
    if spec.crop == "lesion" and files.lesion_mask is not None:
        centroid = _mask_centroid(files.lesion_mask, name=f"{files.name}: lesion_mask")
        _require_inside(centroid, volumes, f"{files.name}: the middle of lesion_mask")
        return centroid, "mask"
    if "t1" in heads and "t1ce" in heads:
        return propose_centre(heads["t1ce"], heads["t1"]), "enhancement"
    if spec.missing_sequence == "zero_fill":
        if "t1ce" in heads:
            return propose_centre(heads["t1ce"], None), "t1ce"
        return _head_centre(heads), "head"
    raise DataError(
        f"{files.name}: the lesion has to be found from t1 and t1ce, and one is missing; give lesion_x, lesion_y and "
        "lesion_z or a lesion_mask in the table, or delete the row"
    )


def _head_centre(heads: Mapping[Sequence, Head]) -> Point:
    order: tuple[Sequence, ...] = ("t1ce", "t1", "t2")
    return next(heads[sequence] for sequence in order if sequence in heads).box_centre


def _require_inside(point: Point, volumes: Mapping[Sequence, Volume], what: str) -> None:
    for volume in volumes.values():
        indices = volume.to_indices(point)
        if (indices > -1).all() and (indices < np.array(volume.shape)).all():
            return
    raise DataError(
        f"{what} {[float(round(mm, 1)) for mm in point]} lies outside every volume; expected "
        "world mm in RAS (x grows to the patient's right; a point in LPS has the other sign in x and y)"
    )


def _mask_centroid(data: bytes, *, name: str) -> Point:
    mask = read_volume(data, name=name)  # refuses one that is the same everywhere, so an empty one too
    return mask.to_world(np.argwhere(mask.values != 0).mean(axis=0))
