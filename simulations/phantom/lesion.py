"""What a lesion looks like, given its class: the class-conditional distributions and their likelihood ratio.

The images of the classes differ in nothing but these nine parameters, drawn independently of each other, so the
likelihood ratio is the best possible reader and its AUC the ceiling of every network.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, log_ndtr

from simulations.phantom.grid import Array

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

NECROSIS, RECURRENCE = 1, 0
PATTERNS = ("solid", "thick_ring", "thin_ring", "mesh")

# Probabilities under necrosis and under recurrence.
_CATEGORICAL: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "pattern": ((0.15, 0.17, 0.33, 0.35), (0.42, 0.30, 0.15, 0.13)),
    "subependymal": ((0.933, 0.067), (0.72, 0.28)),
    "callosal": ((0.92, 0.08), (0.80, 0.20)),
    "num_foci": ((0.80, 0.14, 0.06), (0.68, 0.20, 0.12)),
}


@dataclass(frozen=True)
class _Normal:
    """A normal distribution of x or of log x: means under both classes, standard deviation, clip range of x."""

    necrosis: float
    recurrence: float
    sd: float
    logarithmic: bool
    lowest: float = 0.0
    highest: float = np.inf


_NORMAL: Mapping[str, _Normal] = {
    "feathering_mm": _Normal(np.log(2.4), np.log(1.7), 0.45, True),
    "contrast_mm": _Normal(0.33, 0.40, 0.10, False, 0.08, 0.8),
    "oedema_ratio": _Normal(np.log(2.6), np.log(2.0), 0.60, True),
    "diameter_mm": _Normal(np.log(31.0), np.log(33.0), 0.38, True, 10.0, 70.0),
}
_QUOTIENT_MEANS, _QUOTIENT_SD = (0.40, 0.55), 0.17


@dataclass(frozen=True)
class Looks:
    """Parameters of N lesions; every array has shape (N,).

    Attributes:
        pattern: Index into PATTERNS, the way of enhancing.
        quotient: Lesion quotient, share of the core that the T2 nodule fills, 0 to 1.
        feathering_mm: Softness of the enhancing margin.
        contrast_mm: Contrast agent in the enhancing part at the standard dose, mM (millimolar).
        oedema_ratio: Volume of the oedema over that of the core.
        subependymal: Spreads along the ventricle's wall.
        callosal: Reaches into the corpus callosum.
        num_foci: Further small enhancing foci, 0 to 2.
        diameter_mm: Diameter of the core.
    """

    pattern: Indices
    quotient: Array
    feathering_mm: Array
    contrast_mm: Array
    oedema_ratio: Array
    subependymal: Flags
    callosal: Flags
    num_foci: Indices
    diameter_mm: Array


def draw_looks(look: Indices, separation: float, generator: np.random.Generator) -> Looks:
    """Draw the parameters of lesions.

    Args:
        look: The class each lesion looks like, 1 necrosis or 0 recurrence; shape (N,).
        separation: λ; 0 makes the classes equal, 1 is realism. Scales means (of the logarithm where log-normal) and
            log-probabilities about the midpoint of the two classes.
        generator: Source of randomness.
    """
    is_necrosis = np.asarray(look) == NECROSIS
    chosen = {name: _draw_category(_probabilities(name, separation), is_necrosis, generator) for name in _CATEGORICAL}
    numbers = {}
    for name, normal in _NORMAL.items():
        necrosis, recurrence = _apart(normal.necrosis, normal.recurrence, separation)
        value = generator.normal(np.where(is_necrosis, necrosis, recurrence), normal.sd)
        numbers[name] = np.clip(np.exp(value) if normal.logarithmic else value, normal.lowest, normal.highest)
    shapes = np.where(is_necrosis[:, None], *_quotient_shapes(separation))  # (N, 2)
    return Looks(
        pattern=chosen["pattern"],
        quotient=np.clip(generator.beta(shapes[:, 0], shapes[:, 1]), 1e-6, 1 - 1e-6),
        subependymal=chosen["subependymal"] == 1,
        callosal=chosen["callosal"] == 1,
        num_foci=chosen["num_foci"],
        **numbers,
    )


def log_likelihood_ratios(looks: Looks, separation: float) -> dict[str, Array]:
    """The value ln p(parameter | necrosis) - ln p(parameter | recurrence) of every parameter; each of shape (N,)."""
    ratios: dict[str, Array] = {}
    for name in _CATEGORICAL:
        necrosis, recurrence = _probabilities(name, separation)
        ratios[name] = np.log(necrosis / recurrence)[getattr(looks, name).astype(int)]
    for name, normal in _NORMAL.items():
        ratios[name] = _normal_ratio(getattr(looks, name), normal, separation)
    (a1, b1), (a0, b0) = _quotient_shapes(separation)
    x = looks.quotient
    ratios["quotient"] = (a1 - a0) * np.log(x) + (b1 - b0) * np.log1p(-x) - betaln(a1, b1) + betaln(a0, b0)
    return ratios


def log_likelihood_ratio(looks: Looks, separation: float) -> Array:
    """The joint log likelihood ratio of necrosis against recurrence: the best possible score; shape (N,)."""
    joint: Array = np.sum(list(log_likelihood_ratios(looks, separation).values()), axis=0)
    return joint


def atypical_auc(auc: float, atypical: float) -> float:
    """The best possible AUC when a share `atypical` of both classes looks like the other one."""
    return (1 - atypical) ** 2 * auc + atypical * (1 - atypical) + atypical**2 * (1 - auc)


def _apart(necrosis: float, recurrence: float, separation: float) -> tuple[float, float]:
    middle = (necrosis + recurrence) / 2
    return middle + separation * (necrosis - middle), middle + separation * (recurrence - middle)


def _probabilities(name: str, separation: float) -> tuple[Array, Array]:
    """Probabilities under necrosis and recurrence; their logarithms move apart, so that all stay positive."""
    necrosis, recurrence = (np.log(p) for p in _CATEGORICAL[name])
    middle = (necrosis + recurrence) / 2
    scaled = [np.exp(middle + separation * (p - middle)) for p in (necrosis, recurrence)]
    return scaled[0] / scaled[0].sum(), scaled[1] / scaled[1].sum()


def _draw_category(probabilities: tuple[Array, Array], is_necrosis: Flags, generator: np.random.Generator) -> Indices:
    cumulative = np.where(is_necrosis[:, None], *(p.cumsum() for p in probabilities))  # (N, categories)
    drawn: Indices = (generator.random((len(is_necrosis), 1)) > cumulative[:, :-1]).sum(1)
    return drawn


def _quotient_shapes(separation: float) -> tuple[Array, Array]:
    """The two shape parameters of the beta distribution, under necrosis and under recurrence."""
    shapes = []
    for mean in _apart(*_QUOTIENT_MEANS, separation):
        total = mean * (1 - mean) / _QUOTIENT_SD**2 - 1
        shapes.append(np.array([mean * total, (1 - mean) * total]))
    return shapes[0], shapes[1]


def _normal_ratio(x: Array, normal: _Normal, separation: float) -> Array:
    """Log density ratio inside the clip range, log ratio of the clipped tails at its ends."""
    means = _apart(normal.necrosis, normal.recurrence, separation)
    value = np.log(x) if normal.logarithmic else x
    z = [(value - mean) / normal.sd for mean in means]
    inside = (z[1] ** 2 - z[0] ** 2) / 2
    below = log_ndtr(z[0]) - log_ndtr(z[1])
    above = log_ndtr(-z[0]) - log_ndtr(-z[1])
    return np.select([x <= normal.lowest, x >= normal.highest], [below, above], inside)
