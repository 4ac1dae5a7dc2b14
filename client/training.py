"""Training of a model on one site's patients for one round."""

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.acceleration.plan import PLAIN, StepPlan
from client.augmentation import augment
from client.exam_images import Images, batches_of, near_device
from client.sampling import batches_of_round
from common.errors import TrainingError
from common.models.norm import norm_layers
from common.study import AugmentationSpec, TrainingSpec

Penalty = Callable[[nn.Module], Tensor]
"""A term added to the loss of every step; a function of the model as it stands. Scalar."""


@dataclass(frozen=True)
class TrainingSet:
    """A site's training exams.

    Attributes:
        images: Shape (N, C, D, H, W), float32, z-scored.
        labels: Shape (N,), int64, 1 for necrosis.
        spacing_mm: Voxel size.
    """

    images: Images
    labels: Tensor
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class TrainingOutcome:
    """What local training did: steps, and their mean loss without the penalty."""

    num_steps: int
    mean_loss: float


def proximal_penalty(mu: float, reference: Mapping[str, Tensor]) -> Penalty:
    """FedProx: mu/2 times the squared distance to the global model (Li et al. 2020, arXiv:1812.06127, equation 2).

    Ditto's pull of a site's own model towards the global one has the same form, with lambda for mu (Li et al. 2021,
    arXiv:2012.04221, equation 1).

    Args:
        mu: Strength, above 0.
        reference: The global model's trainable parameters by name, on the model's device. Buffers, and what is not
            named here, take no part.
    """

    def penalty(model: nn.Module) -> Tensor:
        squares = [(p - reference[name]).square().sum() for name, p in model.named_parameters() if name in reference]
        return 0.5 * mu * torch.stack(squares).sum()

    return penalty


def trainable_parameters(model: nn.Module, *, without: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Copies of the parameters that are trained, but for some names: what a penalty pulls to."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name not in without
    }


def log_priors(class_counts: tuple[int, int]) -> tuple[float, float]:
    """Logit adjustment: the log of each class's share (Menon et al. 2021, arXiv:2007.07314, equation 10, tau 1).

    Added to the logits in training alone, so that the raw logits rank by what the classes look like, not by how
    common they are.

    Args:
        class_counts: Training patients of all sites with label 0 and with label 1.

    Raises:
        TrainingError: If a class has no patient at any site, so that it has no prior.
    """
    total = sum(class_counts)
    if min(class_counts) <= 0:
        raise TrainingError(
            f"all sites together have {list(class_counts)} training patients by class, expected some of each for "
            "class_weighting logit_adjusted; write none in the study, or wait for a site that has both"
        )
    return math.log(class_counts[0] / total), math.log(class_counts[1] / total)


def build_optimizer(
    model: nn.Module, training: TrainingSpec, *, learning_rate: float, fused: bool = False
) -> torch.optim.Optimizer:
    """The study's optimiser for a model's trainable parameters, fused where the plan of its steps says so."""
    in_one_pass = True if fused else None  # None leaves it to torch, as a plain loop does
    parameters = [p for p in model.parameters() if p.requires_grad]
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(
                parameters, lr=learning_rate, weight_decay=training.weight_decay, fused=in_one_pass
            )
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=learning_rate,
                momentum=training.momentum,
                weight_decay=training.weight_decay,
                fused=in_one_pass,
            )


def train_locally(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training_set: TrainingSet,
    *,
    training: TrainingSpec,
    augmentation: AugmentationSpec,
    class_weights: tuple[float, float],
    generator: torch.Generator,
    logit_offsets: tuple[float, float] | None = None,
    penalty: Penalty | None = None,
    correction: Mapping[str, Tensor] | None = None,
    plan: StepPlan = PLAIN,
) -> TrainingOutcome:
    """Train a model in place for the local epochs or local steps of the study.

    The loss of a batch is the class-weighted mean of the cross-entropy, divided by the sum of the weights. A layer of
    normalisation whose parameters are not trained keeps its statistics too.

    Args:
        model: On the device it is trained on.
        optimizer: Over the model's parameters.
        training_set: The site's exams.
        training: Batch size, length of a round, clipping.
        augmentation: Random changes of the images.
        class_weights: Loss weights of labels 0 and 1.
        generator: On the CPU; decides the order of the exams and the augmentation.
        logit_offsets: Added to the logits of labels 0 and 1 in the loss, for example `log_priors`.
        penalty: Added to the loss, for example by `proximal_penalty`.
        correction: Added to the gradient of every step after clipping, by parameter, as SCAFFOLD does.
        plan: How the steps are computed.

    Raises:
        TrainingError: If a loss, or a number of the trained model, is NaN or infinite.
    """
    device = next(model.parameters()).device
    weights = torch.tensor(class_weights, device=device)
    offsets = None if logit_offsets is None else torch.tensor(logit_offsets, device=device)
    all_labels = training_set.labels.to(device)
    losses: list[Tensor] = []  # on the device: a number is asked for when all steps are queued
    _begin_training(model)

    def changed(batch: Tensor) -> Tensor:
        return augment(batch, augmentation, spacing_mm=training_set.spacing_mm, generator=generator)

    order = batches_of_round(training, training_set.labels, generator)
    with closing(batches_of(near_device(training_set.images, device), order, device, change=changed)) as batches:
        for indices, images in batches:
            labels = all_labels[indices.to(device)]
            logits = plan.logits(model, images) if offsets is None else plan.logits(model, images) + offsets  # (B, 2)
            loss = functional.cross_entropy(logits, labels, weight=weights)
            total = loss if penalty is None else loss + penalty(model)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            if training.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            if correction is not None:
                _correct(model, correction)
            optimizer.step()
            losses.append(loss.detach())
    mean_loss = float(torch.stack(losses).double().mean())
    if not math.isfinite(mean_loss):
        raise TrainingError(
            f"the mean loss of {len(losses)} steps is {mean_loss}, expected a finite number; "
            "lower learning_rate, or set max_grad_norm in the study"
        )
    # The extremes are finite if every number is: NaN becomes both. They need no copy, as a sum in doubles would.
    extremes = [torch.stack(torch.aminmax(values)).double() for values in model.state_dict().values()]
    if not bool(torch.isfinite(torch.stack(extremes)).all()):
        raise TrainingError(
            f"the model is not finite after {len(losses)} steps; lower learning_rate, or set max_grad_norm in the study"
        )
    return TrainingOutcome(num_steps=len(losses), mean_loss=mean_loss)


def _begin_training(model: nn.Module) -> None:
    model.train()
    for layer in norm_layers(model).values():
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            layer.eval()


def _correct(model: nn.Module, correction: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in correction and parameter.grad is not None:
            parameter.grad.add_(correction[name])


def round_generator(
    *, seed: int, site: str, round: int, purpose: Literal["train", "personal", "fine_tune", "statistics"] = "train"
) -> torch.Generator:
    """Source of a round's randomness at a site: a function of the study's seed, the site's name and the round.

    What is done beside the training of the global model has a source of its own, so that it changes nothing there.
    """
    key = hashlib.sha256(f"{purpose}\0{seed}\0{site}\0{round}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
