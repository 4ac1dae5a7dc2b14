"""Normalisation layers are found by their type, and what stays at a site is exactly what its method says."""

import pytest
import torch

from common.models import build_model, local_names, norm_state_names
from common.study import ModelSpec

SMALL = {"width": 0.125, "num_groups": 4}


def test_fedbn_keeps_every_entry_of_the_twelve_layers_of_resnet10_and_nothing_else() -> None:
    spec = ModelSpec(norm="fedbn", width=0.125)
    names = local_names(spec, num_sequences=3)

    layers = {name.rpartition(".")[0] for name in names}
    others = build_model(spec, num_sequences=3).state_dict().keys() - names
    assert len(layers) == 12
    assert "layer2.0.downsample.1" in layers
    assert len(names) == 12 * 5
    assert {name.rpartition(".")[2] for name in others} == {"weight", "bias"}
    assert not any("bn" in name for name in others)
    assert "layer2.0.downsample.0.weight" in others


def test_silobn_keeps_statistics_alone() -> None:
    names = local_names(ModelSpec(norm="silobn", width=0.125), num_sequences=3)

    assert len(names) == 12 * 3
    assert {name.rpartition(".")[2] for name in names} == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_everything_is_shared_where_the_norm_is_not_local(norm: str) -> None:
    spec = ModelSpec.model_validate({"norm": norm, **SMALL})

    assert local_names(spec, num_sequences=3) == frozenset()


@pytest.mark.parametrize("norm", ["fedbn", "silobn"])
def test_names_follow_from_the_built_network(norm: str) -> None:
    spec = ModelSpec.model_validate({"norm": norm, "width": 0.125})

    assert local_names(spec, num_sequences=2) == norm_state_names(build_model(spec, num_sequences=2), spec)


def test_asking_for_the_names_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    local_names(ModelSpec(norm="fedbn", width=0.25, stem_stride=1), num_sequences=1)

    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
