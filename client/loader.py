"""A site's prepared patients by split, as training and evaluation take them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from client.cohort import Cohort
from client.exam_images import Images
from client.preprocessing.pipeline import CentreSource
from client.preprocessing.stages import Stage
from client.table import Split


@dataclass(frozen=True)
class PreparedSplit:
    """The exams of one split. Training sees exams; statistics count patients.

    Attributes:
        images: Shape (N, C, D, H, W), float32, one entry per exam; read when they are asked for.
        labels: Label of each exam; shape (N,), int64.
        patient_index: Which patient each exam is of, 0 to P − 1; shape (N,), int64.
        patient_labels: Label of each patient; shape (P,), int64.
    """

    images: Images
    labels: Tensor
    patient_index: Tensor
    patient_labels: Tensor

    @property
    def num_exams(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def num_patients(self) -> int:
        """P."""
        return len(self.patient_labels)

    @property
    def class_counts(self) -> tuple[int, int]:
        """Patients with label 0 and with label 1."""
        num_positive = int(self.patient_labels.sum())
        return self.num_patients - num_positive, num_positive


@dataclass(frozen=True)
class PreparedCohort:
    """All prepared exams of a site.

    Attributes:
        cohort: Where they come from. Never leaves the site.
        splits: The exams of every split; a split without patients has no entries.
        centre_counts: Exams by the way their crop's centre was found.
        missing_counts: Exams that lack each sequence of the study and are filled with zeros.
        digests: HMAC of the list of cases of every split; see `Cohort.digest`.
        num_from_cache: Exams that were in the cache already.
        stages_computed: How often each stage of preparing had to be computed.
    """

    cohort: Cohort
    splits: Mapping[Split, PreparedSplit]
    centre_counts: Mapping[CentreSource, int]
    missing_counts: Mapping[str, int]
    digests: Mapping[Split, str]
    num_from_cache: int
    stages_computed: Mapping[Stage, int] = field(default_factory=dict)

    @property
    def site(self) -> str:
        """Name of the site."""
        return self.cohort.site


def assemble_split(cohort: Cohort, split: Split, images: Images) -> PreparedSplit:
    """Put the exams of a split together.

    Args:
        cohort: All exams.
        split: Which part of it.
        images: Of the exams of the split, in the cohort's order.
    """
    exams = cohort.exams_of(split)
    patients = list(dict.fromkeys(exam.patient_id for exam in exams))
    position = {patient: index for index, patient in enumerate(patients)}
    label_of = {exam.patient_id: exam.label for exam in exams}
    return PreparedSplit(
        images=images,
        labels=torch.tensor([exam.label for exam in exams], dtype=torch.int64),
        patient_index=torch.tensor([position[exam.patient_id] for exam in exams], dtype=torch.int64),
        patient_labels=torch.tensor([label_of[patient] for patient in patients], dtype=torch.int64),
    )


def count_centres(sources: Iterable[CentreSource]) -> dict[CentreSource, int]:
    """Exams by the way their crop's centre was found."""
    return dict(sorted(Counter(sources).items()))
