"""An optimiser's state as named arrays and back, for studies whose sites go on with it in the next round."""

import torch

from client.site_memory import Part, SiteMemory
from common.model_state import Array


def restore_optimizer(optimizer: torch.optim.Optimizer, memory: SiteMemory, part: Part, *, round: int) -> bool:
    """Give a fresh optimiser the state after the round before.

    Returns:
        Whether there was one; without it, as in the first round or after a round was missed, nothing changes.
    """
    values = memory.read(part, round=round - 1)
    if values is None:
        return False
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in values.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = torch.from_numpy(array.copy())
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return True


def keep_optimizer(optimizer: torch.optim.Optimizer, memory: SiteMemory, part: Part, *, round: int) -> None:
    """Write an optimiser's state as it is after a round."""
    memory.keep(part, _values_of(optimizer), round=round)


def _values_of(optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    return {
        f"{index}.{name}": value.detach().cpu().numpy()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
