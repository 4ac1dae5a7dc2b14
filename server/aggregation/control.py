"""The server's part of SCAFFOLD: the control variate that says where all sites together are heading."""

from collections.abc import Sequence

import numpy as np

from common.model_state import Array, ModelState, blocks


def mean_control(controls: Sequence[ModelState], *, like: ModelState, num_sites: int) -> dict[str, Array]:
    """Return c, the mean of the sites' variates (Karimireddy et al. 2020, arXiv:1910.06378, section 4).

    It is what equation 5 comes to where every change of a variate arrives. It is formed of the variates and not of
    their changes, so that a reply that was lost leaves nothing behind once a later one of that site has come.

    Every site counts the same, whatever its number of patients, as in the paper. Sums are in float64 in the order
    given. Of variates that lie on disk a part at a time is in memory.

    Args:
        controls: c_i as each site last gave it in an accepted reply, of the names and shapes of `like`. A site that
            has given none is among the N with the 0 that it begins with.
        like: c as it was; floating-point arrays by parameter.
        num_sites: N, the sites that are expected to train in this run.
    """
    result: dict[str, Array] = {}
    for name, before in like.items():
        result[name] = np.empty(before.shape, dtype=before.dtype)
        for block in blocks(before.size):
            sums = np.zeros(block.stop - block.start, dtype=np.float64)
            for control in controls:
                sums += control[name].reshape(-1)[block]
            result[name].reshape(-1)[block] = sums / num_sites
    return result
