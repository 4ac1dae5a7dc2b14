"""A site at work: describes what it brings, evaluates and trains. Everything that leaves it is made here."""

import logging
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import nn

from client.config import SiteConfig
from client.evaluation import disclose, margins_of_exams, mean_per_patient
from client.kept_scores import compare_kept, keep_scores
from client.loader import PreparedCohort
from client.optimizer_memory import OptimizerMemory
from client.prepare import prepare_site
from client.training import (
    TrainingOutcome,
    TrainingSet,
    build_optimizer,
    proximal_penalty,
    round_generator,
    train_locally,
)
from common.errors import ConfigError, DisclosureError
from common.messages import bins_of
from common.model_state import ModelState
from common.models import build_model, get_state, set_state
from common.schedule import learning_rate_in_round
from common.study import Study
from common.tasks import (
    SPLITS,
    CompareReply,
    CompareTask,
    EvaluateReply,
    EvaluateTask,
    Evaluation,
    ModelOfRun,
    SiteManifest,
    Split,
    TrainReply,
    TrainTask,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """One hospital in one study, with its prepared patients in memory.

    Attributes:
        config: The hospital's own settings.
        study: What all sites agreed on.
        cohort: The prepared patients.
        device: Where the model is computed.
    """

    config: SiteConfig
    study: Study
    cohort: PreparedCohort
    device: torch.device

    @classmethod
    def open(cls, config: SiteConfig, study: Study) -> "Site":
        """Load a site's patients, preparing those the cache lacks.

        Raises:
            ConfigError: If the device is not there, or the table is faulty.
            DataError: If images cannot be prepared.
            DisclosureError: If the site has too few training patients, or the study counts too finely for it.
        """
        _use_threads(config)
        device = find_device(config.device)
        cohort = prepare_site(config, study)
        require_allowed(config, study, cohort)
        return cls(config, study, cohort, device)

    def describe(self) -> SiteManifest:
        """Counts, digests and versions for the coordinator; nothing about a single patient."""
        _use_threads(self.config)
        splits = self.cohort.splits
        return SiteManifest(
            site=self.config.name,
            study_digest=self.study.digest,
            num_patients={split: splits[split].class_counts for split in SPLITS},
            num_exams={split: splits[split].num_exams for split in SPLITS},
            cohort_digests={split: self.cohort.digests[split] for split in SPLITS},
            missing_sequences=dict(self.cohort.missing_counts),
            crop_centers={str(source): count for source, count in self.cohort.centre_counts.items()},
            device=self.device.type,
            torch_threads=torch.get_num_threads(),
            versions={name: version(name) for name in ("gliorn", "flwr", "torch", "monai")}
            | {"python": platform.python_version()},
        )

    def train(self, task: TrainTask) -> TrainReply:
        """Evaluate the state that arrived on the validation patients, then train it for one round."""
        started = time.monotonic()
        model = self._model(task.state)
        evaluation = self._evaluate(model, "validation", threshold=None)
        evaluated = time.monotonic()
        memory = None
        if self.study.training.keep_optimizer_state:
            memory = OptimizerMemory(self.config.cache, f"{task.run}-{self.study.digest[:12]}")
        outcome, continued = self._train(model, task, memory)
        trained = time.monotonic()
        log.info(
            "%s, round %d: %d steps, mean loss %.4f, %.1f s",
            *(self.config.name, task.round, outcome.num_steps, outcome.mean_loss, trained - started),
        )
        return TrainReply(
            study_digest=self.study.digest,
            round=task.round,
            state=get_state(model),
            num_patients=self.cohort.splits["train"].class_counts,
            num_steps=outcome.num_steps,
            train_loss=outcome.mean_loss,
            optimizer="continued" if continued else "fresh",
            seconds=(evaluated - started, trained - evaluated),
            evaluation=evaluation,
        )

    def _train(self, model: nn.Module, task: TrainTask, memory: OptimizerMemory | None) -> tuple[TrainingOutcome, bool]:
        spec, split = self.study.training, self.cohort.splits["train"]
        learning_rate = learning_rate_in_round(spec, round=task.round, num_rounds=self.study.rounds)
        optimizer = build_optimizer(model, spec, learning_rate=learning_rate)
        continued = memory is not None and memory.restore(optimizer, round=task.round)
        penalty = None
        if task.fedprox_mu > 0:
            reference = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            penalty = proximal_penalty(task.fedprox_mu, reference)
        outcome = train_locally(
            model,
            optimizer,
            TrainingSet(split.images, split.labels, self.study.preprocessing.spacing_mm),
            training=spec,
            augmentation=self.study.augmentation,
            class_weights=task.class_weights,
            generator=round_generator(seed=self.study.seed, site=self.config.name, round=task.round),
            penalty=penalty,
        )
        if memory is not None:
            memory.keep(optimizer, round=task.round)
        return outcome, continued

    def evaluate(self, task: EvaluateTask) -> EvaluateReply:
        """Evaluate a model state on the validation or test patients."""
        started = time.monotonic()
        evaluation = self._evaluate(self._model(task.state), task.split, threshold=task.threshold, kept_for=task)
        return EvaluateReply(self.study.digest, evaluation, time.monotonic() - started)

    def compare(self, task: CompareTask) -> CompareReply:
        """Compare two models that were tested on this site's test patients, from what the tests left here."""
        return compare_kept(
            self.config.cache,
            self.config.disclosure,
            task,
            cohort_digest=self.cohort.digests["test"],
            study_digest=self.study.digest,
        )

    def _model(self, state: ModelState) -> nn.Module:
        _use_threads(self.config)
        model = build_model(self.study.model, num_sequences=len(self.study.sequences))
        set_state(model, state)
        return model.to(self.device)

    def _evaluate(
        self,
        model: nn.Module,
        split: Split,
        *,
        threshold: float | None,
        kept_for: EvaluateTask | None = None,
        personal: bool = False,
    ) -> Evaluation:
        """Count the patients of a split; the scores of a test are kept here for later comparisons, by its task."""
        assert split != "train", "training patients are not evaluated"
        patients = self.cohort.splits[split]
        margins = margins_of_exams(model, patients.images, batch_size=self.study.training.batch_size)
        per_patient = mean_per_patient(margins, patients.patient_index.numpy(), patients.num_patients)
        labels = patients.patient_labels.numpy()
        if kept_for is not None and split == "test":
            keep_scores(
                self.config.cache,
                ModelOfRun(kept_for.run, self.study.digest, personal),
                per_patient,
                labels,
                bins=bins_of(self.study),
                cohort_digest=self.cohort.digests[split],
                round=kept_for.round,
            )
        return disclose(
            per_patient,
            labels,
            split=split,
            bins=bins_of(self.study),
            threshold=threshold,
            min_cell=self.config.disclosure.min_cell,
            max_bins=self.config.disclosure.max_bins,
            cohort_digest=self.cohort.digests[split],
        )


def _use_threads(config: SiteConfig) -> None:
    """Compute with the site's number of threads from here on.

    Before every task, since torch keeps this number for each thread of a process, and any of them may get the task.
    A thread that uses torch for the first time takes the number that was last set in any thread; asking for it first
    gets that over with, so that nothing overrides what is set here.
    """
    if config.torch_threads is not None:
        torch.get_num_threads()
        torch.set_num_threads(config.torch_threads)


def require_allowed(config: SiteConfig, study: Study, cohort: PreparedCohort) -> None:
    """Check that the site's own rules let it take part in a study.

    Raises:
        DisclosureError: If it has too few training patients, or the study counts scores too finely for it.
    """
    faults = disclosure_faults(config, study, cohort)
    if faults:
        raise DisclosureError("\n".join(faults))


def disclosure_faults(config: SiteConfig, study: Study, cohort: PreparedCohort) -> list[str]:
    """All that the site's own rules have against its taking part in a study."""
    faults = []
    if study.evaluation.num_bins > config.disclosure.max_bins:
        faults.append(
            f"{config.name}: the study counts scores in {study.evaluation.num_bins} bins, this site shows at most "
            f"{config.disclosure.max_bins} (disclosure.max_bins); lower evaluation.num_bins in the study"
        )
    num_training, least = cohort.splits["train"].num_patients, config.disclosure.min_patients
    if num_training < least:
        faults.append(
            f"{config.name}: {num_training} training patients, this site takes part with at least {least} "
            "(disclosure.min_patients in its configuration)"
        )
    return faults


def find_device(name: str) -> torch.device:
    """The device that a configuration names; "auto" is the first CUDA device where there is one, else the CPU.

    Raises:
        ConfigError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"device: found {count} CUDA devices, {name} is not among them; write auto or cpu")
    return device
