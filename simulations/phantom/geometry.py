"""A head in millimetres: RAS, origin at the brain's centre; shells, folded cortex, ventricles, deep grey matter.

The skull reaches from the brain's ellipsoid to the one 9/8/11 mm further out, the scalp from there to 14/13/17 mm.
Beyond the specification, to make the head look like one: marrow inside the skull, sulci (sheets on which a random
field is zero), grey matter along the fissure, the head of the caudate and a skin.
"""

from dataclasses import dataclass

import numpy as np

from simulations.phantom.grid import Array, Block, Volume, Waves, draw_waves, ramp
from simulations.phantom.tissue import TissueName

BRAIN_SEMI_AXES = np.array([67.0, 84.0, 60.0])
SKULL_MARGIN = np.array([9.0, 8.0, 11.0])
SCALP_MARGIN = np.array([14.0, 13.0, 17.0])
SKIN_MM = 2.0
# Base tissues from outside in; the marrow lies between two layers of bone.
LAYERS: tuple[TissueName, ...] = ("skin", "fat", "bone", "marrow", "bone", "csf", "grey", "white")


@dataclass(frozen=True)
class Head:
    """What makes one head differ from another.

    Attributes:
        semi_axes: Of the brain's ellipsoid, mm; shape (3,).
        atrophy: Width of all spaces of cerebrospinal fluid, 1 in the mean of youth.
        folds: Thickness of fluid and cortex over the surface.
        sulci: Sulci are where this field is zero.
        sulcal_reach: How deep the sulci go.
    """

    semi_axes: Array
    atrophy: float
    folds: Waves
    sulci: Waves
    sulcal_reach: Waves

    def depth(self, block: Block) -> Volume:
        """Distance to the brain's surface in mm, positive inside; exact to first order at the surface."""
        return ellipsoid_depth(block, np.zeros(3), self.semi_axes)

    def depth_at(self, point: Array) -> float:
        """The same of a single point; shape (3,)."""
        scaled = float(np.linalg.norm(point / self.semi_axes))
        slope = float(np.linalg.norm(point / self.semi_axes**2))
        return scaled * (1 - scaled) / max(slope, 1e-9)


def draw_head(generator: np.random.Generator) -> Head:
    """Draw a head."""
    return Head(
        semi_axes=BRAIN_SEMI_AXES * np.clip(generator.normal(1.0, 0.035, 3), 0.9, 1.1),
        atrophy=float(np.clip(generator.normal(1.15, 0.25), 0.7, 2.0)),
        folds=draw_waves(generator, 14.0, 30.0),
        sulci=draw_waves(generator, 15.0, 28.0, num_waves=16),
        sulcal_reach=draw_waves(generator, 30.0, 60.0, num_waves=6),
    )


def ellipsoid_depth(block: Block, center: Array, semi_axes: Array) -> Volume:
    """Distance to the surface of an ellipsoid along the axes in mm, positive inside, to first order."""
    scaled = np.sqrt(block.quadric(np.diag(1 / semi_axes), center))
    slope = np.sqrt(block.quadric(np.diag(1 / semi_axes**2), center))
    np.maximum(slope, np.float32(1e-6), out=slope)
    depth: Volume = 1 - scaled
    depth *= scaled
    depth /= slope
    return depth


def outside_scalp(head: Head, block: Block) -> Volume:
    """Distance to the skin's outer surface in mm, positive outside; good to a few per cent."""
    axes = head.semi_axes + SCALP_MARGIN
    distance = np.sqrt(block.quadric(np.diag(1 / axes), np.zeros(3)))
    distance -= 1
    distance *= np.float32(axes.mean())
    return distance


def layer_distances(head: Head, block: Block, depth: Volume, outside: Volume) -> list[Volume]:
    """Distance to the outer surface of every layer of LAYERS in mm, positive outside."""
    skull_axes = head.semi_axes + SKULL_MARGIN
    skull = np.sqrt(block.quadric(np.diag(1 / skull_axes), np.zeros(3)))
    skull -= 1
    skull *= np.float32(skull_axes.mean())
    g = block.waves(head.folds)
    cortex = np.maximum(np.float32(head.atrophy) + np.float32(1.6) * g, np.float32(0.3))
    white = np.maximum(np.float32(4.5) + np.float32(2.2) * g, cortex + np.float32(2.0))
    return [
        outside.copy(),
        outside + np.float32(SKIN_MM),
        skull,
        -depth - np.float32(6.5),
        -depth - np.float32(3.0),
        -depth,
        cortex - depth,
        white - depth,
    ]


def sulci(head: Head, block: Block, depth: Volume, softness: float) -> tuple[Volume, Volume]:
    """Shares of grey matter and of fluid in the sulci: a ribbon of cortex on both sides of a thin sheet of fluid."""
    value, slope = block.waves_and_slope(head.sulci)
    slope += np.float32(0.02)
    sheet = np.abs(value, out=value)
    sheet /= slope
    reach = block.waves(head.sulcal_reach)
    reach *= np.float32(-5.0)
    reach -= np.float32(20.0)
    reach += depth  # positive deeper than the sulcus goes
    grey = np.maximum(sheet - np.float32(2.8), reach)
    fluid = np.maximum(sheet - np.float32(0.6 * head.atrophy), reach + np.float32(3.5))
    return ramp(grey, softness), ramp(fluid, softness)


def fissure_distance(head: Head, block: Block) -> Volume:
    """Distance to the slightly wavy sheet of fluid between the hemispheres, above z = 8 mm and the corpus callosum."""
    x, y, z = (block.coordinate(axis) for axis in range(3))
    x += np.float32(0.8) * block.waves(head.sulcal_reach)
    over_callosum = np.abs(y + 2) < np.float32(35.0)
    bottom = np.where(over_callosum, callosum_height(y) + np.float32(4.0), np.float32(8.0))
    distance: Volume = np.maximum(np.abs(x) - np.float32(1.2 * head.atrophy), bottom - z)
    return distance


def insula_distance(head: Head, block: Block) -> Volume:
    """Distance to the fluid over the insula and in the cleft that leads there from the side."""
    x, y, z = (block.coordinate(axis) for axis in range(3))
    side, half_width = np.abs(x), np.float32(0.8 * head.atrophy)
    bend = np.float32(0.6) * block.waves(head.folds)
    floor = np.float32(41.0) - np.float32(0.008) * (y - 4) ** 2
    wall = np.abs(side - floor + bend) - half_width
    wall = np.maximum(np.maximum(wall, np.abs(y - 4) - np.float32(24.0)), np.abs(z - 3) - np.float32(13.0))
    cleft = np.abs(z + np.float32(0.8) * y - 6 + bend) - half_width  # rises towards the back
    cleft = np.maximum(cleft, np.float32(41.0) + np.float32(0.03) * (y - 4) ** 2 - side)
    distance: Volume = np.minimum(wall, cleft)
    return distance


def callosum_distance(x: Volume, y: Volume, z: Volume) -> Volume:
    """Distance to the corpus callosum, an arched plate across the midline."""
    arch = callosum_height(y)
    side = np.maximum(np.abs(x) - np.float32(12.0), np.abs(y + 2) - np.float32(34.0))
    distance: Volume = np.maximum(side, np.abs(z - arch) - np.float32(3.5))
    return distance


def callosum_height(y: Volume) -> Volume:
    """Height z of the middle of the corpus callosum at y, mm."""
    height: Volume = np.float32(20.0) - np.float32(0.004) * y * y
    return height


def ventricle_distance(head: Head, x: Volume, y: Volume, z: Volume) -> Volume:
    """Distance to the nearer lateral ventricle in mm, positive outside, to first order."""
    across: Volume = np.abs(x)
    across = across - np.float32(11.0)
    across -= np.float32(0.1) * np.abs(y)
    up: Volume = z - np.float32(12.0) - np.float32(0.06) * y
    return _bent_ellipsoid(across, y, up, (6.0 * head.atrophy, 34.0, 7.0 * head.atrophy))


def third_ventricle_distance(head: Head, x: Volume, y: Volume, z: Volume) -> Volume:
    """Distance to the third ventricle, a slit between the thalami."""
    return _bent_ellipsoid(x, y + 8, z - 2, (1.6 * head.atrophy, 14.0, 9.0))


def deep_grey_distance(x: Volume, y: Volume, z: Volume) -> Volume:
    """Distance to the nearest of lentiform nucleus, thalamus and head of the caudate, of the side x lies on."""
    side = np.abs(x)
    lentiform = _bent_ellipsoid(side - 26, y - 4, z - 2, (7.0, 17.0, 11.0))
    thalamus = _bent_ellipsoid(side - 11, y + 18, z - 6, (9.0, 14.0, 9.0))
    caudate = _bent_ellipsoid(side - 17, y - 18, z - 9, (5.0, 11.0, 9.0))
    nearest: Volume = np.minimum(np.minimum(lentiform, thalamus), caudate)
    return nearest


def sinus_distance(x: Volume, depth: Volume, z: Volume) -> Volume:
    """Distance to the superior sagittal sinus: along the midline at the skull's inner side, above z = 5 mm."""
    round_ = np.hypot(x / np.float32(4.0), (depth + np.float32(0.5)) / np.float32(3.5))
    distance: Volume = np.maximum((round_ - 1) * np.float32(3.7), np.float32(5.0) - z)
    return distance


def _bent_ellipsoid(u: Volume, v: Volume, w: Volume, semi_axes: tuple[float, float, float]) -> Volume:
    """First-order distance to an ellipsoid given coordinates along its (possibly bent) axes."""
    scaled, slope = np.zeros_like(u), np.zeros_like(u)
    for coordinate, semi in zip((u, v, w), semi_axes, strict=True):
        squared = coordinate * np.float32(1 / semi)
        squared *= squared
        scaled += squared
        squared *= np.float32(1 / semi**2)
        slope += squared
    np.sqrt(scaled, out=scaled)
    np.sqrt(slope, out=slope)
    np.maximum(slope, np.float32(1e-6), out=slope)
    distance: Volume = scaled * (scaled - 1) / slope
    return distance
