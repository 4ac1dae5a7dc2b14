"""A site at work: describes what it brings, evaluates and trains. Everything that leaves it is made here."""

import logging
import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.acceleration.allocator import keep_freed_memory
from client.acceleration.calibration import StepChoices
from client.cache import ExamCache
from client.cohort_statistics import shown_statistics
from client.config import SiteConfig
from client.duplicates import blinded, blinded_again, blinding_key, fingerprints_of
from client.evaluation import disclose, margins_of_exams, mean_per_patient
from client.fine_tuning import fine_tune_once
from client.kept_scores import compare_kept, keep_scores
from client.loader import PreparedCohort
from client.local_round import LocalRound
from client.own_choice import best_round, choose_own, consider_round
from client.own_layers import estimate_statistics, names_that_stay, whole_model
from client.prepare import prepare_site
from client.site_memory import SiteMemory
from client.training import TrainingSet, round_generator
from common.duplicates import BlindedPatients
from common.errors import ConfigError, DisclosureError
from common.messages import bins_of
from common.model_state import ModelState
from common.models import get_state, local_names, set_state
from common.study import Study
from common.tasks import (
    SPLITS,
    CompareReply,
    CompareTask,
    DuplicatesReply,
    DuplicatesTask,
    EvaluateReply,
    EvaluateTask,
    Evaluation,
    ModelOfRun,
    OwnChoice,
    SiteManifest,
    Split,
    StatisticsReply,
    TrainReply,
    TrainTask,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """One hospital in one study, with its prepared patients.

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
        """Find a site's patients, preparing those the cache lacks. Their images are read when they are needed.

        Raises:
            ConfigError: If the device is not there, or the table is faulty.
            DataError: If images cannot be prepared.
            DisclosureError: If the site has too few training patients, or the study counts too finely for it.
        """
        use_threads(config)
        device = find_device(config.device)
        keep_freed_memory()
        cohort = prepare_site(config, study, check=False)
        require_allowed(config, study, cohort)
        return cls(config, study, cohort, device)

    def describe(self) -> SiteManifest:
        """Counts, digests and versions for the coordinator; nothing about a single patient."""
        use_threads(self.config)
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
        memory = self._memory(task)
        model = self._model(task.state, memory, round=task.round - 1)
        scores = self._scores(model, "validation")
        evaluation = self._shown(scores, "validation", threshold=None)
        if self._trains_alone and task.round > 1:
            consider_round(memory, *scores, bins=bins_of(self.study), round=task.round - 1)
            task = replace(task, best_round=best_round(memory, round=task.round - 1))
        evaluated = time.monotonic()
        patients, choices = self._training_set(), StepChoices(self.config.cache)
        num_exams = len(patients.labels)
        choice = choices.choose(self.study, num_exams=num_exams, device=self.device)
        outcome = LocalRound(task, self.config.name, patients, memory, choice.plan).train(model)
        if outcome.failure:
            choice = choices.drop(self.study, choice, outcome.failure, num_exams=num_exams, device=self.device)
        trained = time.monotonic()
        log.info(
            "%s, round %d: %d steps, mean loss %.4f, %.1f s%s",
            *(self.config.name, task.round, outcome.training.num_steps, outcome.training.mean_loss, trained - started),
            f", in {choice.plan.name} ({choice.speed_up:.1f} x)" if choice.seconds else "",
        )
        stay = names_that_stay(self.study)
        return TrainReply(
            study_digest=self.study.digest,
            round=task.round,
            state={name: array for name, array in get_state(model).items() if name not in stay},
            num_patients=self.cohort.splits["train"].class_counts,
            num_steps=outcome.training.num_steps,
            train_loss=outcome.training.mean_loss,
            optimizer="continued" if outcome.continued else "fresh",
            seconds=(evaluated - started, trained - evaluated),
            evaluation=evaluation,
            control=outcome.control,
            plan=choice.plan.name,
            step_microseconds={name: round(1e6 * seconds) for name, seconds in choice.seconds.items()},
            damaged=tuple(sorted(memory.damaged)),
        )

    def evaluate(self, task: EvaluateTask) -> EvaluateReply:
        """Evaluate a model state on the validation or test patients, and the site's own model where it has one.

        A model that is the site's own, beside the global one or instead of it, is tested at a threshold that the site
        chooses itself, on its validation patients; and a site that trains by itself chooses the round as well.
        """
        started = time.monotonic()
        memory = self._memory(task)
        round = best_round(memory, round=task.round) if self._trains_alone and task.own_round else task.round
        model = self._model(task.state, memory, round=round)
        evaluation, choice = self._evaluate(model, replace(task, round=round), memory, is_own=self._trains_alone)
        personal, personal_choice = None, None
        if self._has_own_model():
            self._personalize(model, task, memory)
            personal, personal_choice = self._evaluate(model, task, memory, is_own=True, personal=True)
        return EvaluateReply(
            self.study.digest,
            evaluation,
            time.monotonic() - started,
            personal=personal,
            choice=choice,
            personal_choice=personal_choice,
            damaged=tuple(sorted(memory.damaged)),
        )

    def compare(self, task: CompareTask) -> CompareReply:
        """Compare two models that were tested on this site's test patients, from what the tests left here."""
        return compare_kept(
            self.config.cache,
            self.config.disclosure,
            task,
            cohort_digest=self.cohort.digests["test"],
            study_digest=self.study.digest,
        )

    def show_statistics(self) -> StatisticsReply:
        """Count the cohort for statistics before training, small counts hidden.

        Raises:
            DisclosureError: If the site has not agreed to show such statistics.
        """
        if not self.config.disclosure.statistics:
            raise DisclosureError(
                f"{self.config.name}: shows no statistics of its cohort; to agree to them, write statistics: true "
                "under disclosure in its configuration"
            )
        shown = shown_statistics(self.cohort, self.study.sequences, min_cell=self.config.disclosure.min_cell)
        return StatisticsReply(self.study.digest, "min_cell" if shown is None else "", shown)

    def blind_patients(self, task: DuplicatesTask) -> DuplicatesReply:
        """Blind this site's patients, or those of all sites, so that the coordinator can count those in common.

        Raises:
            DisclosureError: If the site has not agreed to have its patients compared.
            DataError: If an image cannot be read.
        """
        if not self.config.disclosure.duplicates:
            raise DisclosureError(
                f"{self.config.name}: does not let its patients be compared with other sites'; to agree to that, write "
                "duplicates: true under disclosure in its configuration"
            )
        secret = ExamCache(self.config.cache).site_secret()
        key = blinding_key(secret, run=task.run, study_digest=self.study.digest)
        if task.patients is None:
            made: tuple[BlindedPatients, ...] = (blinded(fingerprints_of(self.cohort.cohort), key),)
        else:
            made = tuple(blinded_again(patients, key) for patients in task.patients)
        return DuplicatesReply(self.study.digest, made)

    def _memory(self, task: TrainTask | EvaluateTask) -> SiteMemory:
        return SiteMemory(self.config.cache, run=task.run, study_digest=self.study.digest, run_id=task.run_id)

    @property
    def _trains_alone(self) -> bool:
        return self.study.aggregation.method == "local"

    def _training_set(self) -> TrainingSet:
        split = self.cohort.splits["train"]
        return TrainingSet(split.images, split.labels, self.study.preprocessing.spacing_mm)

    def _model(self, state: ModelState, memory: SiteMemory, *, round: int) -> nn.Module:
        """The model with the state that arrived, which is of this round, and with what stays at this site.

        That is what the site kept of this round or, where it missed it, of the last one before. A site that kept
        nothing takes the initial values; after the initial state, where the others' have moved on, it estimates the
        statistics of its normalisation layers anew from its own training images, or from its test images where it is
        held out and has no others. Labels have no part in that.
        """
        use_threads(self.config)
        own = memory.latest("own", round=round) if names_that_stay(self.study) else None
        model = whole_model(self.study, state, own).to(self.device)
        if own is None and round > 0 and self._has_own_statistics():
            log.info("%s has no normalisation statistics of its own yet and estimates them", self.config.name)
            training = self.cohort.splits["train"]
            estimate_statistics(
                model,
                (training if training.num_exams else self.cohort.splits["test"]).images,
                batch_size=self.study.training.batch_size,
                generator=round_generator(
                    seed=self.study.seed, site=self.config.name, round=round, purpose="statistics"
                ),
            )
        return model

    def _has_own_statistics(self) -> bool:
        own_layers = local_names(self.study.model, num_sequences=len(self.study.sequences))
        return bool(own_layers) and not self._trains_alone

    def _has_own_model(self) -> bool:
        return (
            self.study.personalization.method != "none"
            and self.config.name not in self.study.participation.held_out  # such a site never trains
        )

    def _personalize(self, model: nn.Module, task: EvaluateTask, memory: SiteMemory) -> None:
        """Turn the global model into the site's own one of the same round, in place.

        That of a site that has not trained yet is the global one.
        """
        match self.study.personalization.method:
            case "ditto":
                values = memory.latest("personal", round=task.round)
                if values is not None:
                    set_state(model, values)
            case "fine_tune":
                fine_tune_once(model, task, site=self.config.name, patients=self._training_set(), memory=memory)

    def _evaluate(
        self, model: nn.Module, task: EvaluateTask, memory: SiteMemory, *, is_own: bool, personal: bool = False
    ) -> tuple[Evaluation, OwnChoice | None]:
        """Count the patients of a split; the scores of a test are kept here for later comparisons.

        Args:
            model: Whose scores they are.
            task: The split, the round of the model, and the threshold of a model that is not the site's own.
            memory: Of a site that trains by itself: where the model of its best round is noted.
            is_own: Whether the site chooses the threshold.
            personal: Whether the model is the site's own beside the global one.
        """
        scores, split = self._scores(model, task.split), task.split
        threshold, choice = task.threshold, None
        if is_own and split == "test":
            threshold, choice = choose_own(
                *self._scores(model, "validation"),
                study=self.study,
                bins=bins_of(self.study),
                round=task.round,
                min_cell=self.config.disclosure.min_cell,
            )
        if split == "validation" and self._trains_alone and not task.own_round and task.round > 0:
            consider_round(memory, *scores, bins=bins_of(self.study), round=task.round)
        if split == "test":
            keep_scores(
                self.config.cache,
                ModelOfRun(task.run, self.study.digest, personal, task.run_id),
                *scores,
                bins=bins_of(self.study),
                cohort_digest=self.cohort.digests[split],
                round=task.round,
            )
        return self._shown(scores, split, threshold=threshold), choice

    def _scores(self, model: nn.Module, split: Split) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Margin and label of each patient of a split; shape (N,) each."""
        assert split != "train", "training patients are not evaluated"
        patients = self.cohort.splits[split]
        margins = margins_of_exams(model, patients.images, batch_size=self.study.training.batch_size)
        per_patient = mean_per_patient(margins, patients.patient_index.numpy(), patients.num_patients)
        return per_patient, patients.patient_labels.numpy()

    def _shown(
        self, scores: tuple[NDArray[np.float64], NDArray[np.int64]], split: Split, *, threshold: float | None
    ) -> Evaluation:
        """What of some scores may leave the site."""
        assert split != "train", "training patients are not evaluated"
        return disclose(
            *scores,
            split=split,
            bins=bins_of(self.study),
            threshold=threshold,
            min_cell=self.config.disclosure.min_cell,
            max_bins=self.config.disclosure.max_bins,
            cohort_digest=self.cohort.digests[split],
        )


def use_threads(config: SiteConfig) -> None:
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
    split: Split = "test" if config.name in study.participation.held_out else "train"
    found, least = cohort.splits[split].num_patients, config.disclosure.min_patients
    if found < least:
        kind = "training" if split == "train" else "test"
        faults.append(
            f"{config.name}: {found} {kind} patients, this site takes part with at least {least} "
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
