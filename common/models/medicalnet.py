"""Weights of MedicalNet (Chen et al. 2019, arXiv:1904.00625) for the ResNets, from its files."""

import hashlib
import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError, list_of_faults
from common.model_state import Array, ModelState, non_finite_entry

_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
_HEAD = ("fc.weight", "fc.bias")
_FIRST = "conv1.weight"


@dataclass(frozen=True)
class WeightsReport:
    """What became of a file of weights.

    Attributes:
        sha256: Of the file, in hexadecimal.
        loaded: Entries of the network taken from the file.
        zeroed: Biases of shortcuts, which the file's network has none of; they begin at 0, so that both compute alike.
        missing: Other entries that the file lacks; they keep their initial values.
        unexpected: Entries of the file that the network has no place for.
    """

    sha256: str
    loaded: tuple[str, ...]
    zeroed: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def read_weights(file: BinaryIO, *, sha256: str, origin: str) -> dict[str, Array]:
    """The arrays of a file such as `resnet_10_23dataset.pth`, by their names in the network.

    Args:
        file: Open at its beginning. Nothing in it is run, and it is not unpacked unless its digest is right.
        sha256: The digest that the study names.
        origin: What the reader knows the file as; begins every message.

    Raises:
        ConfigError: If it is another file than the study names, or none of weights.
    """
    found = hashlib.sha256(file.read()).hexdigest()
    if found != sha256:
        raise ConfigError(
            f"{origin}: SHA-256 is {found}, the study names {sha256} (model.initial_weights); "
            "give the file the sites agreed to, or change the study"
        )
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"{origin}: not readable as weights alone ({type(error).__name__}), expected a file of MedicalNet such as "
            "resnet_10_23dataset.pth; download it again"
        ) from None
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ConfigError(
            f"{origin}: holds no weights by name, expected a file of MedicalNet with a state_dict; name another file"
        )
    return {str(name).removeprefix("module."): _as_stored(weight) for name, weight in weights.items()}


def _as_stored(weight: Tensor) -> Array:
    array: Array = (weight.float() if weight.is_floating_point() else weight).numpy().copy()
    return array


def with_weights(
    state: ModelState, weights: Mapping[str, Array], *, places_of_norm: Collection[str], sha256: str, origin: str
) -> tuple[dict[str, Array], WeightsReport]:
    """A state with what a file of MedicalNet gives.

    The file's first convolution is of one channel. For C sequences it is repeated and divided by C, which is the same
    network where all sequences are the same image. Of its batch norm layers, group norm takes weight and bias; its
    statistics, and whatever the study leaves with the sites, have no place in the state and are unexpected.

    Args:
        state: The initial state, without what stays at the sites.
        weights: As `read_weights` gives them.
        places_of_norm: Entries of the same network's batch norm layers, whether the state holds them or not.
        sha256: Of the file.
        origin: What the reader knows the file as.

    Raises:
        ConfigError: If the file is of another network, with all that differs.
    """
    loaded: dict[str, Array] = {}
    zeroed, missing, faults = [], [], []
    for name, initial in state.items():
        weight = weights.get(name)
        if weight is None:
            if name.endswith(".downsample.0.bias"):
                zeroed.append(name)
            elif name in _HEAD or name.endswith(_STATISTICS):
                missing.append(name)
            else:
                faults.append(f"{name} is missing")
            continue
        if name == _FIRST and weight.ndim == initial.ndim and weight.shape[1] == 1:
            weight = np.repeat(weight, initial.shape[1], axis=1) / np.float32(initial.shape[1])
        if weight.shape != initial.shape or weight.dtype != initial.dtype:
            faults.append(
                f"{name} has shape {weight.shape} and type {weight.dtype}, "
                f"the study's network {initial.shape} and {initial.dtype}"
            )
            continue
        loaded[name] = weight
    unexpected = sorted(weights.keys() - state.keys())
    faults += [f"{name} is beyond it" for name in unexpected if name not in places_of_norm]
    if (bad := non_finite_entry(loaded)) is not None:
        faults.append(f"{bad} holds numbers that are not finite")
    if faults:
        shown = faults[:_MAX_FAULTS] + ([f"and {len(faults) - _MAX_FAULTS} more"] if len(faults) > _MAX_FAULTS else [])
        raise ConfigError(list_of_faults(f"{origin}: not of the network that the study names (model.name)", shown))
    zeros = {name: np.zeros_like(state[name]) for name in zeroed}
    kept = {name: array for name, array in state.items() if name in missing}
    report = WeightsReport(sha256, tuple(sorted(loaded)), tuple(zeroed), tuple(missing), tuple(unexpected))
    parts = loaded | zeros | kept
    return {name: parts[name] for name in state}, report


_MAX_FAULTS = 8
