"""One exam from its files' bytes to one array: the order of the steps of preprocessing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from client.preprocessing.bias import estimate_bias, without_bias
from client.preprocessing.enhancement import propose_centre
from client.preprocessing.grid import Grid, resample
from client.preprocessing.head import Head, find_head, inside_brain
from client.preprocessing.registration import moved, register_rigidly
from client.preprocessing.stages import Arrays, Stages, reference_of
from client.preprocessing.volume import FloatArray, Point, Volume, read_volume
from common.errors import DataError
from common.study import PreprocessingSpec, Sequence

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
        brain_mask: Bytes of the file whose non-zero voxels are the brain, in the world of T1ce.
    """

    name: str
    volumes: Mapping[Sequence, bytes]
    lesion_point: tuple[float, float, float] | None = None
    lesion_mask: bytes | None = None
    brain_mask: bytes | None = None


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


def prepare_exam(
    files: ExamFiles, spec: PreprocessingSpec, sequences: tuple[Sequence, ...], *, stages: Stages | None = None
) -> PreparedExam:
    """Read, register, centre, resample and scale the volumes of one exam.

    Each volume is interpolated once, from its own grid straight onto the common one (axes RAS, the study's spacing and
    size); a registration only moves the place from which it is read. Intensities become z-scores by the mean and sd of
    the volume's own head, or of the brain where a mask of it is given, clipped to ±6.

    Args:
        files: The exam.
        spec: The study's settings.
        sequences: Channels, in order.
        stages: Gives what is known already of this very exam and counts what is not; nothing is known by default.

    Raises:
        DataError: Says which file is unfit and why.
        ConfigError: What the settings need is not installed.
    """
    work = _Work(files, spec, stages or Stages())
    centre, source = read_centre(work.stages.result("centre", lambda keys: keys.centre(), work.find_centre))
    grid = Grid(centre, spec.spacing_mm, spec.size_voxels)
    channels: dict[Sequence, Arrays] = {}
    for sequence in sequences:
        if sequence in files.volumes:
            channels[sequence] = work.on_grid(sequence, grid)
    return assemble_exam(channels, centre, source, sequences, spec.size_voxels)


def read_centre(arrays: Arrays) -> tuple[tuple[float, float, float], CentreSource]:
    """The result of stage `centre`: world mm, and how it was found."""
    x, y, z = arrays["centre"].tolist()
    return (x, y, z), CENTRE_SOURCES[int(arrays["centre_source"][0])]


def assemble_exam(
    channels: Mapping[Sequence, Arrays],
    centre: tuple[float, float, float],
    source: CentreSource,
    sequences: tuple[Sequence, ...],
    size_voxels: tuple[int, int, int],
) -> PreparedExam:
    """z-scores of the channels, and zeros where there is none.

    Args:
        channels: Results of stage `channel`.
        centre: Middle of the crop, world mm.
        source: How it was found.
        sequences: Channels, in order.
        size_voxels: Shape of a channel.
    """
    image = np.empty((len(sequences), *size_voxels), dtype=np.float32)
    fill_image(image, channels, sequences)
    return PreparedExam(image, centre, source)


def fill_image(image: FloatArray, channels: Mapping[Sequence, Arrays], sequences: tuple[Sequence, ...]) -> None:
    """Write z-scores of the channels, and zeros where there is none, into an array.

    Args:
        image: Shape (sequences, D, H, W), float32.
        channels: Results of stage `channel`.
        sequences: In order.
    """
    for place, sequence in zip(image, sequences, strict=True):
        if sequence in channels:
            mean, std = channels[sequence]["brightness"].tolist()
            np.subtract(np.asarray(channels[sequence]["values"], dtype=np.float32), mean, out=place)
            np.divide(place, std, out=place)
            np.clip(place, -Z_LIMIT, Z_LIMIT, out=place)
        else:
            place.fill(0)


@dataclass
class _Work:
    """An exam being prepared; every file is read at most once, and only if some stage needs it."""

    files: ExamFiles
    spec: PreprocessingSpec
    stages: Stages
    _read: dict[Sequence, tuple[Volume, Head]] = field(default_factory=dict)
    _placed: dict[Sequence, tuple[Volume, Head]] = field(default_factory=dict)
    _fields: dict[Sequence, FloatArray] = field(default_factory=dict)
    _brain: Volume | None = None

    def find_centre(self) -> Arrays:
        """Stage `centre`. Looks at every volume, so that all are known to be sound."""
        for sequence in self.files.volumes:
            self._as_read(sequence)
        placed = {sequence: self._in_place(sequence) for sequence in self.files.volumes}
        volumes = {sequence: volume for sequence, (volume, _) in placed.items()}
        heads = {sequence: head for sequence, (_, head) in placed.items()}
        centre, source = _centre(self.files, volumes, heads, self.spec, self._scaled_by)
        return {
            "centre": np.array([float(mm) for mm in centre], dtype=np.float64),
            "centre_source": np.array([CENTRE_SOURCES.index(source)], dtype=np.int64),
        }

    def on_grid(self, sequence: Sequence, grid: Grid) -> Arrays:
        """Stage `channel`: values on the grid, and the mean and sd that they are measured by."""

        def compute() -> Arrays:
            volume, head = self._in_place(sequence)
            within = self._scaled_by(sequence, head)
            values = resample(volume, grid, outside=within.mean)
            if sequence in self._fields:
                shading = Volume(self._fields[sequence], head.coarse.affine)
                values = values / resample(shading, grid, outside=1.0)
            return {
                "values": np.ascontiguousarray(values, dtype=np.float32),
                "brightness": np.array([within.mean, within.std], dtype=np.float64),
            }

        return self.stages.result("channel", lambda keys: keys.channel(sequence, grid.centre), compute)

    def _as_read(self, sequence: Sequence) -> tuple[Volume, Head]:
        if sequence not in self._read:
            name = self._name(sequence)
            volume = read_volume(self.files.volumes[sequence], name=name)
            self._read[sequence] = volume, find_head(volume, name=name)
        return self._read[sequence]

    def _in_place(self, sequence: Sequence) -> tuple[Volume, Head]:
        """A volume and its head, moved onto the reference and without shading, as far as the study wants it."""
        if sequence not in self._placed:
            volume, head = self._as_read(sequence)
            if self.spec.bias_correction == "n4":
                made = self.stages.result(
                    "bias", lambda keys: keys.bias(sequence), lambda: {"field": estimate_bias(head)}
                )
                self._fields[sequence] = np.asarray(made["field"], dtype=np.float32)
            motion = self._motion(sequence)
            if sequence in self._fields:
                head = without_bias(head, self._fields[sequence], name=self._name(sequence))
            if motion is not None:
                volume = moved(volume, motion)
                head = Head(moved(head.coarse, motion), head.mask, head.mean, head.std)
            self._placed[sequence] = volume, head
        return self._placed[sequence]

    def _motion(self, sequence: Sequence) -> Point | None:
        fixed = reference_of(self.files.volumes)
        if self.spec.registration == "none" or sequence == fixed:
            return None

        def compute() -> Arrays:
            volume, _ = self._as_read(sequence)
            reference, head = self._as_read(fixed)
            return {"motion": register_rigidly(volume, reference, head, name=self._name(sequence))}

        made = self.stages.result("registration", lambda keys: keys.registration(sequence), compute)
        return np.asarray(made["motion"], dtype=np.float64)

    def _scaled_by(self, sequence: Sequence, head: Head) -> Head:
        """The region that gives the brightness: the brain where a mask of it is given, else the head."""
        if self.files.brain_mask is None:
            return head
        if self._brain is None:
            self._brain = read_volume(self.files.brain_mask, name=f"{self.files.name}: brain_mask")
        return inside_brain(head, self._brain, name=self._name(sequence))

    def _name(self, sequence: Sequence) -> str:
        return f"{self.files.name}: {sequence}"


def _centre(
    files: ExamFiles,
    volumes: Mapping[Sequence, Volume],
    heads: Mapping[Sequence, Head],
    spec: PreprocessingSpec,
    scaled_by: Callable[[Sequence, Head], Head],
) -> tuple[Point, CentreSource]:
    if spec.crop == "head":
        return _head_centre(heads, scaled_by), "head"
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
        return _head_centre(heads, scaled_by), "head"
    raise DataError(
        f"{files.name}: the lesion has to be found from t1 and t1ce, and one is missing; give lesion_x, lesion_y and "
        "lesion_z or a lesion_mask in the table, or delete the row"
    )


def _head_centre(heads: Mapping[Sequence, Head], scaled_by: Callable[[Sequence, Head], Head]) -> Point:
    sequence = reference_of(heads)
    return scaled_by(sequence, heads[sequence]).box_centre


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
