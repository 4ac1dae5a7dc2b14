"""The published table as data: what is printed, the counts that follow from it, and an interval for each figure.

Source: Ying et al., Development and validation of a deep learning algorithm for discriminating glioma recurrence from
radiation necrosis on MRI, Frontiers in Oncology 15 (2025) 1573700, doi 10.3389/fonc.2025.1573700: 234 patients of one
hospital, 42 with necrosis. The figures by sequence are taken as reported second-hand. They are of one set of 58 test
patients, and only 9 with necrosis and 49 with recurrence let the printed shares be shares of whole patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from common.metrics.auc import logit_interval
from common.metrics.estimate import Estimate
from common.metrics.proportions import proportion

PaperModel = Literal["resnet10", "densenet121", "resnet50", "vgg11", "mresnet", "vgg16"]
MODEL_NAMES: Mapping[PaperModel, str] = {
    "resnet10": "ResNet10",
    "densenet121": "DenseNet121",
    "resnet50": "ResNet50",
    "vgg11": "VGG11",
    "mresnet": "MResNet",
    "vgg16": "VGG16",
}
"""The six models in the paper's order, with the paper's names."""

SequenceSet = Literal["t1", "t1ce", "t2", "all"]
SEQUENCE_NAMES: Mapping[SequenceSet, str] = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "all": "T1 + T2 + T1ce"}

SOURCE = "Ying et al., Frontiers in Oncology 15 (2025) 1573700, doi 10.3389/fonc.2025.1573700"
NUM_PATIENTS, NUM_NECROSIS = 234, 42
NUM_RECURRENCE = NUM_PATIENTS - NUM_NECROSIS
TEST_NECROSIS, TEST_RECURRENCE = 9, 49
NUM_TEST = TEST_NECROSIS + TEST_RECURRENCE

HALF_A_DIGIT = 0.005


@dataclass(frozen=True)
class Printed:
    """Four figures as they are printed, two decimals each."""

    accuracy: float
    sensitivity: float
    specificity: float
    auc: float


PRINTED: Mapping[tuple[PaperModel, SequenceSet], Printed] = {
    ("resnet10", "t1"): Printed(0.90, 0.44, 0.98, 0.72),
    ("resnet10", "t1ce"): Printed(0.88, 0.56, 0.94, 0.70),
    ("resnet10", "t2"): Printed(0.91, 0.44, 1.00, 0.70),
    ("resnet10", "all"): Printed(0.91, 0.78, 0.94, 0.83),
    ("densenet121", "t1"): Printed(0.88, 0.67, 0.92, 0.79),
    ("densenet121", "t1ce"): Printed(0.88, 0.67, 0.92, 0.76),
    ("densenet121", "t2"): Printed(0.86, 0.44, 0.94, 0.74),
    ("resnet50", "t1"): Printed(0.88, 0.33, 0.98, 0.75),
    ("resnet50", "t1ce"): Printed(0.90, 0.56, 0.96, 0.69),
    ("resnet50", "t2"): Printed(0.91, 0.44, 1.00, 0.78),
    ("vgg11", "t1"): Printed(0.90, 0.33, 1.00, 0.71),
    ("vgg11", "t1ce"): Printed(0.90, 0.33, 1.00, 0.69),
    ("vgg11", "t2"): Printed(0.90, 0.33, 1.00, 0.64),
    ("mresnet", "t1"): Printed(0.90, 0.56, 0.96, 0.78),
    ("mresnet", "t1ce"): Printed(0.90, 0.44, 0.98, 0.85),
    ("mresnet", "t2"): Printed(0.91, 0.56, 0.98, 0.75),
    ("vgg16", "t1"): Printed(0.88, 0.33, 0.98, 0.70),
    ("vgg16", "t1ce"): Printed(0.88, 0.56, 0.94, 0.78),
    ("vgg16", "t2"): Printed(0.85, 0.44, 0.92, 0.75),
}
"""Only ResNet10 is reported on the three sequences together."""


@dataclass(frozen=True)
class Remark:
    """What does not fit together in the published figures: which figure, and why."""

    measure: Literal["auc", "accuracy"]
    text: str


REMARKS: Mapping[tuple[PaperModel, SequenceSet], Remark] = {
    ("vgg16", "t2"): Remark(
        "accuracy",
        "The accuracy is printed as 0.85, but no whole number of 58 patients is 0.85; the printed sensitivity and "
        "specificity are 4 of 9 and 45 of 49 patients, which are 49 of 58 = 0.845.",
    ),
    ("vgg16", "t1ce"): Remark(
        "auc",
        "The paper's abstract gives an AUC of 0.70 with this sensitivity, specificity and accuracy; its table, as "
        "reported second-hand, gives 0.78 here and 0.70 for T1.",
    ),
}

MRESNET_REMARK = (
    "MResNet is not defined in the readable text of the paper. The one trained here is the closest reading: a "
    "multi-scale ResNet, parallel branches at several resolutions, fused."
)


@dataclass(frozen=True)
class Counts:
    """The test patients that a printed row is about.

    Attributes:
        true_positive: Of the 9 with necrosis, called so.
        true_negative: Of the 49 with recurrence, called so.
    """

    true_positive: int
    true_negative: int

    @property
    def num_right(self) -> int:
        """Patients called what they have."""
        return self.true_positive + self.true_negative


@dataclass(frozen=True)
class PublishedRow:
    """A published row with what follows from it.

    Attributes:
        printed: As printed.
        counts: Patients behind it.
        accuracy: With Wilson's interval, as are sensitivity and specificity: shares of 58, 9 and 49 patients.
        auc: As printed, with an interval from `hanley_mcneil_variance`.
        remark: What does not fit; None where all does.
    """

    printed: Printed
    counts: Counts
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate
    remark: Remark | None


def published_row(model: PaperModel, sequences: SequenceSet, *, confidence: float = 0.95) -> PublishedRow | None:
    """What the paper has for a model and its sequences; None where it has nothing."""
    printed = PRINTED.get((model, sequences))
    if printed is None:
        return None
    counts = counts_of(printed)
    variance = hanley_mcneil_variance(printed.auc, num_necrosis=TEST_NECROSIS, num_recurrence=TEST_RECURRENCE)
    return PublishedRow(
        printed=printed,
        counts=counts,
        accuracy=proportion(counts.num_right, NUM_TEST, whose="patients", confidence=confidence),
        sensitivity=proportion(counts.true_positive, TEST_NECROSIS, whose="patients", confidence=confidence),
        specificity=proportion(counts.true_negative, TEST_RECURRENCE, whose="patients", confidence=confidence),
        auc=logit_interval(printed.auc, variance, num=NUM_TEST, confidence=confidence),
        remark=REMARKS.get((model, sequences)),
    )


def counts_of(printed: Printed) -> Counts:
    """The whole patients whose shares round to the printed sensitivity and specificity."""
    return Counts(
        true_positive=_only_count(printed.sensitivity, TEST_NECROSIS),
        true_negative=_only_count(printed.specificity, TEST_RECURRENCE),
    )


def rounds_to(count: int, out_of: int, printed: float) -> bool:
    """Whether a share of patients is printed so with two decimals, a half up or down."""
    return abs(count / out_of - printed) <= HALF_A_DIGIT + 1e-12


def _only_count(printed: float, out_of: int) -> int:
    fitting = [count for count in range(out_of + 1) if rounds_to(count, out_of, printed)]
    assert len(fitting) == 1, f"{printed} is {len(fitting)} shares of {out_of}"
    return fitting[0]


def hanley_mcneil_variance(auc: float, *, num_necrosis: int, num_recurrence: int) -> float:
    """Variance of an AUC from the AUC and the number of patients alone, for scores that nobody published.

    Scores of both classes are taken to be exponential: Hanley and McNeil, Radiology 143 (1982) 29, equation 1 with
    Q1 = A/(2 − A) and Q2 = 2A²/(1 + A).
    """
    q1, q2 = auc / (2.0 - auc), 2.0 * auc**2 / (1.0 + auc)
    above = auc * (1.0 - auc) + (num_necrosis - 1) * (q1 - auc**2) + (num_recurrence - 1) * (q2 - auc**2)
    return above / (num_necrosis * num_recurrence)
