"""One exam: where the head lies in the scanner, on which grid it is scanned, and what noise the images hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulations.phantom.geometry import Head
from simulations.phantom.grid import Array, Block, Volume, Waves, draw_waves
from simulations.phantom.placement import Lesion
from simulations.phantom.render import Grid, render
from simulations.phantom.scanners import Scanner

FIELD_OF_VIEW_MM = np.array([190.0, 230.0, 186.0])  # left-right, back-front, down-up
ORIGIN_JITTER_MM = 4.0
GAIN_SD = 0.15
_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
_SLICES_AT_A_TIME = 8

Stored = npt.NDArray[np.int16] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Exam:
    """What is random about a visit to the scanner.

    Attributes:
        grid: Voxels of all images, with an affine into the scanner's millimetres (RAS).
        poses: From scanner to head millimetres, by sequence; shape (4, 4). They differ where sequences are
            misregistered.
        gains: Factor of each image's intensity, by sequence.
        coil: The coil's sensitivity is exp(bias * this field).
    """

    grid: Grid
    poses: Mapping[str, Array]
    gains: Mapping[str, float]
    coil: Waves

    def to_scanner(self, point: Array, sequence: str) -> Array:
        """A point of the head in the scanner's millimetres as one sequence shows it; shape (3,)."""
        inverse = np.linalg.inv(self.poses[sequence])
        return np.asarray(inverse[:3, :3] @ point + inverse[:3, 3])


def draw_exam(
    scanner: Scanner, spacing_mm: float | None, misregistration_mm: float, generator: np.random.Generator
) -> Exam:
    """Draw an exam.

    Args:
        scanner: The scanner.
        spacing_mm: Lower bound of the voxel edges, or None.
        misregistration_mm: Largest shift of T1 and T2 against T1ce; rotations go up to 2° per 3 mm.
        generator: Source of randomness.
    """
    grid = make_grid(scanner, spacing_mm, _tilt(scanner.oblique_deg, generator))
    limit = 2.0 * ORIGIN_JITTER_MM
    pose = np.eye(4)
    pose[:3, 3] = -np.clip(generator.normal(0.0, ORIGIN_JITTER_MM, 3), -limit, limit)
    gains = {name: float(np.exp(generator.normal(0.0, GAIN_SD))) for name in scanner.weightings()}
    coil = draw_waves(generator, 220.0, 380.0, num_waves=5)
    poses = {"t1ce": pose}
    for name in ("t1", "t2"):
        poses[name] = pose @ _draw_motion(misregistration_mm, generator) if misregistration_mm > 0 else pose
    return Exam(grid, poses, gains, coil)


def make_grid(scanner: Scanner, spacing_mm: float | None, turn: Array) -> Grid:
    """The scanner's grid around the isocentre, its axes turned by a rotation matrix of shape (3, 3)."""
    spacing = np.maximum(scanner.spacing_mm, spacing_mm or 0.0)
    matrix, shape = np.zeros((3, 3)), []
    for axis, code in enumerate(scanner.axes):
        world, sign = _DIRECTIONS[code]
        matrix[world, axis] = sign * spacing[axis]
        shape.append(int(np.ceil(FIELD_OF_VIEW_MM[world] / spacing[axis])))
    affine = np.eye(4)
    affine[:3, :3] = turn @ matrix
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid((shape[0], shape[1], shape[2]), affine)


def take_images(
    scanner: Scanner,
    exam: Exam,
    head: Head,
    lesion: Lesion | None,
    *,
    sequences: Sequence[str],
    generator: np.random.Generator,
) -> dict[str, Stored]:
    """Scan a head: the stored whole numbers of every wanted sequence, array axes in NIfTI's order (i, j, k)."""
    weightings = scanner.weightings()
    images: dict[str, Stored] = {}
    together = [name for name in sequences if exam.poses[name] is exam.poses["t1ce"]]
    for group in [together, *([name] for name in sequences if name not in together)]:
        if not group:
            continue
        grid = Grid(exam.grid.shape, exam.poses[group[0]] @ exam.grid.affine)
        signals = render(head, lesion, grid, [weightings[name] for name in group])
        for name, signal in zip(group, signals, strict=True):
            brightness = scanner.scale * exam.gains[name]
            _add_coil_and_noise(signal, brightness, scanner, exam, generator)
            images[name] = _store(signal).transpose()
    return images


def _add_coil_and_noise(
    signal: Volume, brightness: float, scanner: Scanner, exam: Exam, generator: np.random.Generator
) -> None:
    """Scale, shade and make noisy in place; the noise is Rician. Shape (k, j, i)."""
    size_i, size_j, size_k = exam.grid.shape
    sd = np.float32(brightness / scanner.snr)
    i, j = np.arange(size_i, dtype=float), np.arange(size_j, dtype=float)
    for first in range(0, size_k, _SLICES_AT_A_TIME):
        part = signal[first : first + _SLICES_AT_A_TIME]
        k = np.arange(first, first + len(part), dtype=float)
        shade = Block(exam.grid.affine, i, j, k).waves(exam.coil)
        shade *= np.float32(scanner.bias)
        np.exp(shade, out=shade)
        part *= shade
        part *= np.float32(brightness)
        noise = generator.standard_normal(part.shape, dtype=np.float32)
        noise *= sd
        part += noise
        part *= part
        generator.standard_normal(out=noise, dtype=np.float32)
        noise *= sd
        noise *= noise
        part += noise
        np.sqrt(part, out=part)


def _store(signal: Volume) -> Stored:
    """Round to whole numbers, in the smallest of the two types that scanners export."""
    np.rint(signal, out=signal)
    highest = float(signal.max())
    if highest <= np.iinfo(np.int16).max:
        return signal.astype(np.int16)
    return np.minimum(signal, np.iinfo(np.uint16).max).astype(np.uint16)


def _rotation(axis: Array, degrees: float) -> Array:
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))


def _tilt(degrees: float, generator: np.random.Generator) -> Array:
    """By the whole angle, mostly a nod: slices follow the skull's base more often than they lean."""
    nod = generator.choice([-1.0, 1.0])
    return _rotation(np.array([nod, *generator.normal(0.0, 0.25, 2)]), degrees)


def _draw_motion(most_mm: float, generator: np.random.Generator) -> Array:
    """A rigid motion of at most that many mm and 2° per 3 mm."""
    direction = generator.standard_normal(3)
    motion = np.eye(4)
    motion[:3, 3] = direction / np.linalg.norm(direction) * generator.uniform(0.0, most_mm)
    motion[:3, :3] = _rotation(generator.standard_normal(3), generator.uniform(0.0, most_mm * 2.0 / 3.0))
    return motion
