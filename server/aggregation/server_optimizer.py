"""FedAvgM, FedAdam and FedYogi: the mean update is a gradient on which the server takes a step of its own."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.model_state import Array, ModelState
from common.study import AggregationSpec
from server.aggregation.mean import as_type, mean_of_block, parts_of, total_weight

Numbers = NDArray[np.float64]
_NUMBERS_AT_A_TIME = 2**17
"""A step holds about a dozen of such parts in float64."""


@dataclass(frozen=True)
class Step:
    """A part of the model after the server's step, and what the server remembers of it; each of shape (N,)."""

    values: Numbers
    momentum: Numbers
    square: Numbers | None


def server_step(
    spec: AggregationSpec,
    states: Sequence[tuple[ModelState, float]],
    *,
    reference: ModelState,
    memory: Mapping[str, ModelState],
    trained: Set[str],
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """The next global state and the memory after it.

    The step concerns the trained parameters. Buffers are the sites' weighted mean: a step beyond the mean could make a
    variance negative.

    Args:
        spec: The method and its settings.
        states: States with the names and shapes of the reference, and their weights.
        reference: The global state that the sites were sent.
        memory: "momentum" and, for fedadam and fedyogi, "square" after the round before, by the parameters' names.
        trained: Names of the trained parameters.
    """
    total = total_weight(states)
    after: dict[str, Array] = {}
    remembered: dict[str, dict[str, Array]] = {part: {} for part in memory}
    for name in reference:
        shape, dtype = reference[name].shape, reference[name].dtype
        after[name] = np.empty(shape, dtype=dtype)
        for part, old in memory.items() if name in trained else ():
            remembered[part][name] = np.empty(shape, dtype=old[name].dtype)
        for block in parts_of(after[name].size, _NUMBERS_AT_A_TIME):
            mean = mean_of_block(states, name, block, total=total)
            if name in trained:
                # Asked for anew for every block, so that of a file no more than the block is in memory.
                old_parts = {part: _numbers(old[name], block) for part, old in memory.items()}
                step = step_on_block(
                    spec, mean, _numbers(reference[name], block), old_parts["momentum"], old_parts.get("square")
                )
                mean = step.values
                remembered["momentum"][name].reshape(-1)[block] = step.momentum
                if step.square is not None:
                    remembered["square"][name].reshape(-1)[block] = step.square
            after[name].reshape(-1)[block] = as_type(mean, dtype)
    return after, remembered


def step_on_block(
    spec: AggregationSpec, mean: Numbers, before: Numbers, momentum: Numbers, square: Numbers | None
) -> Step:
    """One step in float64.

    FedAvgM is Hsu et al. (2019, arXiv:1909.06335, section 4.3); FedAdam and FedYogi are algorithm 2 of Reddi et al.
    (2021, arXiv:2003.00295), which corrects no bias. The mean weighs sites as FedAvg does.

    Args:
        spec: The method and its settings.
        mean: Mean of the sites' values.
        before: The values they were sent.
        momentum: The server's momentum after the round before.
        square: Its mean of squared updates, at least 0; None for fedavgm.
    """
    update = mean - before
    if spec.method == "fedavgm":
        momentum = spec.momentum * momentum + update
        # before + rate * momentum, written so that rate 1 without momentum gives the very bytes of the mean.
        return Step(mean + (spec.learning_rate * momentum - update), momentum, None)
    assert square is not None, f"{spec.method} remembers squares"
    momentum = spec.momentum * momentum + (1 - spec.momentum) * update
    squared = update * update
    if spec.method == "fedadam":
        square = spec.second_momentum * square + (1 - spec.second_momentum) * squared
    else:
        square = square - (1 - spec.second_momentum) * squared * np.sign(square - squared)
    return Step(before + spec.learning_rate * momentum / (np.sqrt(square) + spec.adaptivity), momentum, square)


def _numbers(array: Array, block: slice) -> Numbers:
    return array.reshape(-1)[block].astype(np.float64)
