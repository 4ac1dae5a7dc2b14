"""SCAFFOLD at a site: what corrects every step, and how the site's control variate changes (option II).

Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1. Of the parameters alone; what stays at a site is not corrected.
"""

import numpy as np
import torch
from torch import Tensor, nn

from common.model_state import Array, ModelState, require_same_parameters


def correction_of(model: nn.Module, *, server: ModelState, own: ModelState) -> dict[str, Tensor]:
    """What is added to the gradient of every step: c − c_i, on the model's device.

    Args:
        model: The model that is trained.
        server: The server's control variate c.
        own: The site's control variate c_i.

    Raises:
        ProtocolError: If the two do not have the same names, shapes and types.
    """
    require_same_parameters(server, own)
    device = next(model.parameters()).device
    return {name: torch.from_numpy(server[name] - own[name]).to(device) for name in own}


def no_control(parameters: ModelState) -> dict[str, Array]:
    """The control variate that a site begins with: zeros."""
    return {name: np.zeros_like(array) for name, array in parameters.items()}


def next_control(
    own: ModelState,
    *,
    server: ModelState,
    before: ModelState,
    after: ModelState,
    num_steps: int,
    learning_rate: float,
) -> dict[str, Array]:
    """The site's control variate after a round: c_i − c + (x − y) / (K lr), the mean gradient of its K steps.

    Weight decay is part of these gradients, as it is of the steps.

    Args:
        own: c_i.
        server: c.
        before: x, the parameters that arrived.
        after: y, those after the round.
        num_steps: K.
        learning_rate: lr.
    """
    scale = 1 / (num_steps * learning_rate)
    return {
        name: (
            own[name].astype(np.float64) - server[name] + scale * (before[name].astype(np.float64) - after[name])
        ).astype(own[name].dtype)
        for name in own
    }
