"""Training of a model on one site's patients for one round."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.augmentation import augment
from common.errors import TrainingError
from common.study import AugmentationSpec, TrainingSpec

Penalty = Callable[[nn.Module], Tensor]
"""A term added to the loss of every step; a function of the model as it stands. Scalar."""


@dataclass(frozen=True)
class TrainingSet:
    """A site's training exams in main memory.

    Attributes:
        images: Shape (N, C, D, H, W), float32, z-scored.
        labels: Shape (N,), int64, 1 for necrosis.
        spacing_mm: Voxel size.
    """

    images: Tensor
    labels: Tensor
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class TrainingOutcome:
    """What a round of local training did: steps, and their mean loss without the penalty."""

    num_steps: int
    mean_loss: float


def proximal_penalty(mu: float, reference: Mapping[str, Tensor]) -> Penalty:
    """FedProx: mu/2 times the squared distance to the global model (Li et al. 2020, arXiv:1812.06127, equation 2).

    Args:
        mu: Strength, above 0.
        reference: The global model's trainable parameters by name, on the model's device. Buffers take no part.
    """

    def penalty(model: nn.Module) -> Tensor:
        squares = [(p - reference[name]).square().sum() for name, p in model.named_parameters() if p.requires_grad]
        return 0.5 * mu * torch.stack(squares).sum()

    return penalty


def build_optimizer(model: nn.Module, training: TrainingSpec, *, learning_rate: float) -> torch.optim.Optimizer:
    """The study's optimiser for a model's trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=training.weight_decay)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
            )


def batches(num_exams: int, *, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the batches of one pass in random order.

    The pass is cut into ceil(n / batch_size) parts of nearly equal size, so that no batch of a single exam is left
    over, on which batch norm would fail.
    """
    order = torch.randperm(num_exams, generator=generator)
    return iter(torch.tensor_split(order, math.ceil(num_exams / batch_size)))


def _batches_of_round(training: TrainingSpec, num_exams: int, generator: torch.Generator) -> Iterator[Tensor]:
    steps_left = training.local_steps if training.local_steps is not None else math.inf
    epochs_left = training.local_epochs if training.local_epochs is not None else math.inf
    while epochs_left > 0:
        for indices in batches(num_exams, batch_size=training.batch_size, generator=generator):
            if steps_left <= 0:
                return
            yield indices
            steps_left -= 1
        epochs_left -= 1


def train_locally(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training_set: TrainingSet,
    *,
    training: TrainingSpec,
    augmentation: AugmentationSpec,
    class_weights: tuple[float, float],
    generator: torch.Generator,
    penalty: Penalty | None = None,
) -> TrainingOutcome:
    """Train a model in place for the local epochs or local steps of the study.

    The loss of a batch is the class-weighted mean of the cross-entropy, divided by the sum of the weights.

    Args:
        model: On the device it is trained on.
        optimizer: Over the model's parameters.
        training_set: The site's exams.
        training: Batch size, length of a round, clipping.
        augmentation: Random changes of the images.
        class_weights: Loss weights of labels 0 and 1.
        generator: On the CPU; decides the order of the exams and the augmentation.
        penalty: Added to the loss, for example by `proximal_penalty`.

    Raises:
        TrainingError: If a loss, or a number of the trained model, is NaN or infinite.
    """
    device = next(model.parameters()).device
    weights = torch.tensor(class_weights, device=device)
    losses: list[Tensor] = []
    model.train()
    for indices in _batches_of_round(training, len(training_set.labels), generator):
        images = augment(
            training_set.images[indices].to(device),
            augmentation,
            spacing_mm=training_set.spacing_mm,
            generator=generator,
        )
        labels = training_set.labels[indices].to(device)
        loss = functional.cross_entropy(model(images), labels, weight=weights)  # (B, 2), (B,) -> ()
        total = loss if penalty is None else loss + penalty(model)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if training.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
    mean_loss = float(torch.stack(losses).double().mean())
    if not math.isfinite(mean_loss):
        raise TrainingError(
            f"the mean loss of {len(losses)} steps is {mean_loss}, expected a finite number; "
            "lower learning_rate, or set max_grad_norm in the study"
        )
    if not all(bool(torch.isfinite(values).all()) for values in model.state_dict().values()):
        raise TrainingError(
            f"the model is not finite after {len(losses)} steps; lower learning_rate, or set max_grad_norm in the study"
        )
    return TrainingOutcome(num_steps=len(losses), mean_loss=mean_loss)


def round_generator(*, seed: int, site: str, round: int) -> torch.Generator:
    """Source of a round's randomness at a site: a function of the study's seed, the site's name and the round."""
    key = hashlib.sha256(f"train\0{seed}\0{site}\0{round}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
