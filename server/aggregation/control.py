"""The server's part of SCAFFOLD: the control variate that says where all sites together are heading."""

from collections.abc import Sequence

import numpy as np

from common.model_state import Array, ModelState, blocks


def next_control(control: ModelState, updates: Sequence[ModelState], *, num_sites: int) -> dict[str, Array]:
    """Return c + |S|/N times the mean change of the sites' variates (Karimireddy et al. 2020, arXiv:1910.06378, eq. 5).

    Sites that gave no reply are among the N and keep theirs. Every site counts the same, whatever its number of
    patients, as in the paper. Sums are in float64 in the order given.

    Args:
        control: c, the server's variate; floating-point arrays by parameter.
        updates: Change of each answering site's variate, of the same names and shapes.
        num_sites: N, the sites that are expected to train in this run.
    """
    result: dict[str, Array] = {}
    for name, before in control.items():
        result[name] = np.empty(before.shape, dtype=before.dtype)
        for block in blocks(before.size):
            sums = np.zeros(block.stop - block.start, dtype=np.float64)
            for update in updates:
                sums += update[name].reshape(-1)[block]
            result[name].reshape(-1)[block] = before.reshape(-1)[block] + sums / num_sites
    return result
