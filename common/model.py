"""The networks a study can name, built by one function that checks what it built."""

import hashlib

import torch
from monai.networks.nets.resnet import resnet10
from torch import nn

from common.model_state import Array, ModelState, require_same_parameters
from common.study import ModelSpec

NORM_TYPES = (nn.BatchNorm3d, nn.GroupNorm)


def build_model(spec: ModelSpec, *, num_sequences: int, generator: torch.Generator | None = None) -> nn.Module:
    """Build the study's network: input (B, num_sequences, D, H, W), output (B, 2) logits of recurrence and necrosis.

    ResNet10 is the 3D ResNet of Hara et al. (2018, arXiv:1711.09577) with one basic block per stage, as in MONAI.
    MONAI 1.6.1 passes its `norm` argument to the stem alone, so the layers are replaced here, by module type.

    Args:
        spec: Architecture, normalisation and width.
        num_sequences: Channels of the input.
        generator: Source of the initial weights; without one they come from torch's global generator.
    """
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        model = resnet10(
            spatial_dims=3,
            n_input_channels=num_sequences,
            num_classes=2,
            conv1_t_stride=spec.stem_stride,
            widen_factor=spec.width,
        )
    if spec.norm == "group":
        _replace_batch_norm(model, spec.num_groups)
    _require_built_as_asked(model, spec)
    return model  # type: ignore[no-any-return]


def _replace_batch_norm(module: nn.Module, num_groups: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(num_groups, child.num_features))
        else:
            _replace_batch_norm(child, num_groups)


def _require_built_as_asked(model: nn.Module, spec: ModelSpec) -> None:
    wanted = nn.GroupNorm if spec.norm == "group" else nn.BatchNorm3d
    norms = [module for module in model.modules() if isinstance(module, NORM_TYPES)]
    assert len(norms) == 12, f"ResNet10 has 12 normalisation layers, found {len(norms)}"
    assert all(type(norm) is wanted for norm in norms), f"a layer is not {wanted.__name__}"


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
    require_same_parameters(state, {name: t.detach().cpu().numpy() for name, t in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()}, strict=True)
