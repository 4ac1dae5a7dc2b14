"""The study: everything all sites of a federation agree on before the first round."""

import hashlib
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from common.documents import Settings, parse_settings
from common.model_channels import RESNETS, VGGS, Architecture, norm_channels

Sequence = Literal["t1", "t2", "t1ce"]
Label = Literal[0, 1]
CLASS_NAMES = ("recurrence", "necrosis")
"""Names of the labels 0 and 1. Radiation necrosis is the positive class."""
STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class PreprocessingSpec(Settings):
    """How an exam's volumes become one array of shape (sequences, D, H, W)."""

    spacing_mm: tuple[float, float, float] = Field(description="voxel size after resampling, three numbers in mm")
    size_voxels: tuple[int, int, int] = Field(description="size of the crop, three whole numbers of voxels, 16 to 256")
    crop: Literal["lesion", "enhancement", "head"] = Field(
        description="crop centre: lesion (a radiologist's point or mask), enhancement (found in T1ce - T1) or head"
    )
    missing_sequence: Literal["refuse", "zero_fill"] = Field(
        default="refuse", description="what to do with an exam that lacks a sequence: refuse or zero_fill"
    )
    registration: Literal["none", "rigid"] = Field(
        default="none", description="whether T1 and T2 are registered to T1ce: none or rigid; needs the extra prep"
    )
    bias_correction: Literal["none", "n4"] = Field(
        default="none", description="whether the coil's shading is taken out first: none or n4; needs the extra prep"
    )

    @model_validator(mode="after")
    def _ranges(self) -> "PreprocessingSpec":
        if not all(0.3 <= mm <= 10 for mm in self.spacing_mm):
            raise ValueError(f"spacing_mm is {list(self.spacing_mm)}, expected three numbers from 0.3 to 10 mm")
        if not all(16 <= voxels <= 256 for voxels in self.size_voxels):
            raise ValueError(f"size_voxels is {list(self.size_voxels)}, expected three whole numbers from 16 to 256")
        return self


class AugmentationSpec(Settings):
    """Random changes to training crops. Every number is a bound or a probability; 0 switches a change off."""

    flip_probability: float = Field(default=0.5, ge=0, le=1, description="chance of mirroring along each axis")
    rotation_degrees: float = Field(default=10, ge=0, le=180, description="largest rotation about each axis")
    scaling: float = Field(default=0.1, ge=0, lt=0.5, description="largest relative change of size")
    translation_mm: float = Field(default=4, ge=0, le=50, description="largest shift along each axis")
    intensity: float = Field(
        default=0.1, ge=0, lt=1, description="largest relative change of contrast, and of brightness in sd"
    )
    noise: float = Field(default=0.05, ge=0, le=1, description="largest sd of added noise, in sd of the volume")
    drop_sequence: float = Field(
        default=0.0, ge=0, le=0.9, description="chance of blanking one sequence; wanted with zero_fill"
    )


class ModelSpec(Settings):
    """Which network is trained."""

    name: Architecture = Field(
        default="resnet10",
        description="architecture: resnet10, resnet18, resnet50, densenet121, vgg11, vgg16 or mresnet",
    )
    norm: Literal["group", "batch", "fedbn", "silobn"] = Field(
        default="group",
        description="normalisation layers: group, batch, fedbn (batch norm that stays at its site) or silobn (batch "
        "norm whose statistics stay at their site)",
    )
    num_groups: int = Field(default=8, ge=1, le=64, description="groups of a group norm layer")
    width: float = Field(default=1.0, gt=0, le=2, description="factor on the number of channels of every layer")
    stem_stride: Literal[1, 2] = Field(
        default=2, description="stride of the first convolution: 1 or 2; the VGGs have none"
    )
    dilated: bool = Field(
        default=False,
        description="whether the last two stages of a ResNet dilate instead of striding, as MedicalNet's do",
    )
    initial_weights: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the file of MedicalNet weights the study begins from, for the ResNets",
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> "ModelSpec":
        channels = sorted(set(norm_channels(self.name, self.width)))
        if channels[0] == 0:
            raise ValueError(f"width {self.width:g} leaves a layer of {self.name} without channels; raise it")
        odd = [count for count in channels if count % self.num_groups]
        if self.norm == "group" and odd:
            shown = odd if len(odd) <= 8 else f"{str(odd[:8])[:-1]}, ...]"
            raise ValueError(
                f"{self.num_groups} groups do not divide the layers' channels {shown}, which follow from width "
                f"{self.width:g}; choose num_groups and width so that they do"
            )
        return self

    @model_validator(mode="after")
    def _fits_architecture(self) -> "ModelSpec":
        resnets = ", ".join(RESNETS)
        if self.stem_stride != 2 and self.name in VGGS:
            raise ValueError(f"stem_stride has no meaning for {self.name}, whose first convolution is like all others")
        if self.dilated and self.name not in RESNETS:
            raise ValueError(f"dilated is for {resnets}, not for {self.name}; delete it or name one of these")
        if self.initial_weights is not None and self.name not in RESNETS:
            raise ValueError(f"initial_weights is for {resnets}, not for {self.name}; delete it or name one of these")
        if self.initial_weights is not None and self.width != 1:
            raise ValueError(f"initial_weights fits networks of width 1, not of width {self.width:g}; delete one")
        return self


class TrainingSpec(Settings):
    """What a site does with the global model in a round."""

    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="optimiser: adamw or sgd")
    learning_rate: float = Field(gt=0, le=10, description="step size in the first round")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd; adamw does not use it")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="weight decay of the optimiser")
    batch_size: int = Field(ge=1, le=256, description="patients per step")
    local_epochs: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="passes over a site's training patients per round; or local_steps",
    )
    local_steps: int | None = Field(
        default=None, ge=1, le=100_000, description="optimiser steps per site and round; or local_epochs"
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="learning rate over the rounds: constant or cosine"
    )
    fedprox_mu: float = Field(default=0.0, ge=0, le=100, description="strength of the FedProx penalty; 0 is FedAvg")
    fedprox_adaptive: bool = Field(
        default=False, description="whether the strength of FedProx follows the pooled validation loss over the rounds"
    )
    control_variates: bool = Field(
        default=False, description="whether SCAFFOLD corrects every step (experimental; plain sgd and local_steps)"
    )
    class_weighting: Literal["none", "balanced", "logit_adjusted"] = Field(
        default="balanced",
        description="what meets unequal classes, from the counts of all sites together: loss weights (balanced), an "
        "offset of the logits (logit_adjusted) or none",
    )
    sampling: Literal["shuffled", "class_balanced"] = Field(
        default="shuffled",
        description="order of training exams: shuffled, or class_balanced, where every batch draws both classes alike",
    )
    max_grad_norm: float | None = Field(
        default=None, gt=0, description="gradients are clipped to this norm; none if absent"
    )
    keep_optimizer_state: bool = Field(
        default=False, description="whether a site goes on with its optimiser's state of the round before"
    )
    precision: Literal["fp32", "auto"] = Field(
        default="fp32",
        description="how the steps are computed: fp32, where equal seeds give equal bytes, or auto, the fastest way "
        "that a site measures on its device, such as bfloat16",
    )

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSpec":
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("give exactly one of local_epochs and local_steps")
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> "TrainingSpec":
        plain_sgd = self.optimizer == "sgd" and self.momentum == 0
        if self.control_variates and not (plain_sgd and self.local_steps is not None):
            raise ValueError(
                "control_variates (SCAFFOLD) needs optimizer sgd with momentum 0 and local_steps, the same number of "
                "steps at every site; set these or delete control_variates"
            )
        if self.control_variates and self.keep_optimizer_state:
            raise ValueError("control_variates (SCAFFOLD) has no optimiser state to keep; delete keep_optimizer_state")
        if self.sampling == "class_balanced" and self.class_weighting != "none":
            raise ValueError(
                f"sampling class_balanced and class_weighting {self.class_weighting} both make up for unequal classes; "
                "set class_weighting to none"
            )
        return self


class AggregationSpec(Settings):
    """How the sites' states become the next global state."""

    method: Literal["mean", "fedavgm", "fedadam", "fedyogi", "median", "trimmed_mean", "multi_krum", "local"] = Field(
        default="mean",
        description="mean (FedAvg), fedavgm, fedadam, fedyogi, median, trimmed_mean, multi_krum, or local: every site "
        "trains by itself, for comparison, and sends no state",
    )
    server_learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="server's step of fedavgm (1), fedadam and fedyogi (0.01)"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of fedavgm, beta 1 of fedadam and fedyogi")
    second_momentum: float = Field(default=0.99, ge=0, lt=1, description="beta 2 of fedadam and fedyogi")
    adaptivity: float = Field(default=1e-3, gt=0, le=1, description="tau of fedadam and fedyogi")
    num_faulty: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="sites that may be wrong: left out at each end by trimmed_mean, and f of multi_krum",
    )

    @property
    def learning_rate(self) -> float:
        """The server's step with the method's own default."""
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        return 0.01 if self.method in ("fedadam", "fedyogi") else 1.0

    @property
    def least_sites(self) -> int:
        """Replies without which the method says nothing, or is another one in disguise.

        A median of two is their mean; a mean from which `num_faulty` are cut at each end needs one that stays
        (Yin et al. 2018, arXiv:1803.01498); Krum needs 2f + 3 (Blanchard et al. 2017, arXiv:1703.02757, section 3).
        """
        match self.method:
            case "median":
                return 3
            case "trimmed_mean":
                return 2 * self.num_faulty + 1
            case "multi_krum":
                return 2 * self.num_faulty + 3
            case _:
                return 1


class PersonalizationSpec(Settings):
    """A model of its own for every site, beside the global one, which it does not change."""

    method: Literal["none", "ditto", "fine_tune"] = Field(
        default="none",
        description="none, ditto (trained along with the global model) or fine_tune (the last block, after the run)",
    )
    ditto_lambda: float = Field(default=0.1, gt=0, le=100, description="pull of ditto towards the global model")
    fine_tune_epochs: int = Field(default=5, ge=1, le=100, description="passes over a site's training patients")
    fine_tune_learning_rate: float = Field(default=1e-4, gt=0, le=1, description="step size of fine_tune")


class ParticipationSpec(Settings):
    """How many sites a round needs and how long it waits for them."""

    min_sites: int = Field(ge=1, description="replies below which a round is no success and the run ends INVALID")
    join_timeout_s: float = Field(
        default=600, gt=0, description="seconds the first round waits for all sites to connect"
    )
    round_timeout_s: float = Field(default=3600, gt=0, description="seconds a round waits for its replies")
    max_update_norm_ratio: float = Field(
        default=10,
        gt=1,
        description="an update over this many times the median norm of the others is refused, with 3 sites or more",
    )
    held_out: tuple[str, ...] = Field(
        default=(), description="sites that never train and take part in the test alone: hospitals the model is new to"
    )


class CommunicationSpec(Settings):
    """How model states travel."""

    upload: Literal["fp32", "fp16_delta", "int8_delta"] = Field(
        default="fp32",
        description="what a site sends of its training: the state itself (fp32), or its difference from the state it "
        "was sent in 2 bytes a parameter (fp16_delta) or in 1 (int8_delta, with error feedback); buffers are exact",
    )
    download: Literal["fp32", "fp16_delta", "int8_delta"] = Field(
        default="fp32",
        description="what a site is sent of the global model: the state itself (fp32), or, where it keeps the one "
        "before, the difference as in upload, of which the global model then consists",
    )


class OperatingPointSpec(Settings):
    """How the decision threshold is chosen on the pooled validation patients."""

    rule: Literal["sensitivity", "specificity", "youden", "fixed"] = Field(
        default="sensitivity", description="sensitivity, specificity, youden or fixed"
    )
    value: float | None = Field(
        default=None,
        description="least sensitivity or specificity (0 to 1), or the fixed margin; none for youden",
    )

    @model_validator(mode="after")
    def _value_fits_rule(self) -> "OperatingPointSpec":
        if self.rule == "youden" and self.value is not None:
            raise ValueError("rule youden takes no value; delete it")
        if self.rule in ("sensitivity", "specificity") and not (self.value is None or 0 < self.value < 1):
            raise ValueError(f"value is {self.value}, expected a share between 0 and 1 for rule {self.rule}")
        if self.rule == "fixed" and self.value is None:
            raise ValueError("rule fixed needs a value: the threshold on the logit margin")
        return self

    @property
    def target(self) -> float | None:
        """The rule's value, with .90 for the rules on a share where none was given."""
        return 0.9 if self.value is None and self.rule in ("sensitivity", "specificity") else self.value


class EvaluationSpec(Settings):
    """What is counted at the sites and how the pooled figures are formed."""

    num_bins: int = Field(
        default=32,
        ge=8,
        le=1024,
        description="bins of the score histograms; a site refuses more than its own max_bins",
    )
    margin_limit: float = Field(
        default=3.0, gt=0, le=20, description="the bins cover asinh(margin) from minus to plus this number"
    )
    operating_point: OperatingPointSpec = Field(default_factory=OperatingPointSpec)
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="level of all intervals")
    interval: Literal["wilson", "clopper-pearson"] = Field(default="wilson", description="kind of interval for shares")
    prevalence: float | None = Field(
        default=None, gt=0, lt=1, description="share of necrosis for which PPV and NPV are stated as well"
    )
    min_pooled_sites: int = Field(default=3, ge=1, description="sites below which no pooled figure is formed")


class SplitSpec(Settings):
    """Shares of patients set aside at sites whose table names no split."""

    validation: float = Field(default=0.2, gt=0, lt=0.5, description="share of patients for validation")
    test: float = Field(default=0.2, gt=0, lt=0.5, description="share of patients for the test")
    num_folds: int | None = Field(
        default=None,
        ge=2,
        le=20,
        description="cross-validation: parts of which one is the test, instead of test's share",
    )
    fold: int = Field(default=0, ge=0, description="cross-validation: the part that is the test, from 0")
    repeat: int = Field(default=0, ge=0, le=1000, description="cross-validation: number of the division into parts")

    @model_validator(mode="after")
    def _fold_exists(self) -> "SplitSpec":
        if self.num_folds is None and (self.fold or self.repeat):
            raise ValueError("fold and repeat need num_folds; give it, or delete them")
        if self.num_folds is not None and self.fold >= self.num_folds:
            raise ValueError(f"fold is {self.fold}, expected 0 to {self.num_folds - 1} with num_folds {self.num_folds}")
        return self


class Study(Settings):
    """Everything all sites agree on. Its digest is part of every message and of the record."""

    name: str = Field(pattern=STUDY_NAME, description="letters, digits, '.', '_' and '-'")
    seed: int = Field(ge=0, lt=2**31, description="start of all randomness")
    rounds: int = Field(ge=1, le=10_000, description="rounds of training")
    sequences: tuple[Sequence, ...] = Field(
        default=("t1", "t2", "t1ce"),
        min_length=1,
        description="channels of the network, out of t1, t2 and t1ce",
    )
    preprocessing: PreprocessingSpec
    augmentation: AugmentationSpec = Field(default_factory=AugmentationSpec)
    model: ModelSpec = Field(default_factory=ModelSpec)
    training: TrainingSpec
    aggregation: AggregationSpec = Field(default_factory=AggregationSpec)
    personalization: PersonalizationSpec = Field(default_factory=PersonalizationSpec)
    participation: ParticipationSpec
    communication: CommunicationSpec = Field(default_factory=CommunicationSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    split: SplitSpec = Field(default_factory=SplitSpec)

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        if len(set(self.sequences)) != len(self.sequences):
            raise ValueError(f"sequences is {list(self.sequences)}, expected each sequence once")
        if self.preprocessing.missing_sequence == "zero_fill":
            if len(self.sequences) == 1:
                raise ValueError("missing_sequence zero_fill needs at least two sequences; write refuse")
            if self.augmentation.drop_sequence == 0:
                raise ValueError("missing_sequence zero_fill needs augmentation.drop_sequence above 0, such as 0.1")
        if self.preprocessing.crop == "enhancement" and not {"t1", "t1ce"} <= set(self.sequences):
            raise ValueError("crop enhancement needs the sequences t1 and t1ce; add them or use lesion or head")
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> "Study":
        method = self.aggregation.method
        if self.training.control_variates and method != "mean":
            raise ValueError(f"control_variates (SCAFFOLD) has its own aggregation; delete aggregation.method {method}")
        if method == "local" and self.personalization.method != "none":
            raise ValueError("aggregation local has no global model to personalize; delete personalization")
        if method == "local" and (self.training.fedprox_mu or self.training.fedprox_adaptive):
            raise ValueError("aggregation local has no global model to stay near; delete fedprox_mu")
        if method == "local" and self.participation.held_out:
            raise ValueError(
                "aggregation local has no model for sites that do not train; delete participation.held_out"
            )
        if method == "local" and self.communication.upload != "fp32":
            raise ValueError("aggregation local sends no state; delete communication.upload")
        if method == "local" and self.communication.download != "fp32":
            raise ValueError(
                f"communication.download is {self.communication.download}, expected fp32 with aggregation local, whose "
                "sites are sent the initial state and nothing that changes; delete communication.download"
            )
        if self.model.norm in ("fedbn", "silobn") and method == "multi_krum":
            raise ValueError("multi_krum picks whole states, which do not exist with norm fedbn or silobn; use median")
        return self

    @model_validator(mode="after")
    def _rounds_suffice(self) -> "Study":
        method, least = self.aggregation.method, self.aggregation.least_sites
        if self.participation.min_sites < least:
            what = "" if method == "median" else f" with num_faulty {self.aggregation.num_faulty}"
            raise ValueError(
                f"aggregation {method}{what} needs {least} sites in every round, and participation.min_sites "
                f"{self.participation.min_sites} lets a round pass with fewer; set min_sites to {least} or more"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over the settings in one fixed form: equal for studies that mean the same, in hexadecimal.

        A setting of `ADDED_SETTINGS` is part of it only where it is not at its default, so that a study keeps its
        digest, and with it the consent of the sites, when a new version brings new settings.
        """
        left_out: dict[str, set[str] | bool] = {}
        for section, names in ADDED_SETTINGS.items():
            spec, fields = getattr(self, section), _fields_of(section)
            unchanged = {name for name in names if getattr(spec, name) == fields[name].get_default()}
            left_out[section] = unchanged == fields.keys() or unchanged
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()


ADDED_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "preprocessing": ("registration", "bias_correction"),
    "model": ("dilated", "initial_weights"),
    "training": ("fedprox_adaptive", "control_variates", "sampling", "precision"),
    "aggregation": tuple(AggregationSpec.model_fields),
    "personalization": tuple(PersonalizationSpec.model_fields),
    "participation": ("held_out",),
    "communication": tuple(CommunicationSpec.model_fields),
    "split": ("num_folds", "fold", "repeat"),
}
"""Settings that came after version 0.2, by section. Their defaults are what 0.2 did, and must never change."""


def _fields_of(section: str) -> dict[str, FieldInfo]:
    spec = Study.model_fields[section].annotation
    assert isinstance(spec, type), f"{section} is a section of the study"
    assert issubclass(spec, BaseModel), f"{section} is a section of the study"
    return spec.model_fields


def parse_study(text: str, *, origin: str) -> Study:
    """Read a study from YAML.

    Raises:
        ConfigError: All faults at once, each with its line.
    """
    return parse_settings(text, Study, origin=origin)
