"""The network: what a study names is what is built, from the study's seed alone."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from common.errors import ProtocolError
from common.model_channels import Architecture
from common.model_state import state_digest
from common.models import build_empty_model, build_model, get_state, initial_state, set_state
from common.study import ModelSpec

SMALL = ModelSpec(width=0.125, num_groups=4)
SMALL_BATCH = ModelSpec(width=0.125, norm="batch")


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_resnet10_has_14_4_million_parameters_in_57_6_megabytes() -> None:
    model = build_model(ModelSpec(), num_sequences=3)

    num_parameters = sum(p.numel() for p in model.parameters())
    assert num_parameters == pytest.approx(14.40e6, abs=0.005e6)
    assert sum(array.nbytes for array in get_state(model).values()) == pytest.approx(57.6e6, abs=0.05e6)


@pytest.mark.parametrize(
    ("spec", "wanted", "unwanted"),
    [
        pytest.param(SMALL, nn.GroupNorm, nn.BatchNorm3d, id="group"),
        pytest.param(SMALL_BATCH, nn.BatchNorm3d, nn.GroupNorm, id="batch"),
    ],
)
def test_all_twelve_norm_layers_are_of_the_kind_the_study_names(
    spec: ModelSpec, wanted: type[nn.Module], unwanted: type[nn.Module]
) -> None:
    modules = list(build_model(spec, num_sequences=3).modules())

    assert sum(type(module) is wanted for module in modules) == 12
    assert not any(isinstance(module, unwanted) for module in modules)
    assert not any(isinstance(module, nn.Dropout) for module in modules)


def test_group_norm_sees_each_exam_alone() -> None:
    model = build_model(SMALL, num_sequences=2, generator=generator()).train()
    exams = torch.randn(3, 2, 16, 16, 16, generator=generator())

    together, alone = model(exams), torch.cat([model(exam[None]) for exam in exams])

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_two_logits_for_each_exam() -> None:
    model = build_model(SMALL, num_sequences=1)

    assert model(torch.zeros(2, 1, 16, 20, 16)).shape == (2, 2)


def test_stem_stride_of_one_doubles_the_resolution_behind_the_stem() -> None:
    coarse, fine = (build_model(ModelSpec(width=0.125, stem_stride=s), num_sequences=1) for s in (2, 1))
    exam = torch.zeros(1, 1, 16, 16, 16)

    assert coarse.get_submodule("conv1")(exam).shape[2:] == (8, 8, 8)
    assert fine.get_submodule("conv1")(exam).shape[2:] == (16, 16, 16)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"3 groups do not divide the layers' channels \[8, 16, 32, 64\]"):
        ModelSpec(width=0.125, num_groups=3)


def test_initial_state_is_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = initial_state(SMALL, num_sequences=3, seed=5)
    torch.manual_seed(2)
    torch.rand(100)

    again = initial_state(SMALL, num_sequences=3, seed=5)
    other = initial_state(SMALL, num_sequences=3, seed=6)

    assert state_digest(again) == state_digest(one)
    assert state_digest(other) != state_digest(one)


def test_building_a_seeded_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    initial_state(SMALL, num_sequences=3, seed=5)

    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [SMALL, SMALL_BATCH], ids=["group", "batch"])
def test_state_given_to_another_model_comes_back_the_same(spec: ModelSpec) -> None:
    state = initial_state(spec, num_sequences=3, seed=5)
    model = build_model(spec, num_sequences=3)

    set_state(model, state)

    assert state_digest(get_state(model)) == state_digest(state)


def test_state_shares_no_memory_with_the_model() -> None:
    model = build_model(SMALL, num_sequences=3)
    state = get_state(model)
    before = state_digest(state)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    assert state_digest(state) == before


def test_state_of_another_network_is_refused() -> None:
    state = initial_state(SMALL_BATCH, num_sequences=3, seed=5)

    with pytest.raises(ProtocolError, match=r"'bn1\.num_batches_tracked' and 35 more beyond the study's model"):
        set_state(build_model(SMALL, num_sequences=3), state)
    with pytest.raises(ProtocolError, match=r"conv1\.weight has shape \(8, 2, 7, 7, 7\) .* expected \(8, 3, 7, 7, 7\)"):
        set_state(build_model(SMALL, num_sequences=3), initial_state(SMALL, num_sequences=2, seed=5))
    with pytest.raises(ProtocolError, match=r"type float64, expected .* float32"):
        set_state(
            build_model(SMALL, num_sequences=3),
            {name: a.astype(np.float64) for name, a in initial_state(SMALL, num_sequences=3, seed=5).items()},
        )


@pytest.mark.parametrize("name", ["resnet10", "resnet50", "densenet121", "vgg11", "mresnet"])
def test_empty_model_has_the_entries_of_the_full_one_and_takes_no_random_numbers(name: Architecture) -> None:
    spec = ModelSpec(name=name, width=0.125, num_groups=4)
    full = build_model(spec, num_sequences=3).state_dict()
    before = torch.get_rng_state()

    empty = build_empty_model(spec, num_sequences=3).state_dict()

    assert {key: values.shape for key, values in empty.items()} == {key: values.shape for key, values in full.items()}
    assert torch.equal(torch.get_rng_state(), before)
