"""Paint a lesion over a drawn brain: oedema, core, nodule, enhancement, cavity."""

from dataclasses import dataclass

import numpy as np

from simulations.phantom import geometry
from simulations.phantom.canvas import Canvas
from simulations.phantom.geometry import Head
from simulations.phantom.grid import Block, Volume, ramp
from simulations.phantom.placement import Ellipsoid, Lesion

SURFACE_NOISE = 0.13
FINGER_NOISE = 0.22
FILM_MM = 2.2
FILM_REACH_MM = 18.0
_NOISE_SDS = 2.5  # the boxes reach this far into the noise of a radius; what lies beyond is cut off
_LONGEST_AXIS = 1.4  # of a lesion of unit volume


@dataclass(frozen=True)
class _Tumour:
    """What lies where around a lesion: shares of the core and of its nodule, strength of enhancement; 0 to 1.

    All have the shape of the canvas, (k, j, i); the nodule is part of the core.
    """

    core: Volume
    nodule: Volume
    enhancing: Volume

    def add_solid(self, box: tuple[slice, slice, slice], alpha: Volume) -> None:
        """Add a part that enhances throughout."""
        for field in (self.core, self.nodule, self.enhancing):
            np.maximum(field[box], alpha, out=field[box])


def paint_lesion(head: Head, lesion: Lesion, canvas: Canvas) -> None:
    """Paint a lesion over the brain on a canvas, in place."""
    _paint_oedema(lesion, canvas)
    reach = lesion.radius_mm * _LONGEST_AXIS * (1 + _NOISE_SDS * SURFACE_NOISE) + 3 * lesion.feathering_mm
    low, high = lesion.center - reach, lesion.center + reach
    for part in (*lesion.foci, *([lesion.callosal] if lesion.callosal else [])):
        low, high = np.minimum(low, part.center - 30), np.maximum(high, part.center + 30)
    if lesion.subependymal:
        low, high = np.minimum(low, [-24.0, -40.0, -4.0]), np.maximum(high, [24.0, 40.0, 30.0])
    near = canvas.within(low, high)
    if near is not None:
        tumour = _Tumour(*(np.zeros(near.block.shape, np.float32) for _ in range(3)))
        allowed = _allowed(lesion, near)
        _add_main(lesion, near, allowed, tumour)
        for focus in lesion.foci:
            _add_focus(focus, lesion.feathering_mm, near, allowed, tumour)
        if lesion.callosal is not None:
            _add_focus(lesion.callosal, lesion.feathering_mm, near, None, tumour)
        if lesion.subependymal:
            _add_film(head, lesion, near, allowed, tumour)
        _lay_tumour(lesion, near, tumour)
    if lesion.cavity is not None:
        _paint_cavity(lesion.cavity, canvas)


def _allowed(lesion: Lesion, canvas: Canvas, *, blur_mm: float = 3.0) -> Volume:
    """Where disease may grow: in the brain and on its own side; only the callosal part crosses the midline."""
    across = canvas.block.coordinate(0) * np.float32(-lesion.side)
    across += np.float32(1.5) * canvas.block.waves(lesion.fingers)
    allowed = ramp(across + np.float32(0.5 * blur_mm), blur_mm)
    allowed *= ramp(np.float32(1.0) - canvas.depth, canvas.softness)
    return allowed


def _paint_oedema(lesion: Lesion, canvas: Canvas) -> None:
    """Fingers of oedema in white matter; the volumes of core and oedema add."""
    radii = (1 + lesion.oedema_ratio) ** (1 / 3)
    reach = lesion.radius_mm * _LONGEST_AXIS * radii * (1 + _NOISE_SDS * FINGER_NOISE)
    part = canvas.within(lesion.center - reach, lesion.center + reach)
    if part is None:
        return
    distance = np.sqrt(part.block.quadric(lesion.core.matrix, lesion.center))
    fingers = part.block.waves(lesion.fingers)
    fingers *= np.float32(FINGER_NOISE * radii)
    distance -= fingers
    distance -= np.float32(radii)
    distance *= np.float32(lesion.radius_mm)
    alpha = ramp(distance, max(3.0, part.softness))
    alpha *= part.white_share
    alpha *= _allowed(lesion, part, blur_mm=14.0)
    part.lay(alpha, "oedema")


def _add_main(lesion: Lesion, canvas: Canvas, allowed: Volume, tumour: _Tumour) -> None:
    reach = lesion.radius_mm * _LONGEST_AXIS * (1 + _NOISE_SDS * SURFACE_NOISE) + 3 * lesion.feathering_mm
    box = canvas.block.box(lesion.center - reach, lesion.center + reach)
    if box is None:
        return
    block, softness = canvas.block.crop(box), canvas.softness
    distance = np.sqrt(block.quadric(lesion.core.matrix, lesion.center))  # in radii
    # The radius is a random share longer or shorter, for core and nodule alike: that keeps the lesion quotient.
    distance /= 1 + np.clip(block.waves(lesion.surface), -_NOISE_SDS, _NOISE_SDS) * np.float32(SURFACE_NOISE)
    core = _soft((distance - 1) * np.float32(lesion.radius_mm), max(0.5 * lesion.feathering_mm, softness))
    core *= allowed[box]
    nodule_radius = np.float32(np.sqrt(lesion.quotient))
    nodule = ramp(lesion.radius_mm * (distance - nodule_radius), softness + 0.5)
    nodule *= core
    if lesion.pattern.endswith("ring"):
        nodule *= 1 - ramp(_distance(lesion.pocket, block), softness + 0.5)
    tumour.core[box], tumour.nodule[box] = core, nodule
    tumour.enhancing[box] = _strength(lesion, block, distance, softness) * allowed[box]


def _strength(lesion: Lesion, block: Block, distance: Volume, softness: float) -> Volume:
    """How strongly each voxel of the main lesion enhances, 0 to 1, given its distance from the centre in radii."""
    strength = _soft(lesion.radius_mm * (distance - 1), max(lesion.feathering_mm, 0.7 * softness))
    match lesion.pattern:
        case "solid":  # half as strong in the middle
            strength *= 1 - np.float32(0.5) * np.exp(-((distance / np.float32(0.45)) ** 2))
        case "thick_ring":
            strength *= _soft(lesion.radius_mm * (np.float32(0.55) - distance), max(1.0, softness))
        case "thin_ring":
            strength *= _soft(lesion.radius_mm * (1 - distance) - np.float32(5), max(1.0, softness))
        case _:
            holes = block.waves(lesion.mesh)
            strength *= np.float32(0.15) + np.float32(0.85) / (1 + np.exp(4 * holes - np.float32(1)))
    return strength


def _add_focus(shape: Ellipsoid, feathering_mm: float, canvas: Canvas, allowed: Volume | None, tumour: _Tumour) -> None:
    """A small part that enhances throughout; grows anywhere in the brain where `allowed` is None."""
    box = canvas.block.box(shape.center - 30, shape.center + 30)
    if box is not None:
        distance = _distance(shape, canvas.block.crop(box))
        alpha = _soft(distance, max(0.5 * feathering_mm, 0.5 * canvas.softness))
        if allowed is not None:
            alpha *= allowed[box]
        tumour.add_solid(box, alpha)


def _add_film(head: Head, lesion: Lesion, canvas: Canvas, allowed: Volume, tumour: _Tumour) -> None:
    """Spread along the wall of the near ventricle, within reach of the lesion."""
    x, y, z = (canvas.block.coordinate(axis) for axis in range(3))
    wall = geometry.ventricle_distance(head, x, y, z)
    film = ramp(np.abs(wall - np.float32(FILM_MM / 2)) - np.float32(FILM_MM / 2), canvas.softness)
    away = np.sqrt(canvas.block.quadric(np.eye(3), lesion.center))
    film *= ramp(away - np.float32(lesion.radius_mm + FILM_REACH_MM), 3.0)
    film *= allowed
    tumour.add_solid((slice(None), slice(None), slice(None)), film)


def _lay_tumour(lesion: Lesion, canvas: Canvas, tumour: _Tumour) -> None:
    """Core, nodule and what contrast adds."""
    canvas.lay(tumour.core, "necrosis")
    nodule_step = np.subtract(canvas.signals("solid"), canvas.signals("necrosis"))
    contrast = tumour.enhancing * np.float32(lesion.contrast_mm)
    around, liquid = 1 - tumour.core, tumour.core - tumour.nodule
    for channel, step, weighting in zip(canvas.stack, nodule_step, canvas.weightings, strict=False):
        added = tumour.nodule * np.float32(step)
        if weighting.dose > 0:
            added += around * weighting.enhancement("oedema", contrast)
            added += liquid * weighting.enhancement("necrosis", contrast)
            added += tumour.nodule * weighting.enhancement("solid", contrast)
        np.add(channel, added, out=channel)


def _paint_cavity(cavity: Ellipsoid, canvas: Canvas) -> None:
    part = canvas.within(cavity.center - 40, cavity.center + 40)
    if part is not None:
        distance = np.maximum(_distance(cavity, part.block), np.float32(0.5) - part.depth)
        part.lay(ramp(distance, part.softness), "csf")


def _distance(shape: Ellipsoid, block: Block) -> Volume:
    """Distance to an ellipsoid's surface in mm, positive outside, as if it were a sphere of its volume."""
    distance = np.sqrt(block.quadric(shape.matrix, shape.center))
    distance -= 1
    distance *= np.float32(shape.radius_mm)
    return distance


def _soft(distance: Volume, width: float) -> Volume:
    """1 inside, 0 outside, falling from 3/4 to 1/4 over `width` mm."""
    exponent = np.clip(distance * np.float32(2.2 / width), -30, 30)
    inside: Volume = 1 / (1 + np.exp(exponent, out=exponent))
    return inside
