"""One function that builds every network a study can name, and the states that go into it and come out of it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.model_channels import norm_channels
from common.model_state import Array, ModelState, require_same_parameters
from common.models.densenet import build_densenet
from common.models.mresnet import MResNet
from common.models.norm import norm_layers, norm_state_names, replace_batch_norm
from common.models.resnet import build_resnet
from common.models.vgg import VGG
from common.study import ModelSpec


def build_model(spec: ModelSpec, *, num_sequences: int, generator: torch.Generator | None = None) -> nn.Module:
    """Build the study's network: input (B, num_sequences, D, H, W), output (B, 2) logits of recurrence and necrosis.

    Every network is built with batch norm first: MONAI 1.6.1 passes the `norm` argument of its ResNets to the stem
    alone, so the layers are replaced here, by module type.

    Args:
        spec: Architecture, normalisation and width.
        num_sequences: Channels of the input.
        generator: Source of the initial weights; without one they come from torch's global generator.
    """
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = _with_batch_norm(spec, num_sequences)
    if spec.norm == "group":
        replace_batch_norm(model, spec.num_groups)
    _require_built_as_asked(model, spec)
    return model


def build_empty_model(spec: ModelSpec, *, num_sequences: int) -> nn.Module:
    """The network of `build_model` for one who gives it a state, or asks for its names: what it holds means nothing.

    On torch's "meta" device names cost no memory either, but its first random number imports torch's compiler.
    """
    with _NoRandomValues():
        return build_model(spec, num_sequences=num_sequences)


class _NoRandomValues(TorchFunctionMode):
    """Within the block, tensors that would be filled with random numbers are left as they are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass on all but these."""
        named = kwargs or {}
        if func in _RANDOM_FILLS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


_RANDOM_FILLS = frozenset(
    {
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        Tensor.normal_,
        Tensor.uniform_,
    }
)


def _with_batch_norm(spec: ModelSpec, num_sequences: int) -> nn.Module:
    match spec.name:
        case "densenet121":
            return build_densenet(num_sequences=num_sequences, width=spec.width, stem_stride=spec.stem_stride)
        case "vgg11" | "vgg16":
            return VGG(spec.name, num_sequences=num_sequences, width=spec.width)
        case "mresnet":
            return MResNet(num_sequences=num_sequences, width=spec.width, stem_stride=spec.stem_stride)
        case "resnet10" | "resnet18" | "resnet50":
            return build_resnet(
                spec.name,
                num_sequences=num_sequences,
                width=spec.width,
                stem_stride=spec.stem_stride,
                dilated=spec.dilated,
            )


def _require_built_as_asked(model: nn.Module, spec: ModelSpec) -> None:
    wanted = nn.GroupNorm if spec.norm == "group" else nn.BatchNorm3d
    layers, channels = list(norm_layers(model).values()), norm_channels(spec.name, spec.width)
    assert len(layers) == len(channels), f"{spec.name}: {len(layers)} normalisation layers, not {len(channels)}"
    assert all(type(layer) is wanted for layer in layers), f"{spec.name}: a layer is not {wanted.__name__}"


@lru_cache(maxsize=32)
def local_names(spec: ModelSpec, *, num_sequences: int) -> frozenset[str]:
    """Entries of the state of the study's network that stay at their site, which `norm_state_names` explains."""
    return norm_state_names(build_empty_model(spec, num_sequences=num_sequences), spec)


def initial_state(spec: ModelSpec, *, num_sequences: int, seed: int) -> dict[str, Array]:
    """The model state a study starts from, a function of its arguments alone."""
    key = hashlib.sha256(f"initial weights\0{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return get_state(build_model(spec, num_sequences=num_sequences, generator=generator))


def get_state(model: nn.Module) -> dict[str, Array]:
    """Parameters and buffers as arrays in main memory that share nothing with the model."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def set_state(model: nn.Module, state: ModelState) -> None:
    """Give the model the values of a state.

    Raises:
        ProtocolError: If names, shapes or types are not the model's own.
    """
    values = model.state_dict()  # shares its memory with the model
    require_same_parameters(state, {name: tensor.cpu().numpy() for name, tensor in values.items()})
    for name, tensor in values.items():
        if tensor.device.type == "cpu":
            np.copyto(tensor.numpy(), state[name])
        else:
            tensor.copy_(torch.from_numpy(state[name].copy()))
