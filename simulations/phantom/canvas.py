"""What a part of the head looks like to every sequence while it is being painted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulations.phantom.grid import Array, Block, Box, Volume
from simulations.phantom.tissue import TissueName, Weighting


@dataclass(frozen=True)
class Canvas:
    """A box of voxels and their signal; a crop is a view, so painting on it paints on the whole.

    Attributes:
        stack: Signal per sequence, over that of white matter, and last the share of white matter;
            shape (channels, k, j, i).
        block: Where the voxels lie.
        depth: Distance from the brain's surface in mm, positive inside; shape (k, j, i).
        weightings: The sequences, one a channel.
        softness: Width of an edge in mm, about that of a voxel.
    """

    stack: Volume
    block: Block
    depth: Volume
    weightings: Sequence[Weighting]
    softness: float

    @property
    def white_share(self) -> Volume:
        """Share of normal white matter in each voxel, 0 to 1."""
        share: Volume = np.clip(self.stack[-1], 0.0, 1.0)
        return share

    def crop(self, box: Box) -> "Canvas":
        """A view of a part."""
        return Canvas(
            self.stack[(slice(None), *box)],
            self.block.crop(box),
            self.depth[box],
            self.weightings,
            self.softness,
        )

    def within(self, lower: Sequence[float] | Array, upper: Sequence[float] | Array) -> "Canvas | None":
        """A view of the voxels between two corners in mm, or None where there is none."""
        box = self.block.box(lower, upper)
        return None if box is None else self.crop(box)

    def signals(self, tissue: TissueName, contrast_mm: float = 0.0) -> list[float]:
        """What a tissue is in each channel; `contrast_mm` is the contrast agent a standard dose brings there."""
        return [w.relative(tissue, contrast_mm) for w in self.weightings] + [float(tissue == "white")]

    def lay(self, alpha: Volume, tissue: TissueName, contrast_mm: float = 0.0) -> None:
        """Lay a tissue over what is there; `alpha` is its share of each voxel, 0 to 1."""
        for channel, signal in zip(self.stack, self.signals(tissue, contrast_mm), strict=True):
            change = np.float32(signal) - channel
            change *= alpha
            np.add(channel, change, out=channel)
