"""Draw a patient on any grid: what each sequence would see without noise, white matter being 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulations.phantom import geometry
from simulations.phantom.canvas import Canvas
from simulations.phantom.geometry import LAYERS, Head
from simulations.phantom.grid import Array, Block, Box, Volume, ramp
from simulations.phantom.lesion_render import paint_lesion
from simulations.phantom.placement import Lesion
from simulations.phantom.tissue import DISTRACTOR_CONTRAST_MM, Weighting

# Voxels drawn at a time: few enough for the processor's cache, many enough to hide the cost of a call.
_VOXELS_AT_A_TIME = 150_000
_SUB_SLICE_MM = 2.0


@dataclass(frozen=True)
class Grid:
    """A voxel grid.

    Attributes:
        shape: Voxels along the three array axes.
        affine: From voxel indices to mm; shape (4, 4). The third array axis is the slice axis.
    """

    shape: tuple[int, int, int]
    affine: Array

    @property
    def spacing_mm(self) -> Array:
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def num_sub_slices(self) -> int:
        """Thin slices of about 2 mm that are averaged to make one slice."""
        return max(1, round(float(self.spacing_mm[2]) / _SUB_SLICE_MM))


def render(head: Head, lesion: Lesion | None, grid: Grid, weightings: Sequence[Weighting]) -> Volume:
    """Signal of every voxel in every sequence, over that of white matter.

    Args:
        head: The head.
        lesion: Its lesion, or None for a healthy head.
        grid: Voxels, with an affine into the head's millimetres (RAS, origin at the brain's centre).
        weightings: The sequences; all are drawn on the same grid.

    Returns:
        Shape (sequences, k, j, i): the array axes are reversed, so that a transpose makes NIfTI's order for nothing.
    """
    size_i, size_j, size_k = grid.shape
    images = np.zeros((len(weightings), size_k, size_j, size_i), np.float32)
    sub = grid.num_sub_slices
    offsets = (np.arange(sub) + 0.5) / sub - 0.5
    step = max(1, round(_VOXELS_AT_A_TIME / (size_i * size_j * sub)))
    # Edges no sharper than half a sub-slice: a thin sheet almost parallel to the slices would come out as stripes.
    softness = max(float(np.mean(grid.spacing_mm[:2])), 0.5 * float(grid.spacing_mm[2]) / sub)
    i, j = np.arange(size_i, dtype=float), np.arange(size_j, dtype=float)
    for first in range(0, size_k, step):
        slices = np.arange(first, min(first + step, size_k), dtype=float)
        block = Block(grid.affine, i, j, (slices[:, None] + offsets).ravel())
        drawn = _draw_block(head, lesion, block, weightings, softness)
        if drawn is not None:
            (_, rows, columns), stack = drawn
            stack = stack.reshape(len(weightings), len(slices), sub, *stack.shape[2:])
            images[:, first : first + len(slices), rows, columns] = stack.mean(axis=2) if sub > 1 else stack[:, :, 0]
    return images


def _draw_block(
    head: Head, lesion: Lesion | None, whole: Block, weightings: Sequence[Weighting], softness: float
) -> tuple[Box, Volume] | None:
    """The part of a block that holds the head, and its signal; None where there is only air."""
    outside = geometry.outside_scalp(head, whole)
    box = _extent(outside < softness)
    if box is None:
        return None
    block, outside = whole.crop(box), outside[box]
    depth = head.depth(block)
    stack = np.empty((len(weightings) + 1, *block.shape), np.float32)
    canvas = Canvas(stack, block, depth, weightings, softness)
    _lay_layers(head, canvas, outside)
    _paint_sinus(canvas)
    brain = _extent(depth > -softness)
    if brain is not None:
        inner = canvas.crop(brain)
        _paint_brain(head, inner)
        if lesion is not None:
            paint_lesion(head, lesion, inner)
    return box, stack[:-1]


def _lay_layers(head: Head, canvas: Canvas, outside: Volume) -> None:
    """Air, scalp, skull, fluid, cortex and white matter."""
    distances = geometry.layer_distances(head, canvas.block, canvas.depth, outside)
    shares = np.stack([ramp(distance, canvas.softness) for distance in distances])
    signals = np.array([canvas.signals(name, DISTRACTOR_CONTRAST_MM.get(name, 0.0)) for name in LAYERS]).T
    # Every layer lies within the one before it: it replaces that one's signal by its own.
    steps = np.diff(signals, axis=1, prepend=0.0).astype(np.float32)  # (channels, layers)
    np.matmul(steps, shares.reshape(len(LAYERS), -1), out=canvas.stack.reshape(len(steps), -1))


def _paint_sinus(canvas: Canvas) -> None:
    part = canvas.within([-6.0, -110.0, 0.0], [6.0, 110.0, 90.0])
    if part is not None:
        distance = geometry.sinus_distance(part.block.coordinate(0), part.depth, part.block.coordinate(2))
        part.lay(ramp(distance, part.softness), "sinus", DISTRACTOR_CONTRAST_MM["sinus"])


def _paint_brain(head: Head, canvas: Canvas) -> None:
    """Sulci, fissure, corpus callosum, deep grey matter and ventricles."""
    grey, fluid = geometry.sulci(head, canvas.block, canvas.depth, canvas.softness)
    within = ramp(np.float32(head.atrophy) - canvas.depth, canvas.softness)
    grey *= within
    canvas.lay(grey, "grey")
    fluid *= within
    canvas.lay(fluid, "csf")
    part = canvas.within([-8.0, -110.0, 4.0], [8.0, 110.0, 80.0])
    if part is not None:
        _paint_sheet(part, geometry.fissure_distance(head, part.block))
    part = canvas.within([-75.0, -36.0, -24.0], [75.0, 44.0, 28.0])
    if part is not None:
        _paint_sheet(part, geometry.insula_distance(head, part.block))
    part = canvas.within([-40.0, -42.0, -14.0], [40.0, 42.0, 32.0])
    if part is not None:
        _paint_middle(head, part)


def _paint_sheet(canvas: Canvas, distance: Volume) -> None:
    """Fluid with cortex on both sides, inside the brain."""
    inside = ramp(-canvas.depth, canvas.softness)
    grey = ramp(distance - np.float32(2.8), canvas.softness)
    grey *= inside
    canvas.lay(grey, "grey")
    fluid = ramp(distance, canvas.softness)
    fluid *= inside
    canvas.lay(fluid, "csf")


def _paint_middle(head: Head, canvas: Canvas) -> None:
    x, y, z = (canvas.block.coordinate(axis) for axis in range(3))
    canvas.lay(ramp(geometry.callosum_distance(x, y, z), canvas.softness), "white")
    canvas.lay(ramp(geometry.deep_grey_distance(x, y, z), canvas.softness), "deep_grey")
    canvas.lay(ramp(geometry.ventricle_distance(head, x, y, z), canvas.softness), "csf")
    canvas.lay(ramp(geometry.third_ventricle_distance(head, x, y, z), canvas.softness), "csf")


def _extent(present: npt.NDArray[np.bool_]) -> Box | None:
    """The rows and columns between the first and the last True, all slices kept; None where there is none."""
    slices = [slice(None)]
    for others in ((0, 2), (0, 1)):
        where = np.flatnonzero(present.any(axis=others))
        if not len(where):
            return None
        slices.append(slice(int(where[0]), int(where[-1]) + 1))
    return slices[0], slices[1], slices[2]
