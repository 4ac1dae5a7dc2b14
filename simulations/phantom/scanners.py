"""The scanners of the hospitals: sequences, grid, coil, noise and how intensities are stored."""

from collections.abc import Mapping
from dataclasses import dataclass

from simulations.phantom.tissue import FieldStrength, PulseSequence, Weighting


@dataclass(frozen=True)
class Scanner:
    """One scanner with its protocol.

    Attributes:
        field: Field strength.
        t1: T1-weighted sequence, before and after contrast.
        t2: T2-weighted sequence.
        spacing_mm: Voxel edges along the axes of the stored array; the last axis is the slice axis.
        axes: Anatomical direction towards which each array axis runs, such as "LPS".
        oblique_deg: Angle by which the grid is turned away from the anatomical axes.
        bias: Standard deviation of the logarithm of the coil's sensitivity.
        snr: Signal of white matter over the standard deviation of the noise.
        scale: Stored value of white matter.
        dose: Contrast agent given, as a multiple of the standard dose.
    """

    field: FieldStrength
    t1: PulseSequence
    t2: PulseSequence
    spacing_mm: tuple[float, float, float]
    axes: str
    oblique_deg: float
    bias: float
    snr: float
    scale: float
    dose: float

    def weightings(self) -> Mapping[str, Weighting]:
        """How each image of an exam sees tissue, by sequence: t1, t2, t1ce."""
        return {
            "t1": Weighting(self.field, self.t1),
            "t2": Weighting(self.field, self.t2),
            "t1ce": Weighting(self.field, self.t1, self.dose),
        }


_LARGE_CENTRE = Scanner(
    "3T", PulseSequence(2000, 9, 860), PulseSequence(4500, 100), (1, 1, 1), "RAS", 2, 0.20, 30, 900, 1.0
)
_OLD_T1, _OLD_T2 = PulseSequence(450, 9), PulseSequence(3500, 85)

SCANNERS: Mapping[str, Scanner] = {
    "A": _LARGE_CENTRE,
    "B": Scanner("1.5T", PulseSequence(500, 12), PulseSequence(4000, 98), (0.5, 0.5, 6), "LPS", 12, 0.08, 18, 250, 0.9),
    "C": Scanner(
        "3T", PulseSequence(1750, 24, 780), PulseSequence(5600, 110), (0.9, 0.9, 1.2), "PSR", 5, 0.28, 24, 2500, 1.1
    ),
    "D": Scanner("1.5T", _OLD_T1, _OLD_T2, (0.86, 0.86, 5), "LAS", 15, 0.06, 12, 120, 0.8),
    "E": Scanner(
        "3T", PulseSequence(600, 10), PulseSequence(6000, 120), (0.43, 0.43, 5.5), "RAS", 8, 0.24, 22, 40, 1.0
    ),
    "F": Scanner("1.5T", _OLD_T1, _OLD_T2, (1, 1, 5), "LPS", 10, 0.10, 14, 4000, 0.9),
    "P": _LARGE_CENTRE,  # what the paper's patients were scanned with is not in its readable text
}
