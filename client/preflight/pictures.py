"""A case as a picture: three planes of three sequences through the lesion, with the study's crop drawn."""

import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from client.preprocessing.volume import Volume

STEP_MM = 1.5
TILE = 120
"""Pixels of a tile's edge: 180 mm."""

_SEQUENCES = ("t1", "t2", "t1ce")
_PLANES = ((0, 1), (0, 2), (1, 2))
"""World axes to the right and up in the tile: axial, coronal, sagittal."""
_PLANE_NAMES = ("axial", "coronal", "sagittal")
_WHITE = 99.5
_NUM_GREYS = 64
_CROP, _POINT, _WORDS = _NUM_GREYS, _NUM_GREYS + 1, _NUM_GREYS + 2
_COLOURS = ((255, 176, 0), (0, 200, 255), (255, 255, 255))
"""A picture's palette: greys, then the crop's, the point's and the words' colour."""

Centre = tuple[float, float, float]


def draw_case(volumes: Mapping[str, Volume], *, centre: Centre | None, crop_mm: Centre | None) -> bytes:
    """A PNG of three rows (t1, t2, t1ce) by three columns (axial, coronal, sagittal).

    Image right is the patient's right in axial and coronal tiles and the front in the sagittal ones; up is the front
    or the head's top. What the exam lacks stays dark.

    Args:
        volumes: Sequences on blocks of about 3 mm.
        centre: World mm through which the planes go, such as the lesion's point; None for the middle of the volume.
        crop_mm: Edges of the study's crop about the centre; None draws no box.
    """
    image = Image.new("P", (3 * TILE, 3 * TILE))
    greys = [(round(255 * grey / (_NUM_GREYS - 1)),) * 3 for grey in range(_NUM_GREYS)]
    image.putpalette([part for colour in (*greys, *_COLOURS) for part in colour])
    draw = ImageDraw.Draw(image)
    for row, sequence in enumerate(_SEQUENCES):
        if sequence not in volumes:
            draw.text((4, row * TILE + 4), f"{sequence}: absent or unreadable", fill=_WORDS)
            continue
        volume = volumes[sequence]
        middle = _middle(volume)
        through = middle if centre is None else np.array(centre)
        highest = float(np.percentile(volume.values, _WHITE))
        lowest = min(float(volume.values.min()), 0.0)
        for column, axes in enumerate(_PLANES):
            tile = _slice(volume, through, middle, axes)
            scaled = np.clip((tile - lowest) / max(highest - lowest, 1e-6), 0, 1) * (_NUM_GREYS - 1)
            pixels = Image.frombytes("P", (TILE, TILE), np.rint(scaled).astype(np.uint8).tobytes())
            image.paste(pixels, (column * TILE, row * TILE))
            offset = np.array([column * TILE, row * TILE])
            if centre is not None:
                _mark(draw, offset, (through - middle)[list(axes)], None if crop_mm is None else crop_mm, axes)
        draw.text((4, row * TILE + 4), sequence, fill=_WORDS)
    stored = io.BytesIO()
    image.save(stored, format="PNG", optimize=True)
    return stored.getvalue()


def _middle(volume: Volume) -> npt.NDArray[np.float64]:
    middle: npt.NDArray[np.float64] = volume.to_world((np.array(volume.shape) - 1) / 2)
    return middle


def _slice(
    volume: Volume, through: npt.NDArray[np.float64], middle: npt.NDArray[np.float64], axes: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The nearest voxels on a plane; shape (TILE, TILE), first row uppermost."""
    steps = (np.arange(TILE) - (TILE - 1) / 2) * STEP_MM
    world = np.empty((TILE, TILE, 3))
    world[:] = through
    world[..., axes[0]] = middle[axes[0]] + steps[None, :]
    world[..., axes[1]] = middle[axes[1]] - steps[:, None]
    indices = np.rint(volume.to_indices(world)).astype(int)
    inside = ((indices >= 0) & (indices < np.array(volume.shape))).all(axis=-1)
    clipped = np.clip(indices, 0, np.array(volume.shape) - 1)
    values: npt.NDArray[np.float32] = volume.values[clipped[..., 0], clipped[..., 1], clipped[..., 2]]
    return np.where(inside, values, np.float32(0))


def _mark(
    draw: ImageDraw.ImageDraw,
    offset: npt.NDArray[np.int64],
    point_mm: npt.NDArray[np.float64],
    crop_mm: Centre | None,
    axes: tuple[int, int],
) -> None:
    """A cross at the centre and the crop's box, cut off at the tile's edge."""
    at = (TILE - 1) / 2 + np.array([point_mm[0], -point_mm[1]]) / STEP_MM
    x, y = (at + offset).tolist()
    if not ((at >= 0) & (at < TILE)).all():
        return
    draw.line([(x - 3, y), (x + 3, y)], fill=_POINT)
    draw.line([(x, y - 3), (x, y + 3)], fill=_POINT)
    if crop_mm is not None:
        half = np.array([crop_mm[axes[0]], crop_mm[axes[1]]]) / 2 / STEP_MM
        low = np.clip(at - half, 0, TILE - 1) + offset
        high = np.clip(at + half, 0, TILE - 1) + offset
        draw.rectangle([*low.tolist(), *high.tolist()], outline=_CROP)
