"""SCAFFOLD at a site: its control variate is its mean gradient, and with it equal sites meet at the true optimum."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.control_variates import correction_of, next_control, no_control
from client.training import TrainingSet, build_optimizer, round_generator, train_locally, trainable_parameters
from common.errors import ProtocolError
from common.model_state import Array, state_digest
from common.models import build_model, get_state
from common.study import AugmentationSpec, ModelSpec, TrainingSpec

NO_AUGMENTATION = AugmentationSpec(
    flip_probability=0, rotation_degrees=0, scaling=0, translation_mm=0, intensity=0, noise=0
)
STEPS, RATE = 3, 0.05
PLAIN_SGD = TrainingSpec.model_validate(
    {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.1, "learning_rate": RATE, "batch_size": 4}
    | {"local_steps": STEPS}
)


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def model() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    return build_model(ModelSpec(width=0.125, num_groups=4), num_sequences=2, generator=generator)


def train(network: nn.Module, training: TrainingSpec = PLAIN_SGD, **changes: Any) -> None:
    labels = torch.arange(8) % 2
    images = torch.randn(8, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0)) + labels.view(8, 1, 1, 1, 1)
    train_locally(
        network,
        build_optimizer(network, training, learning_rate=training.learning_rate),
        TrainingSet(images, labels, (4.0, 4.0, 4.0)),
        training=training,
        augmentation=NO_AUGMENTATION,
        class_weights=(1.0, 1.0),
        generator=round_generator(seed=1, site="a", round=1),
        **changes,
    )


def test_without_control_variates_the_steps_are_those_of_plain_sgd_bit_for_bit() -> None:
    plain, corrected = model(), model()
    zeros = no_control(arrays(trainable_parameters(corrected)))

    train(plain)
    train(corrected, correction=correction_of(corrected, server=zeros, own=zeros))

    assert state_digest(get_state(corrected)) == state_digest(get_state(plain))


def test_control_variate_is_the_mean_gradient_of_the_steps_weight_decay_included() -> None:
    network = model()
    before = arrays(trainable_parameters(network))
    single = PLAIN_SGD.model_copy(update={"local_steps": 1})
    server = {name: np.full_like(array, 0.25) for name, array in before.items()}
    own = {name: np.full_like(array, -0.5) for name, array in before.items()}
    train(network, single, correction=correction_of(network, server=server, own=own))
    after = arrays(trainable_parameters(network))

    control = next_control(own, server=server, before=before, after=after, num_steps=1, learning_rate=RATE)

    plain = model()
    train(plain, single)
    for name, moved in arrays(trainable_parameters(plain)).items():
        gradient = (before[name].astype(np.float64) - moved) / RATE
        np.testing.assert_allclose(control[name], gradient, atol=1e-5)
        assert control[name].dtype == np.float32


def test_gradients_are_clipped_before_they_are_corrected() -> None:
    network = model()
    before = arrays(trainable_parameters(network))
    ones = {name: np.ones_like(array) for name, array in before.items()}
    training = PLAIN_SGD.model_copy(update={"local_steps": 1, "max_grad_norm": 1e-6, "weight_decay": 0.0})

    train(network, training, correction=correction_of(network, server=ones, own=no_control(before)))

    for name, parameter in trainable_parameters(network).items():
        np.testing.assert_allclose(parameter.numpy(), before[name] - RATE, atol=1e-6)


def test_control_variates_of_another_network_are_refused() -> None:
    own = no_control(arrays(trainable_parameters(model())))

    with pytest.raises(ProtocolError, match=r"lacks 'bn1\.bias'"):
        correction_of(model(), server={name: own[name] for name in own if name != "bn1.bias"}, own=own)


class Point(nn.Module):
    """A model of one number w whose loss at a site is curvature/2 (w − optimum)²."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


CURVATURES, OPTIMA = (1.0, 3.0), (0.0, 4.0)
TRUE_OPTIMUM = 3.0  # of the sum: (1 · 0 + 3 · 4) / (1 + 3)


def local_steps(start: Array, site: int, correction: dict[str, torch.Tensor] | None) -> Array:
    point = Point()
    point.w.data = torch.from_numpy(start.copy())
    optimizer = torch.optim.SGD(point.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        (0.5 * CURVATURES[site] * (point.w - OPTIMA[site]).square().sum()).backward()  # type: ignore[no-untyped-call]
        if correction is not None:
            assert point.w.grad is not None
            point.w.grad.add_(correction["w"])
        optimizer.step()
    return point.w.detach().numpy()


def test_two_unlike_sites_meet_at_the_optimum_of_both_where_fedavg_does_not() -> None:
    averaged = np.zeros(1, dtype=np.float32)
    for _ in range(60):
        averaged = np.mean([local_steps(averaged, site, None) for site in (0, 1)], axis=0)

    x, server = np.zeros(1, dtype=np.float32), {"w": np.zeros(1, dtype=np.float32)}
    owns = [{"w": np.zeros(1, dtype=np.float32)} for _ in OPTIMA]
    for _ in range(60):
        states, changes = [], []
        for site in (0, 1):
            y = local_steps(x, site, correction_of(Point(), server=server, own=owns[site]))
            new = next_control(
                owns[site], server=server, before={"w": x}, after={"w": y}, num_steps=10, learning_rate=0.1
            )
            changes.append(new["w"] - owns[site]["w"])
            owns[site] = new
            states.append(y)
        x, server = np.mean(states, axis=0), {"w": server["w"] + np.mean(changes, axis=0)}

    assert abs(float(averaged[0]) - TRUE_OPTIMUM) > 0.5
    assert float(x[0]) == pytest.approx(TRUE_OPTIMUM, abs=1e-3)
