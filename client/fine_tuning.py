"""A model of a site's own by fine-tuning the last block of the global one on the site's training patients."""

import hashlib

import numpy as np
from torch import nn

from client.site_memory import SiteMemory
from client.training import TrainingSet, build_optimizer, log_priors, round_generator, train_locally
from common.model_state import state_digest
from common.models import get_state, set_state
from common.study import ModelSpec
from common.tasks import EvaluateTask

_RESNET = ("layer4.", "fc.")
_LAST_BLOCKS: dict[str, tuple[str, ...]] = {
    "resnet10": _RESNET,
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "densenet121": ("features.denseblock4.", "features.norm5.", "class_layers."),
    "vgg11": ("features.conv5_", "features.norm5_", "fc."),
    "vgg16": ("features.conv5_", "features.norm5_", "fc."),
    "mresnet": ("branches.0.layer4.", "branches.1.layer4.", "branches.2.layer4.", "fusion.", "fc."),
}
"""Where the names of the last block and of the head begin, by architecture."""


def last_block_names(model: nn.Module, spec: ModelSpec) -> frozenset[str]:
    """Entries of a network's state that fine-tuning changes: its last stage of convolutions, and the head."""
    return frozenset(name for name in model.state_dict() if name.startswith(_LAST_BLOCKS[spec.name]))


def fine_tune(model: nn.Module, task: EvaluateTask, *, site: str, patients: TrainingSet) -> None:
    """Train the last block and the head, in place; all other parameters and all other layers' statistics stay.

    By the study's own optimiser, batches and augmentation, at `fine_tune_learning_rate` for `fine_tune_epochs`. What
    comes out is a function of the model, the task, the site and its patients.
    """
    study = task.study
    training = study.training.model_copy(
        update={"local_epochs": study.personalization.fine_tune_epochs, "local_steps": None}
    )
    last = last_block_names(model, study.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in last)
    adjusted = training.class_weighting == "logit_adjusted"
    train_locally(
        model,
        build_optimizer(model, training, learning_rate=study.personalization.fine_tune_learning_rate),
        patients,
        training=training,
        augmentation=study.augmentation,
        class_weights=task.class_weights,
        generator=round_generator(seed=study.seed, site=site, round=task.round, purpose="fine_tune"),
        logit_offsets=log_priors(task.class_counts) if adjusted else None,
    )


def fine_tune_once(
    model: nn.Module, task: EvaluateTask, *, site: str, patients: TrainingSet, memory: SiteMemory
) -> None:
    """Fine-tune a model in place, or give it what was kept when the same model was fine-tuned before.

    So that the test patients are scored by the very model that the validation patients were, on any device.
    """
    origin = _origin(model, task)
    kept = memory.read("fine-tuned", round=task.round)
    if kept is not None and kept.pop(_ORIGIN, np.zeros(0)).tobytes() == origin:
        set_state(model, {**get_state(model), **kept})
        return
    fine_tune(model, task, site=site, patients=patients)
    state = get_state(model)
    values = {name: state[name] for name in last_block_names(model, task.study.model)}
    memory.keep("fine-tuned", values | {_ORIGIN: np.frombuffer(origin, dtype=np.uint8)}, round=task.round)


_ORIGIN = "origin"
"""Beside the kept entries: the digest of what they were made from."""


def _origin(model: nn.Module, task: EvaluateTask) -> bytes:
    made_from = f"{state_digest(get_state(model))}\0{task.class_weights}\0{task.class_counts}"
    return hashlib.sha256(made_from.encode()).digest()
