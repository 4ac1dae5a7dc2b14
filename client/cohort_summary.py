"""A cohort in figures, for the people of its site: patients, classes, splits, sequences, voxels, scanners, flow."""

import gzip
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from client.cohort import Cohort
from client.exam import SEQUENCES, SPLITS, Exam, Split
from client.flow import Flow
from client.sources.sidecar import sidecar_of
from common.study import Sequence as MriSequence

UNKNOWN_SCANNER = "not known"
_HEADER_BYTES = 540
"""A NIfTI-2 header, the longer one."""


@dataclass(frozen=True)
class SequenceSummary:
    """One sequence over all exams.

    Attributes:
        num_exams: Exams that have it.
        num_lacking: Exams that lack it.
        spacing_mm: Least, median and largest of the distances of neighbouring voxels, each sorted from the finest axis
            to the coarsest; None where no header could be read.
        num_unreadable: Files whose header cannot be read.
    """

    num_exams: int
    num_lacking: int
    spacing_mm: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None
    num_unreadable: int


@dataclass(frozen=True)
class CohortSummary:
    """What `gliorn-client cohort` shows. It stays at the site.

    Attributes:
        site: Name of the site.
        num_patients: Patients with label 0 and with label 1.
        num_exams: Exams.
        splits: Patients with label 0 and with label 1 by split; None where they are drawn and no study says how.
        split_source: `table`: the source names them; `drawn`.
        sequences: By sequence.
        scanners: Exams by scanner, as the sidecars beside the images name it.
        flow: Screened, excluded by reason, included.
    """

    site: str
    num_patients: tuple[int, int]
    num_exams: int
    splits: Mapping[Split, tuple[int, int]] | None
    split_source: str
    sequences: Mapping[MriSequence, SequenceSummary]
    scanners: Mapping[str, int]
    flow: Flow


def summarize(cohort: Cohort) -> CohortSummary:
    """Count a cohort and read the headers of its images."""
    labels = {exam.patient_id: exam.label for exam in cohort.exams}
    num_positive = sum(labels.values())
    settled = bool(cohort.split_of)
    return CohortSummary(
        site=cohort.site,
        num_patients=(len(labels) - num_positive, num_positive),
        num_exams=len(cohort.exams),
        splits={split: cohort.class_counts(split) for split in SPLITS} if settled else None,
        split_source=cohort.split_source,
        sequences={sequence: _sequence(cohort.exams, sequence) for sequence in SEQUENCES},
        scanners=dict(Counter(scanner_of(exam) for exam in cohort.exams).most_common()),
        flow=cohort.flow,
    )


def scanner_of(exam: Exam) -> str:
    """Manufacturer, model and field of the scanner of an exam, from the first sidecar that names any."""
    for path in exam.volumes.values():
        facts = sidecar_of(path)
        words = [str(facts[name]) for name in ("Manufacturer", "ManufacturersModelName") if name in facts]
        if "MagneticFieldStrength" in facts:
            words.append(f"{facts['MagneticFieldStrength']:g} T")
        if words:
            return " ".join(words)
    return UNKNOWN_SCANNER


def spacing_of(path: Path) -> tuple[float, ...] | None:
    """Distances of neighbouring voxels along the axes in mm, finest first; None if the header cannot be read."""
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else path.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return None
    kind = Nifti2Header if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else Nifti1Header
    try:
        zooms = kind(head[: kind.sizeof_hdr]).get_zooms()[:3]
    except (HeaderDataError, WrapStructError, ValueError):
        return None
    spacing = tuple(sorted(round(float(zoom), 2) for zoom in zooms))
    return spacing if np.isfinite(spacing).all() else None


def _sequence(exams: Sequence[Exam], sequence: MriSequence) -> SequenceSummary:
    paths = [exam.volumes[sequence] for exam in exams if sequence in exam.volumes]
    spacings = [spacing for path in paths if (spacing := spacing_of(path)) is not None and len(spacing) == 3]
    return SequenceSummary(
        num_exams=len(paths),
        num_lacking=len(exams) - len(paths),
        spacing_mm=_range(spacings) if spacings else None,
        num_unreadable=len(paths) - len(spacings),
    )


def _range(spacings: Sequence[tuple[float, ...]]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    values = np.array(spacings)  # (exams, 3)
    least, middle, most = (
        tuple(round(float(mm), 2) for mm in row)
        for row in (values.min(axis=0), np.median(values, axis=0), values.max(axis=0))
    )
    return least, middle, most
