"""What fine-tuning changes of each network: the last stage and the head, and something of everything it names."""

from typing import get_args

import pytest
import torch

from client.fine_tuning import _LAST_BLOCKS, last_block_names
from common.models import build_model
from common.models.norm import norm_layers
from common.study import ModelSpec

ARCHITECTURES = get_args(ModelSpec.model_fields["name"].annotation)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_stage_and_the_head_are_fine_tuned_and_the_first_layer_is_not(name: str) -> None:
    spec = ModelSpec.model_validate({"name": name, "width": 0.25, "norm": "batch"})
    with torch.device("meta"):
        model = build_model(spec, num_sequences=2)

    names = last_block_names(model, spec)

    assert all(any(entry.startswith(begin) for entry in names) for begin in _LAST_BLOCKS[name])
    state = list(model.state_dict())
    assert set(state[-2:]) <= names  # the head
    assert state[0] not in names
    parameters = {entry: parameter.numel() for entry, parameter in model.named_parameters()}
    assert 0.1 < sum(parameters[entry] for entry in names & parameters.keys()) / sum(parameters.values()) < 0.9
    whole = [layer for layer in norm_layers(model) if f"{layer}.weight" in names]
    assert all({f"{layer}.bias", f"{layer}.running_mean", f"{layer}.running_var"} <= names for layer in whole)
