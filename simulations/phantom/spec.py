"""The hospitals, and what a user may choose about all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.errors import ConfigError, list_of_faults
from simulations.phantom.scanners import SCANNERS, Scanner

SequenceName = Literal["t1", "t2", "t1ce"]
SEQUENCES: tuple[SequenceName, ...] = ("t1", "t2", "t1ce")


@dataclass(frozen=True)
class HospitalSpec:
    """A hospital: what it scans with and whom it sees.

    Attributes:
        name: A capital letter.
        scanner: Its scanner.
        num_patients: Patients unless told otherwise.
        necrosis_share: Share of patients with radiation necrosis.
        missing: Probability that a sequence is absent, by sequence.
        label_noise: Probability that the recorded label is the wrong one, unless the options say otherwise.
    """

    name: str
    scanner: Scanner
    num_patients: int
    necrosis_share: float
    missing: Mapping[SequenceName, float]
    label_noise: float = 0.0

    @property
    def site(self) -> str:
        """The name the hospital goes by in a federation, which is also that of its folder."""
        return f"hospital-{self.name.lower()}"


def _missing(t1: float, t2: float, t1ce: float) -> Mapping[SequenceName, float]:
    return {"t1": t1, "t2": t2, "t1ce": t1ce}


HOSPITALS: Mapping[str, HospitalSpec] = {
    "A": HospitalSpec("A", SCANNERS["A"], 120, 0.18, _missing(0.0, 0.0, 0.0)),
    "B": HospitalSpec("B", SCANNERS["B"], 60, 0.12, _missing(0.02, 0.10, 0.07)),
    "C": HospitalSpec("C", SCANNERS["C"], 45, 0.35, _missing(0.0, 0.05, 0.0)),
    "D": HospitalSpec("D", SCANNERS["D"], 30, 0.25, _missing(0.05, 0.15, 0.05)),
    "E": HospitalSpec("E", SCANNERS["E"], 24, 0.10, _missing(0.0, 0.0, 0.03)),
    "F": HospitalSpec("F", SCANNERS["F"], 10, 0.30, _missing(0.0, 1.0, 0.0), label_noise=0.10),
    # The source paper's one hospital in number and classes (simulations.paper.published): 234 patients, 42 necroses.
    "P": HospitalSpec("P", SCANNERS["P"], 234, 42 / 234, _missing(0.0, 0.0, 0.0)),
}


@dataclass(frozen=True)
class PhantomOptions:
    """Choices that hold for all hospitals.

    Attributes:
        separation: λ, how far apart the classes are: 1 realism (best possible AUC .903), 1.5 (.974), 2 (.995).
        atypical: Share of both classes that looks like the other one.
        seed: All that is random follows from it.
        spacing_mm: Voxel edges are at least this long; None for what the scanner does. Thicker slices stay thick.
        misregistration_mm: Largest shift between T1ce and each of the other sequences; rotations go up to 2° per 3 mm.
        label_correlated_missingness: A missing T1ce is 1.6 times as likely in necrosis.
        label_noise: Probability of a wrong label at every hospital; None for each hospital's own.
        duplicate_patient: Two hospitals: the last patient of the second one is the first patient of the first one, with
            the same images under another identifier.
    """

    separation: float = 1.5
    atypical: float = 0.0
    seed: int = 0
    spacing_mm: float | None = None
    misregistration_mm: float = 0.0
    label_correlated_missingness: bool = False
    label_noise: float | None = None
    duplicate_patient: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        faults = []
        for name, value, low, high in (
            ("separation", self.separation, 0.0, 2.5),
            ("atypical", self.atypical, 0.0, 1.0),
            ("seed", self.seed, 0, 2**63),
            ("spacing_mm", 1.0 if self.spacing_mm is None else self.spacing_mm, 0.2, 10.0),
            ("misregistration_mm", self.misregistration_mm, 0.0, 20.0),
            ("label_noise", self.label_noise or 0.0, 0.0, 1.0),
        ):
            if not (np.isfinite(value) and low <= value <= high):
                faults.append(f"{name} is {value}, expected a number from {low} to {high}")
        if self.duplicate_patient is not None:
            known = set(self.duplicate_patient) <= set(HOSPITALS)
            if not known or len(set(self.duplicate_patient)) != 2:
                faults.append(f"duplicate_patient is {self.duplicate_patient}, expected two of {', '.join(HOSPITALS)}")
        if faults:
            raise ConfigError(list_of_faults("phantom options", faults))


def random_stream(seed: int, site: str, purpose: str, index: int = 0) -> np.random.Generator:
    """A generator for every seed, hospital, purpose and patient, so that order and workers change nothing."""
    key = (int.from_bytes(site.encode(), "big"), int.from_bytes(purpose.encode(), "big"), index)
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    # The generator with the fastest normal deviates; an exam takes forty million.
    return np.random.Generator(np.random.SFC64(sequence))


def draw_labels(spec: HospitalSpec, num_patients: int, options: PhantomOptions) -> list[int]:
    """The true label of every patient, 1 necrosis or 0 recurrence.

    The count of necrosis is the hospital's share, rounded, and both classes occur from two patients on. The first
    patient always has a recurrence, and so has the last one where another hospital sent them: a duplicate keeps its
    label.
    """
    num_necrosis = int(np.floor(spec.necrosis_share * num_patients + 0.5))
    num_necrosis = min(max(num_necrosis, 1), num_patients - 1)
    fixed_last = options.duplicate_patient is not None and options.duplicate_patient[1] == spec.name
    free = list(range(1, num_patients - 1 if fixed_last else num_patients))
    if num_necrosis > len(free):
        raise ConfigError(
            f"{spec.site}: {num_patients} patients are too few to hold {num_necrosis} with necrosis beside "
            "the first patient and a duplicate of another hospital's; ask for at least 3 patients"
        )
    chosen = random_stream(options.seed, spec.name, "labels").permutation(free)[:num_necrosis]
    return [int(index in chosen) for index in range(num_patients)]
