"""Local training: the steps a study asks for, from the study's seed, with FedProx's pull where it has one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from client.sampling import batches
from client.training import (
    TrainingOutcome,
    TrainingSet,
    build_optimizer,
    proximal_penalty,
    round_generator,
    train_locally,
)
from common.errors import TrainingError
from common.model_state import state_digest, update_norm
from common.models import build_model, get_state
from common.study import AugmentationSpec, ModelSpec, TrainingSpec

GROUP = ModelSpec(width=0.125, num_groups=4)
BATCH = ModelSpec(width=0.125, norm="batch")
NO_AUGMENTATION = AugmentationSpec(
    flip_probability=0, rotation_degrees=0, scaling=0, translation_mm=0, intensity=0, noise=0
)
PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.05}


def spec(**settings: Any) -> TrainingSpec:
    length = {} if "local_steps" in settings else {"local_epochs": 1}
    return TrainingSpec.model_validate({"learning_rate": 1e-2, "batch_size": 4} | length | settings)


def training_set(num_exams: int, *, seed: int = 0) -> TrainingSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_exams, 2, 16, 16, 16, generator=generator)
    labels = torch.arange(num_exams) % 3 == 0
    images[labels] += 0.5
    return TrainingSet(images, labels.long(), (4.0, 4.0, 4.0))


def model(spec: ModelSpec = GROUP, *, seed: int = 1) -> nn.Module:
    return build_model(spec, num_sequences=2, generator=torch.Generator().manual_seed(seed))


def train(network: nn.Module, patients: TrainingSet, training: TrainingSpec, **changes: Any) -> TrainingOutcome:
    settings: dict[str, Any] = {
        "training": training,
        "augmentation": NO_AUGMENTATION,
        "class_weights": (1.0, 1.0),
        "generator": round_generator(seed=1, site="a", round=1),
    }
    optimizer = build_optimizer(network, training, learning_rate=training.learning_rate)
    return train_locally(network, optimizer, patients, **(settings | changes))


# --- the length of a round --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "num_steps"),
    [
        pytest.param({"local_epochs": 1}, 3, id="one pass over nine exams by four"),
        pytest.param({"local_epochs": 4}, 12, id="four passes"),
        pytest.param({"local_steps": 1}, 1, id="one step"),
        pytest.param({"local_steps": 3}, 3, id="as many steps as a pass has"),
        pytest.param({"local_steps": 7}, 7, id="steps beyond two passes"),
        pytest.param({"local_epochs": 2, "batch_size": 256}, 2, id="full batch"),
    ],
)
def test_round_has_as_many_steps_as_the_study_says(settings: dict[str, int], num_steps: int) -> None:
    assert train(model(), training_set(9), spec(**settings)).num_steps == num_steps


def test_equal_numbers_of_steps_are_equal_training_however_they_are_asked_for() -> None:
    by_steps, by_epochs = model(), model()

    train(by_steps, training_set(9), spec(local_steps=6))
    train(by_epochs, training_set(9), spec(local_epochs=2))

    assert state_digest(get_state(by_steps)) == state_digest(get_state(by_epochs))


@pytest.mark.parametrize(("num_exams", "sizes"), [(8, [4, 4]), (9, [3, 3, 3]), (5, [3, 2]), (2, [2]), (1, [1])])
def test_every_exam_is_seen_once_in_a_pass_and_none_is_left_over_alone(num_exams: int, sizes: list[int]) -> None:
    parts = list(batches(num_exams, batch_size=4, generator=torch.Generator().manual_seed(0)))

    assert [len(part) for part in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(num_exams))


# --- the same bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [GROUP, BATCH], ids=["group", "batch"])
def test_same_seed_gives_the_same_bytes(network: ModelSpec) -> None:
    digests: set[str] = set()
    for _ in range(2):
        torch.manual_seed(len(digests))
        trained = model(network)
        train(trained, training_set(9), spec(), augmentation=AugmentationSpec())
        digests.add(state_digest(get_state(trained)))

    assert len(digests) == 1


def test_every_site_round_and_seed_has_randomness_of_its_own() -> None:
    keys = [(seed, site, round) for seed in (1, 2) for site in ("a", "b", "1") for round in (1, 2, 11)]

    draws = {torch.rand(4, generator=round_generator(seed=s, site=n, round=r)).numpy().tobytes() for s, n, r in keys}
    again = {torch.rand(4, generator=round_generator(seed=s, site=n, round=r)).numpy().tobytes() for s, n, r in keys}

    assert len(draws) == len(keys)
    assert again == draws


def test_training_is_what_a_plain_loop_of_torch_does() -> None:
    network, plain, patients = model(), model(), training_set(9)
    training = spec(local_epochs=2, momentum=0.9, optimizer="sgd", weight_decay=0.01)

    outcome = train(network, patients, training, class_weights=(0.75, 1.5))

    generator = round_generator(seed=1, site="a", round=1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.01)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.75, 1.5]))
    losses = []
    for _ in range(2):
        for part in torch.tensor_split(torch.randperm(9, generator=generator), 3):
            optimizer.zero_grad()
            loss = criterion(plain(patients.images[part]), patients.labels[part])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert state_digest(get_state(network)) == state_digest(get_state(plain))
    assert outcome.mean_loss == pytest.approx(np.mean(losses), rel=1e-12)


# --- FedProx ----------------------------------------------------------------------------------------------------------


def reference_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def pull(network: nn.Module, reference: Mapping[str, torch.Tensor], *, mu: float) -> dict[str, torch.Tensor]:
    network.zero_grad()
    proximal_penalty(mu, reference)(network).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def moved(network: nn.Module, distance: float) -> nn.Module:
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.add_(distance * (1 + number % 3))
    return network


def test_pull_of_fedprox_is_mu_times_the_distance() -> None:
    reference = reference_of(model())
    network = moved(model(), 0.25)

    gradients = pull(network, reference, mu=0.5)

    assert gradients.keys() == reference.keys()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(gradients[name], 0.5 * (parameter.detach() - reference[name]))


def test_twice_the_distance_is_twice_the_pull_and_none_is_none() -> None:
    zeros = {name: torch.zeros_like(p) for name, p in model().named_parameters()}
    near, far, at_rest = model(), model(), model()
    with torch.no_grad():
        for parameter in far.parameters():
            parameter.mul_(2)

    near_pull, far_pull = pull(near, zeros, mu=0.1), pull(far, zeros, mu=0.1)
    no_pull = pull(at_rest, reference_of(at_rest), mu=0.1)

    for name, gradient in near_pull.items():
        torch.testing.assert_close(far_pull[name], 2 * gradient, rtol=0, atol=0)
        assert not no_pull[name].any()


def test_penalty_is_half_mu_times_the_squared_distance() -> None:
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[3.0, 4.0]]))

    penalty = proximal_penalty(0.1, {"weight": torch.zeros(1, 2)})(network)

    assert penalty.item() == pytest.approx(0.5 * 0.1 * 25)


def test_buffers_of_batch_norm_are_not_pulled() -> None:
    network = model(BATCH)
    reference = reference_of(network)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm3d) and norm.running_mean is not None:
            norm.running_mean += 100.0

    assert proximal_penalty(1.0, reference)(network).item() == 0.0


def test_pull_keeps_a_site_near_the_global_model_and_out_of_the_loss_it_reports() -> None:
    start, free, held = model(), model(), model()
    training = spec(local_epochs=4, **PLAIN_SGD)
    one_step = spec(local_steps=1, **PLAIN_SGD)

    train(free, training_set(8), training)
    train(held, training_set(8), training, penalty=proximal_penalty(10.0, reference_of(start)))
    away = moved(model(), 0.01)
    without = train(moved(model(), 0.01), training_set(8), one_step)
    reported = train(away, training_set(8), one_step, penalty=proximal_penalty(10.0, reference_of(start)))

    assert update_norm(get_state(held), get_state(start)) < 0.7 * update_norm(get_state(free), get_state(start))
    assert reported.mean_loss == without.mean_loss


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_variances_of_batch_norm_are_never_negative() -> None:
    network = model(BATCH)

    train(network, training_set(9), spec(local_epochs=3, learning_rate=0.1))

    variances = [array for name, array in get_state(network).items() if name.endswith("running_var")]
    assert len(variances) == 12
    assert min(array.min() for array in variances) > 0


def test_gradients_are_clipped_to_the_norm_the_study_allows() -> None:
    start, clipped = model(), model()
    training = spec(local_steps=1, max_grad_norm=1e-3, **PLAIN_SGD)

    train(clipped, training_set(8), training)

    # One step of plain SGD moves by learning rate times gradient.
    assert update_norm(get_state(clipped), get_state(start)) == pytest.approx(0.05 * 1e-3, rel=1e-3)


def test_loss_of_a_batch_is_the_mean_by_class_weight() -> None:
    network, patients = model(), training_set(4)
    logits = network(patients.images)

    outcome = train(network, patients, spec(local_steps=1), class_weights=(0.5, 2.0))

    each = functional.cross_entropy(logits, patients.labels, reduction="none")
    weights = torch.tensor([0.5, 2.0])[patients.labels]
    assert outcome.mean_loss == pytest.approx(((weights * each).sum() / weights.sum()).item(), rel=1e-5)


def test_loss_that_is_not_finite_ends_the_round_with_advice() -> None:
    patients = training_set(8)
    patients.images[:][3] = float("nan")

    with pytest.raises(TrainingError, match=r"mean loss of 2 steps is nan.*lower learning_rate"):
        train(model(), patients, spec())


def test_model_that_is_not_finite_after_the_last_step_is_not_handed_on() -> None:
    network = model()

    with pytest.raises(TrainingError, match="the model is not finite after 1 steps; lower learning_rate"):
        train(network, training_set(8), spec(local_steps=1), penalty=lambda m: next(m.parameters()).sum() * torch.inf)
