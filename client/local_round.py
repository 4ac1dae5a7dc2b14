"""A site's training in one round, by the methods of the study, and what the site keeps of it."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from client.acceleration.plan import PLAIN, StepPlan
from client.control_variates import correction_of, next_control, no_control
from client.optimizer_memory import keep_optimizer, restore_optimizer
from client.own_layers import names_that_stay
from client.sampling import has_both_classes
from client.site_memory import Part, SiteMemory
from client.training import (
    Penalty,
    TrainingOutcome,
    TrainingSet,
    build_optimizer,
    log_priors,
    proximal_penalty,
    round_generator,
    train_locally,
    trainable_parameters,
)
from common.errors import TrainingError
from common.model_state import Array
from common.models import get_state, set_state
from common.schedule import learning_rate_in_round
from common.tasks import TrainTask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundOutcome:
    """What came of a round beside the trained model.

    Attributes:
        training: Steps and loss of the global model.
        continued: Whether its optimiser went on from the round before.
        control: The site's control variate after the round; None without SCAFFOLD.
        failure: Why a model was trained in plain float32 after all; empty where it was trained by the plan.
    """

    training: TrainingOutcome
    continued: bool
    control: dict[str, Array] | None
    failure: str = ""


@dataclass(frozen=True)
class LocalRound:
    """One round at one site.

    Attributes:
        task: What the coordinator asks.
        site: Name of the site.
        patients: Its training exams.
        memory: What it keeps of this run. It is read as it was before this round and written as it is after it, so
            a round that is run again begins alike.
        plan: How the steps are computed.
    """

    task: TrainTask
    site: str
    patients: TrainingSet
    memory: SiteMemory
    plan: StepPlan = PLAIN

    def train(self, model: nn.Module) -> RoundOutcome:
        """Train the model that arrived, in place, and then, with Ditto, the site's own one.

        The site's own model has optimiser and randomness of its own, so the global model is the same with it and
        without.
        """
        task, spec = self.task, self.task.study.training
        if spec.sampling == "class_balanced" and not has_both_classes(self.patients.labels):
            log.warning("%s has training exams of one class alone, which are shuffled and not balanced", self.site)
        stay = names_that_stay(task.study)
        personal = copy.deepcopy(model) if task.study.personalization.method == "ditto" else None
        is_pulled = task.fedprox_mu > 0 or spec.control_variates or personal is not None
        shared = trainable_parameters(model, without=stay) if is_pulled else {}
        own_control = self._own_control(shared)
        outcome, continued, failure = self._train(
            model,
            part="optimizer",
            purpose="train",
            penalty=proximal_penalty(task.fedprox_mu, shared) if task.fedprox_mu > 0 else None,
            correction=None
            if own_control is None
            else correction_of(model, server=task.control or {}, own=own_control),
        )
        control = None
        if own_control is not None:
            control = self._next_control(own_control, before=shared, model=model, num_steps=outcome.num_steps)
        if stay:
            state = get_state(model)
            self.memory.keep("own", {name: state[name] for name in stay}, round=task.round)
        if personal is not None:
            failure = self._train_personal(personal, shared) or failure
        self.memory.forget(round=task.round, best_round=task.best_round)
        return RoundOutcome(outcome, continued, control, failure)

    def _train(
        self,
        model: nn.Module,
        *,
        part: Part,
        purpose: Literal["train", "personal"],
        penalty: Penalty | None,
        correction: Mapping[str, Tensor] | None,
    ) -> tuple[TrainingOutcome, bool, str]:
        """Train a model by the plan or, where that fails, from the start in plain float32.

        Returns:
            What was done, whether the optimiser went on, and why the plan failed.
        """
        terms = _Terms(part, purpose, penalty, correction)
        failure = ""
        if self.plan != PLAIN:
            begin = self._begin_of(model, part)
            try:
                return (*self._train_by(self.plan, model, terms), "")
            except (TrainingError, RuntimeError) as error:  # RuntimeError is torch's, whose text may name files
                failure = f"training failed ({type(error).__name__})"
            log.warning("%s: %s in %s and is done again in %s", self.site, failure, self.plan.name, PLAIN.name)
            model.load_state_dict(begin())
            model.zero_grad(set_to_none=True)
        return (*self._train_by(PLAIN, model, terms), failure)

    def _begin_of(self, model: nn.Module, part: Part) -> Callable[[], dict[str, Tensor]]:
        """Gives the model's values as they are now; what is in the state that arrived is copied only when asked for."""
        arrived = set(self.task.state) - names_that_stay(self.task.study) if part == "optimizer" else set()
        others = {name: values.detach().clone() for name, values in model.state_dict().items() if name not in arrived}
        return lambda: others | {name: torch.from_numpy(self.task.state[name].copy()) for name in sorted(arrived)}

    def _train_by(self, plan: StepPlan, model: nn.Module, terms: "_Terms") -> tuple[TrainingOutcome, bool]:
        task, study = self.task, self.task.study
        optimizer = build_optimizer(model, study.training, learning_rate=self._learning_rate, fused=plan.fused)
        keeps = study.training.keep_optimizer_state
        continued = keeps and restore_optimizer(optimizer, self.memory, terms.part, round=task.round)
        adjusted = study.training.class_weighting == "logit_adjusted"
        outcome = train_locally(
            model,
            optimizer,
            self.patients,
            training=study.training,
            augmentation=study.augmentation,
            class_weights=task.class_weights,
            generator=round_generator(seed=study.seed, site=self.site, round=task.round, purpose=terms.purpose),
            logit_offsets=log_priors(task.class_counts) if adjusted else None,
            penalty=terms.penalty,
            correction=terms.correction,
            plan=plan,
        )
        if keeps:
            keep_optimizer(optimizer, self.memory, terms.part, round=task.round)
        return outcome, continued

    @property
    def _learning_rate(self) -> float:
        study = self.task.study
        return learning_rate_in_round(study.training, round=self.task.round, num_rounds=study.rounds)

    def _train_personal(self, personal: nn.Module, shared: Mapping[str, Tensor]) -> str:
        """Ditto: train the site's own model from where it stood, pulled towards the global one that arrived.

        Li et al. 2021, arXiv:2012.04221, algorithm 1. A site that has none yet begins from the global model.

        Args:
            personal: A model with the values that arrived.
            shared: The global model's trainable parameters as they arrived.

        Returns:
            Why the plan failed; empty where it did not.
        """
        values = self.memory.latest("personal", round=self.task.round - 1)
        if values is not None:
            set_state(personal, values)
        pull = proximal_penalty(self.task.study.personalization.ditto_lambda, shared)
        *_, failure = self._train(
            personal, part="personal-optimizer", purpose="personal", penalty=pull, correction=None
        )
        self.memory.keep("personal", get_state(personal), round=self.task.round)
        return failure

    def _own_control(self, shared: Mapping[str, Tensor]) -> dict[str, Array] | None:
        if not self.task.study.training.control_variates:
            return None
        kept = self.memory.latest("control", round=self.task.round - 1)
        return no_control(_arrays(shared)) if kept is None else kept

    def _next_control(
        self, own: Mapping[str, Array], *, before: Mapping[str, Tensor], model: nn.Module, num_steps: int
    ) -> dict[str, Array]:
        after = trainable_parameters(model)
        new = next_control(
            own,
            server=self.task.control or {},
            before=_arrays(before),
            after=_arrays({name: after[name] for name in before}),
            num_steps=num_steps,
            learning_rate=self._learning_rate,
        )
        self.memory.keep("control", new, round=self.task.round)
        return new


@dataclass(frozen=True)
class _Terms:
    """What the training of the global model and of a site's own one differ in."""

    part: Part
    purpose: Literal["train", "personal"]
    penalty: Penalty | None
    correction: Mapping[str, Tensor] | None


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
