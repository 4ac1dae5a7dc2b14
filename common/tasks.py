"""What the coordinator asks of a site and what a site answers, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from common.cohort_statistics import CohortStatistics
from common.duplicates import BlindedPatients
from common.metrics.bins import Histogram
from common.metrics.paired import DifferenceSums, SiteComparison
from common.metrics.site_statistics import SiteStatistics
from common.model_state import ModelState
from common.study import Study
from common.update_codec import CodedUpdate

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


Way = Literal["whole", "difference", "held"]


@dataclass(frozen=True)
class SentState:
    """How a global state travels to one site.

    Attributes:
        way: "whole". "difference": coded, from a state that the site keeps. "held": not at all, for the site keeps it.
        digest: SHA-256 of the state, which the site verifies whatever the way.
        reference: SHA-256 of the state that a difference is from; empty for other ways.
        update: The coded difference; None for other ways.
    """

    way: Way
    digest: str
    reference: str = ""
    update: CodedUpdate | None = None


@dataclass(frozen=True)
class DescribeTask:
    """Asks a site what it brings to a study."""

    study: Study


@dataclass(frozen=True)
class TrainTask:
    """Asks a site to evaluate a model state on its validation patients and then to train it for one round.

    Attributes:
        run: Name of the run.
        round: The round, counted from 1.
        class_weights: Loss weights of recurrence and necrosis.
        fedprox_mu: Strength of the FedProx penalty in this round; 0 leaves it out.
        state: The global model after the round before.
        class_counts: Training patients of all sites with label 0 and with label 1.
        best_round: The round whose state is the best so far; what a site keeps of it may be asked for. 0: none.
        control: SCAFFOLD's control variate of the server; None without SCAFFOLD.
        run_id: Of this run alone, so that another one of the same name shares nothing with it at a site.
        sent: How the state travels; None sends it whole. A task that was read has no state yet where it is not whole.
    """

    study: Study
    run: str
    round: int
    class_weights: tuple[float, float]
    fedprox_mu: float
    state: ModelState
    class_counts: tuple[int, int] = field(kw_only=True)
    best_round: int = field(default=0, kw_only=True)
    control: ModelState | None = field(default=None, kw_only=True)
    run_id: str = field(default="", kw_only=True)
    sent: SentState | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class EvaluateTask:
    """Asks a site to evaluate a model state on its validation or test patients.

    Attributes:
        run: Name of the run.
        round: The round after which the model has this state; 0 for the initial one.
        threshold: The frozen decision threshold on the logit margin; None while none is chosen.
        class_weights: Loss weights of recurrence and necrosis, for sites that fine-tune.
        class_counts: Training patients of all sites with label 0 and with label 1, likewise.
        own_round: Whether a site that trains by itself evaluates the model of the best round up to this one, as it
            finds on its validation patients.
        run_id: As in `TrainTask`.
        sent: Likewise.
    """

    study: Study
    split: Literal["validation", "test"]
    threshold: float | None
    state: ModelState
    run: str = field(kw_only=True)
    round: int = field(kw_only=True)
    class_weights: tuple[float, float] = field(kw_only=True)
    class_counts: tuple[int, int] = field(kw_only=True)
    own_round: bool = field(default=False, kw_only=True)
    run_id: str = field(default="", kw_only=True)
    sent: SentState | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class ModelOfRun:
    """A model that a run chose and tested.

    Attributes:
        run: Name of the run.
        study_digest: Its study.
        personal: Whether the sites' own models are meant instead of the global one.
        run_id: Of the run, as in `TrainTask`; empty for a run that was begun before there were any.
    """

    run: str
    study_digest: str
    personal: bool = False
    run_id: str = ""


@dataclass(frozen=True)
class CompareTask:
    """Asks a site to compare two models on its test patients, both of which it has tested before.

    Attributes:
        study: The study of the run that asks.
        first: One model.
        second: The other one; the difference is first minus second.
        pools: Histograms of the two over all sites of the comparison; None to ask for the site's own first.
    """

    study: Study
    first: ModelOfRun
    second: ModelOfRun
    pools: tuple[Histogram, Histogram] | None = None


@dataclass(frozen=True)
class StatisticsTask:
    """Asks a site for statistics of its cohort, before any training."""

    study: Study


@dataclass(frozen=True)
class DuplicatesTask:
    """Asks a site to blind its patients' images, or those that the sites have blinded before.

    Attributes:
        run: Name of the run; the site's secret is of this run alone.
        patients: Of each site; None to ask for the site's own.
    """

    study: Study
    run: str
    patients: tuple[BlindedPatients, ...] | None = None


@dataclass(frozen=True)
class SiteManifest:
    """What a site brings to a study: counts, digests and versions; nothing about a single patient.

    Attributes:
        num_patients: For each split, the patients with label 0 and with label 1.
        num_exams: For each split, the exams.
        cohort_digests: For each split, a keyed hash of the case list: shows that a cohort stayed the same, not who
            is in it.
        missing_sequences: For each sequence, the exams that lack it.
        crop_centers: How many exams' crop centres were found in which way.
        torch_threads: Threads that torch computes with; equal seeds and threads give equal bytes.
        versions: Versions of the programs that matter for the result.
    """

    site: str
    study_digest: str
    num_patients: dict[Split, tuple[int, int]]
    num_exams: dict[Split, int]
    cohort_digests: dict[Split, str]
    missing_sequences: dict[str, int]
    crop_centers: dict[str, int]
    device: str
    torch_threads: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """What a site counted on one split.

    Attributes:
        statistics: The sums; None where the site withholds them.
        withheld: Why the site withholds them: "min_cell" or "no_patients"; empty otherwise.
        cohort_digest: The keyed hash of the case list the sums are over.
    """

    split: Literal["validation", "test"]
    statistics: SiteStatistics | None
    withheld: str
    cohort_digest: str


@dataclass(frozen=True)
class OwnChoice:
    """What a site chose for a model of its own, on its own validation patients.

    Attributes:
        round: The round whose model was tested.
        threshold: On the logit margin; None where there is none, or where it is not shown.
        reason: "" for a threshold that is shown; "no_class": the study's rule needs a class that the validation
            patients lack, and nothing was counted at a threshold; "withheld": chosen and used, and withheld like the
            counts of the validation patients that it was chosen on.
    """

    round: int
    threshold: float | None
    reason: Literal["", "no_class", "withheld"]


Damage = Literal["own", "personal", "fine-tuned", "control", "optimizer", "personal-optimizer", "residual", "best"]
"""What a site kept of a run from round to round and could not read any more, so that it began anew."""
DAMAGES: tuple[Damage, ...] = get_args(Damage)


@dataclass(frozen=True)
class TrainReply:
    """The trained model state and the evaluation of the state that arrived.

    Attributes:
        num_patients: Training patients with label 0 and with label 1.
        num_steps: Optimiser steps done.
        train_loss: Mean loss over those steps, the FedProx penalty left out.
        optimizer: "fresh" or "continued".
        seconds: Time for evaluation and for training.
        control: SCAFFOLD's control variate of the site after the round; None without SCAFFOLD.
        plan: How the steps were computed, in words: "fp32" or a faster way.
        step_microseconds: What a step took by each way the site measured, by its words; empty where it measured none.
        update: The state as a coded difference from the one that was sent, in place of the state, which is empty then;
            None where the study's `communication.upload` is fp32.
        damaged: What the site had kept and could not read.
        held: SHA-256 of the global state that the site keeps from now on; empty where it keeps none.
    """

    study_digest: str
    round: int
    state: ModelState
    num_patients: tuple[int, int]
    num_steps: int
    train_loss: float
    optimizer: str
    seconds: tuple[float, float]
    evaluation: Evaluation = field(kw_only=True)
    control: ModelState | None = field(default=None, kw_only=True)
    plan: str = field(default="fp32", kw_only=True)
    step_microseconds: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    update: CodedUpdate | None = field(default=None, kw_only=True)
    damaged: tuple[Damage, ...] = field(default=(), kw_only=True)
    held: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class EvaluateReply:
    """The evaluation of a model state, and of the site's own model where the study has one.

    Attributes:
        choice: Of a test of models that the sites trained by themselves; None otherwise.
        personal_choice: Of a test of own models beside the global one; None otherwise.
        damaged: What the site had kept and could not read.
        held: As in `TrainReply`.
    """

    study_digest: str
    evaluation: Evaluation
    seconds: float
    personal: Evaluation | None = field(default=None, kw_only=True)
    choice: OwnChoice | None = field(default=None, kw_only=True)
    personal_choice: OwnChoice | None = field(default=None, kw_only=True)
    damaged: tuple[Damage, ...] = field(default=(), kw_only=True)
    held: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class CompareReply:
    """What a site counted for a comparison of two models.

    Attributes:
        cohort_digest: The keyed hash of the list of test patients.
        withheld: Why the site shows nothing: "min_cell", "no_patients", or "other_pools" where it has answered for this
            pair of models before, with other pools; empty otherwise.
        site: Its histograms and its own sums, in answer to a task without pools.
        sums: Its sums by the tables of the pools, in answer to a task with them.
    """

    study_digest: str
    cohort_digest: str
    withheld: str
    site: SiteComparison | None = field(default=None, kw_only=True)
    sums: DifferenceSums | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class StatisticsReply:
    """What a site shows of its cohort.

    Attributes:
        withheld: Why the site shows nothing: "min_cell"; empty otherwise.
        statistics: Its tables; None where it shows nothing.
    """

    study_digest: str
    withheld: str
    statistics: CohortStatistics | None = None


@dataclass(frozen=True)
class DuplicatesReply:
    """Patients whose images the site has blinded: its own, or for each entry of the task one."""

    study_digest: str
    patients: tuple[BlindedPatients, ...]


@dataclass(frozen=True)
class Failure:
    """A site could not do what was asked. The reason is a code; its text stays at the site."""

    code: str


Reply = SiteManifest | TrainReply | EvaluateReply | CompareReply | StatisticsReply | DuplicatesReply | Failure
