"""Normalisation layers of a network, found and replaced by their type, and which of their numbers stay at a site."""

from torch import nn

from common.study import ModelSpec

NORM_TYPES = (nn.BatchNorm3d, nn.GroupNorm)

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def replace_batch_norm(module: nn.Module, num_groups: int) -> None:
    """Put a group norm layer (Wu and He 2018, arXiv:1803.08494) in the place of every batch norm layer."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, nn.GroupNorm(num_groups, child.num_features))
        else:
            replace_batch_norm(child, num_groups)


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The normalisation layers of a network by their names, in the order of the network."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NORM_TYPES)}


def norm_state_names(model: nn.Module, spec: ModelSpec) -> frozenset[str]:
    """Entries of a network's state that stay at their site.

    With fedbn these are all parameters and buffers of the normalisation layers (Li et al. 2021, arXiv:2102.07623),
    with silobn only their statistics (Andreux et al. 2020, arXiv:2008.07424), otherwise none. They are found by the
    type of the layers, not by their names: of ResNet10's twelve, three are called "downsample.1".
    """
    match spec.norm:
        case "fedbn":
            return frozenset(
                f"{name}.{entry}" for name, layer in norm_layers(model).items() for entry in layer.state_dict()
            )
        case "silobn":
            return frozenset(f"{name}.{entry}" for name in norm_layers(model) for entry in _STATISTICS)
        case _:
            return frozenset()
