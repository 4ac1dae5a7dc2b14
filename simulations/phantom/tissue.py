"""What a tissue looks like in a sequence: relaxation times, spin echo, inversion recovery, contrast agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np

from simulations.phantom.grid import Volume

FieldStrength = Literal["1.5T", "3T"]
TissueName = Literal[
    "white", "grey", "deep_grey", "csf", "oedema", "solid", "necrosis", "fat", "skin", "bone", "marrow", "sinus"
]


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms and proton density relative to water."""

    t1_ms: float
    t2_ms: float
    density: float


@dataclass(frozen=True)
class PulseSequence:
    """Timing of a spin echo or, with an inversion time, of an inversion recovery; all in ms."""

    repetition_ms: float
    echo_ms: float
    inversion_ms: float | None = None


# Tissues of the brain and fat: the table of the phantom's specification. The rest is there to make a head of it.
TISSUES: Mapping[FieldStrength, Mapping[TissueName, Tissue]] = {
    "1.5T": {
        "white": Tissue(620, 76, 0.75),
        "grey": Tissue(1000, 92, 0.86),
        "deep_grey": Tissue(850, 82, 0.82),
        "csf": Tissue(4000, 1900, 1.0),
        "oedema": Tissue(1150, 150, 0.86),
        "solid": Tissue(1150, 108, 0.87),
        "necrosis": Tissue(2200, 280, 0.95),
        "fat": Tissue(260, 80, 0.9),
        "skin": Tissue(900, 40, 0.7),
        "bone": Tissue(500, 10, 0.05),
        "marrow": Tissue(320, 60, 0.45),
        "sinus": Tissue(1400, 60, 0.6),  # flowing blood, mostly a void
    },
    "3T": {
        "white": Tissue(880, 70, 0.75),
        "grey": Tissue(1400, 88, 0.86),
        "deep_grey": Tissue(1200, 75, 0.82),
        "csf": Tissue(4300, 1800, 1.0),
        "oedema": Tissue(1550, 135, 0.86),
        "solid": Tissue(1550, 100, 0.87),
        "necrosis": Tissue(2700, 250, 0.95),
        "fat": Tissue(370, 70, 0.9),
        "skin": Tissue(1200, 35, 0.7),
        "bone": Tissue(600, 8, 0.05),
        "marrow": Tissue(420, 50, 0.45),
        "sinus": Tissue(1650, 50, 0.6),
    },
}

# Relaxivity r1 of the contrast agent, 1/(mM s).
RELAXIVITY: Mapping[FieldStrength, float] = {"1.5T": 4.3, "3T": 3.7}

# Contrast agent in tissues that take it up without any disease, mM.
DISTRACTOR_CONTRAST_MM: Mapping[TissueName, float] = {"fat": 0.06, "skin": 0.25, "sinus": 0.9}


@overload
def spin_signal(tissue: Tissue, sequence: PulseSequence, relaxivity: float, contrast_mm: float = 0.0) -> float: ...
@overload
def spin_signal(tissue: Tissue, sequence: PulseSequence, relaxivity: float, contrast_mm: Volume) -> Volume: ...
def spin_signal(
    tissue: Tissue, sequence: PulseSequence, relaxivity: float, contrast_mm: float | Volume = 0.0
) -> float | Volume:
    """Signal of a tissue, relative to the full magnetisation of water.

    Spin echo PD (1 - e^(-TR/T1)) e^(-TE/T2); inversion recovery PD |1 - 2 e^(-TI/T1) + e^(-TR/T1)| e^(-TE/T2); contrast
    agent shortens T1 by 1/T1' = 1/T1 + r1 C / 1000 (ms, mM) and leaves T2 alone.

    Args:
        tissue: Relaxation times and density.
        sequence: Timing.
        relaxivity: r1 in 1/(mM s).
        contrast_mm: Concentration C in mM, one number or one a voxel.
    """
    rate = contrast_mm * np.float32(relaxivity / 1000.0) + np.float32(1.0 / tissue.t1_ms)
    transverse = np.float32(tissue.density * np.exp(-sequence.echo_ms / tissue.t2_ms))
    recovered = np.exp(rate * np.float32(-sequence.repetition_ms))
    if sequence.inversion_ms is None:
        longitudinal = 1 - recovered
    else:
        longitudinal = np.abs(1 - 2 * np.exp(rate * np.float32(-sequence.inversion_ms)) + recovered)
    signal = transverse * longitudinal
    return signal if isinstance(signal, np.ndarray) else float(signal)


@dataclass(frozen=True)
class Weighting:
    """How one image of an exam sees tissue.

    Attributes:
        field: Field strength.
        sequence: Timing.
        dose: Contrast agent given, as a multiple of the standard dose; 0 before contrast.
    """

    field: FieldStrength
    sequence: PulseSequence
    dose: float = 0.0

    def relative(self, name: TissueName, contrast_mm: float = 0.0) -> float:
        """Signal of a tissue over that of normal white matter; `contrast_mm` is what the standard dose leads to."""
        return self._signal(name, contrast_mm * self.dose) / self._signal("white", 0.0)

    def enhancement(self, name: TissueName, contrast_mm: Volume) -> Volume:
        """What contrast adds to the signal of a tissue, over the signal of normal white matter."""
        tissue, r1 = TISSUES[self.field][name], RELAXIVITY[self.field]
        enhanced = spin_signal(tissue, self.sequence, r1, contrast_mm * np.float32(self.dose))
        enhanced -= np.float32(self._signal(name, 0.0))
        enhanced /= np.float32(self._signal("white", 0.0))
        return enhanced

    def _signal(self, name: TissueName, contrast_mm: float) -> float:
        return spin_signal(TISSUES[self.field][name], self.sequence, RELAXIVITY[self.field], contrast_mm)
