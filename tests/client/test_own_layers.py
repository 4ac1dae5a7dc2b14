"""What stays at a site: found by type, filled in again, and estimated from images where a site has nothing yet."""

import numpy as np
import pytest
import torch
from torch import nn

from client.own_layers import estimate_statistics, names_that_stay, whole_model
from common.errors import ProtocolError
from common.model_state import state_digest
from common.models import build_model, get_state, initial_state
from common.models.norm import norm_layers
from common.study import ModelSpec, Study, parse_study
from tests.tiny_hospitals import study_text

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def study(norm: str, **changes: object) -> Study:
    return parse_study(study_text(model={"width": 0.125, "norm": norm}, **changes), origin="study")


def initial(of: Study) -> dict[str, np.ndarray]:
    return initial_state(of.model, num_sequences=3, seed=of.seed)


def network(seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build_model(ModelSpec(width=0.125, norm="batch"), num_sequences=3, generator=generator)


@pytest.mark.parametrize(
    ("norm", "num_names", "num_left"), [("group", 0, 41), ("batch", 0, 77), ("fedbn", 60, 17), ("silobn", 36, 41)]
)
def test_of_twelve_layers_fedbn_keeps_all_and_silobn_the_statistics(norm: str, num_names: int, num_left: int) -> None:
    stay = names_that_stay(study(norm))

    left = initial(study(norm)).keys() - stay
    assert (len(stay), len(left)) == (num_names, num_left)
    assert len({name.rpartition(".")[0] for name in stay}) == (12 if stay else 0)
    if norm in ("fedbn", "silobn"):
        assert not any(name.endswith(STATISTICS) for name in left)


@pytest.mark.parametrize("norm", ["group", "fedbn"])
def test_a_site_that_trains_by_itself_keeps_everything(norm: str) -> None:
    agreed = study(norm, aggregation={"method": "local"})

    assert names_that_stay(agreed) == initial(agreed).keys()


def test_model_is_what_arrived_and_what_stayed() -> None:
    agreed = study("fedbn")
    state = get_state(network(seed=5))
    stay = names_that_stay(agreed)
    own = {name: state[name] for name in stay}
    own["bn1.running_mean"] = np.arange(8, dtype=np.float32)

    model = whole_model(agreed, {name: state[name] for name in state if name not in stay}, own)

    assert state_digest(get_state(model)) == state_digest({**state, **own})


def test_site_without_own_layers_takes_their_initial_values() -> None:
    agreed = study("silobn")
    stay = names_that_stay(agreed)
    arrived = {name: array + 1 for name, array in initial(agreed).items() if name not in stay}

    state = get_state(whole_model(agreed, arrived, None))

    np.testing.assert_array_equal(state["bn1.weight"], np.full(8, 2.0))  # silobn's scale arrives
    np.testing.assert_array_equal(state["bn1.running_mean"], np.zeros(8))
    np.testing.assert_array_equal(state["bn1.running_var"], np.ones(8))


def test_state_that_holds_layers_which_stay_at_their_site_is_refused() -> None:
    agreed = study("fedbn")

    with pytest.raises(ProtocolError, match=r"has 'bn1.bias' and 59 more beyond the study's model"):
        whole_model(agreed, initial(agreed), None)


# --- statistics of a hospital the model is new to ---------------------------------------------------------------------


def images(num_exams: int) -> torch.Tensor:
    return 3 + 2 * torch.randn(num_exams, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def estimated(num_exams: int, *, batch_size: int) -> nn.Module:
    model = network()
    generator = torch.Generator().manual_seed(0)
    estimate_statistics(model, images(num_exams), batch_size=batch_size, generator=generator)
    return model


def test_estimated_statistics_are_the_mean_and_variance_of_the_images() -> None:
    model = estimated(6, batch_size=6)

    state = get_state(model)
    with torch.no_grad():
        first = model.conv1(images(6))  # type: ignore[operator]
    np.testing.assert_allclose(state["bn1.running_mean"], first.mean(dim=(0, 2, 3, 4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["bn1.running_var"], first.var(dim=(0, 2, 3, 4)), rtol=1e-4)


def test_statistics_are_the_plain_mean_over_the_batches_of_one_pass() -> None:
    model = estimated(6, batch_size=3)

    state = get_state(model)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts = [model.conv1(images(6)[part]) for part in torch.tensor_split(order, 2)]  # type: ignore[operator]
    variances = [part.var(dim=(0, 2, 3, 4)) for part in parts]
    np.testing.assert_allclose(state["bn1.running_var"], torch.stack(variances).mean(dim=0), rtol=1e-4)
    assert state["bn1.num_batches_tracked"] == 2


def test_estimating_changes_the_statistics_alone_whatever_they_were() -> None:
    spoilt = network()
    for layer in norm_layers(spoilt).values():
        layer.get_buffer("running_mean").add_(100)
    before = get_state(spoilt)

    estimate_statistics(spoilt, images(6), batch_size=4, generator=torch.Generator().manual_seed(0))

    after, fresh = get_state(spoilt), get_state(estimated(6, batch_size=4))
    assert state_digest(after) == state_digest(fresh)
    for name in before.keys() - {name for name in before if name.endswith(STATISTICS)}:
        np.testing.assert_array_equal(after[name], before[name])
    layers = list(norm_layers(spoilt).values())
    assert {layer.momentum for layer in layers} == {0.1}
    assert not any(layer.training for layer in layers)


def test_estimated_model_is_the_same_each_time() -> None:
    assert state_digest(get_state(estimated(7, batch_size=2))) == state_digest(get_state(estimated(7, batch_size=2)))
