"""A site's optimiser state from one round to the next, on disk, for studies that ask for it."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from client.private_files import make_private_folder, write_atomically


class OptimizerMemory:
    """Keeps the state after each of the last two rounds of a run, so that a round that is run again begins alike.

    Args:
        cache: The site's cache folder.
        run: Name of the run.
    """

    def __init__(self, cache: Path, run: str) -> None:
        self._folder = cache / "optimizer" / run

    def restore(self, optimizer: torch.optim.Optimizer, *, round: int) -> bool:
        """Give a fresh optimiser the state after the round before.

        Returns:
            Whether there was one; without it, as in the first round or after a round was missed, nothing changes.
        """
        path = self._path(round - 1)
        if not path.is_file():
            return False
        try:
            tensors = load_safetensors(path.read_bytes())
        except SafetensorError:
            return False
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return True

    def keep(self, optimizer: torch.optim.Optimizer, *, round: int) -> None:
        """Write the state after a round and drop all but this one and the one before.

        Later ones are of an earlier run of the same name.
        """
        tensors = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        make_private_folder(self._folder)
        write_atomically(self._path(round), save_safetensors(tensors))
        for path in self._folder.glob("round-*.safetensors"):
            if path not in (self._path(round - 1), self._path(round)):
                path.unlink()

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round:05d}.safetensors"
