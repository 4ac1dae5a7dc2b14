"""Where a lesion with given parameters sits in a head, and its random shape."""

from dataclasses import dataclass

import numpy as np

from simulations.phantom.geometry import Head
from simulations.phantom.grid import Array, Waves, draw_waves
from simulations.phantom.lesion import PATTERNS, Looks

CAVITY_PROBABILITY = 0.85
CALLOSAL_SEMI_AXES = np.array([16.0, 10.0, 6.0])
_MOST_TRIES = 400


@dataclass(frozen=True)
class Ellipsoid:
    """A turned ellipsoid: the points with |matrix @ (point - center)| <= 1; mm."""

    center: Array
    matrix: Array

    @property
    def radius_mm(self) -> float:
        """Radius of the sphere of the same volume."""
        return float(abs(np.linalg.det(self.matrix)) ** (-1 / 3))


@dataclass(frozen=True)
class Lesion:
    """One lesion with its surroundings, in the head's millimetres.

    Attributes:
        pattern: One of PATTERNS.
        quotient: Share of the core's area that the T2 nodule fills.
        feathering_mm: Softness of the enhancing margin.
        contrast_mm: Contrast agent in the enhancing part at the standard dose, mM (millimolar).
        oedema_ratio: Volume of the oedema over that of the core.
        subependymal: Spreads along the ventricle's wall.
        core: The lesion without its surface noise.
        radius_mm: Mean radius of the core.
        surface: Noise of the radius.
        mesh: Holes of the mesh pattern.
        fingers: Noise of the oedema's edge.
        pocket: Where the middle of the core is liquid in ring lesions.
        cavity: Of the resection, or None.
        callosal: The part in the corpus callosum, or None.
        foci: Further small enhancing foci.
    """

    pattern: str
    quotient: float
    feathering_mm: float
    contrast_mm: float
    oedema_ratio: float
    subependymal: bool
    core: Ellipsoid
    radius_mm: float
    surface: Waves
    mesh: Waves
    fingers: Waves
    pocket: Ellipsoid
    cavity: Ellipsoid | None
    callosal: Ellipsoid | None
    foci: tuple[Ellipsoid, ...]

    @property
    def center(self) -> Array:
        return self.core.center

    @property
    def side(self) -> int:
        """-1 left, 1 right."""
        return 1 if self.center[0] > 0 else -1


def place_lesion(looks: Looks, head: Head, generator: np.random.Generator) -> Lesion:
    """Place the lesion whose parameters are the only entry of `looks`."""
    radius = float(looks.diameter_mm[0]) / 2
    center = _draw_center(head, radius, generator)
    matrix = _draw_matrix(radius, generator)
    quotient = float(looks.quotient[0])
    surface = draw_waves(generator, 0.9 * radius, 2.2 * radius)
    mesh, fingers = draw_waves(generator, 7.0, 15.0), draw_waves(generator, 22.0, 45.0)
    shift = generator.normal(0.0, 0.08 * radius, 3)
    pocket = Ellipsoid(center + shift, _draw_matrix(0.55 * radius * np.sqrt(quotient), generator))
    cavity = _draw_cavity(head, center, radius, generator)
    foci = tuple(_draw_focus(head, center, radius, generator) for _ in range(int(looks.num_foci[0])))
    callosal = None
    if looks.callosal[0]:
        y = float(np.clip(center[1] + generator.normal(0.0, 4.0), -28.0, 24.0))
        callosal = Ellipsoid(np.array([0.0, y, 20.0 - 0.004 * y * y]), np.diag(1 / CALLOSAL_SEMI_AXES))
    return Lesion(
        pattern=PATTERNS[int(looks.pattern[0])],
        quotient=quotient,
        feathering_mm=float(looks.feathering_mm[0]),
        contrast_mm=float(looks.contrast_mm[0]),
        oedema_ratio=float(looks.oedema_ratio[0]),
        subependymal=bool(looks.subependymal[0]),
        core=Ellipsoid(center, matrix),
        radius_mm=radius,
        surface=surface,
        mesh=mesh,
        fingers=fingers,
        pocket=pocket,
        cavity=cavity,
        callosal=callosal,
        foci=foci,
    )


def _draw_center(head: Head, radius: float, generator: np.random.Generator) -> Array:
    """Uniform in the box of the specification, deep enough in the brain for most of the lesion to fit."""
    wanted = 0.55 * radius + 5.0
    best, best_depth = np.zeros(3), -np.inf
    for _ in range(_MOST_TRIES):
        side = generator.choice([-1.0, 1.0])
        point = generator.uniform([18.0, -48.0, -14.0], [44.0, 46.0, 40.0]) * [side, 1.0, 1.0]
        depth = head.depth_at(point)
        if depth > best_depth:
            best, best_depth = point, depth
        if depth >= wanted:
            return np.asarray(point)
    return best


def _draw_rotation(generator: np.random.Generator) -> Array:
    q, r = np.linalg.qr(generator.standard_normal((3, 3)))
    return np.asarray(q * np.sign(np.diag(r)))


def _draw_matrix(radius: float, generator: np.random.Generator) -> Array:
    """A turned ellipsoid of the volume of a sphere of that radius, axes between .8 and 1.25 before that."""
    axes = generator.uniform(0.8, 1.25, 3)
    axes *= radius / np.prod(axes) ** (1 / 3)
    return np.asarray(_draw_rotation(generator).T / axes[:, None])


def _draw_cavity(head: Head, center: Array, radius: float, generator: np.random.Generator) -> Ellipsoid | None:
    """A cavity between the lesion and the cortex, on the straight way out."""
    present = generator.random() < CAVITY_PROBABILITY
    cavity_radius = float(np.clip(11.0 * np.exp(generator.normal(0.0, 0.3)), 5.0, 20.0))
    matrix = _draw_matrix(cavity_radius, generator)
    outward = center / head.semi_axes**2
    outward /= np.linalg.norm(outward)
    way_out = head.depth_at(center) * 1.1
    between = max(0.8 * radius + 0.75 * cavity_radius, (radius + way_out) / 2)
    return Ellipsoid(center + between * outward, matrix) if present else None


def _draw_focus(head: Head, center: Array, radius: float, generator: np.random.Generator) -> Ellipsoid:
    """A focus of 6-14 mm, 8-22 mm off the lesion's edge, inside the same hemisphere where possible."""
    focus_radius = generator.uniform(3.0, 7.0)
    best, best_depth = center, -np.inf
    for _ in range(40):
        direction = generator.standard_normal(3)
        direction /= np.linalg.norm(direction)
        point = center + direction * (radius + generator.uniform(8.0, 22.0))
        fits = min(head.depth_at(point), abs(point[0]) if point[0] * center[0] > 0 else -1.0)
        if fits > best_depth:
            best, best_depth = point, fits
        if fits >= focus_radius + 4.0:
            break
    return Ellipsoid(best, _draw_matrix(focus_radius, generator))
