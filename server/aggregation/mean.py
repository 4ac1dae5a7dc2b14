"""The next global state as a weighted mean of the sites' states, of which a part at a time need be in memory."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.model_state import Array, ModelState

_NUMBERS_AT_A_TIME = 2**18
"""Of an array, by one thread."""

_NUMBERS_IN_CACHE = 2**16
"""Of these, so that the products of a state with its weight stay in a core's cache."""

_MOST_THREADS = 4
"""Each holds its own sums and an array of one state. Few, since what memory gives is soon shared out."""


def weighted_mean(states: Sequence[tuple[ModelState, float]], *, reference: ModelState) -> dict[str, Array]:
    """FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1): the mean of states by weight, buffers included.

    Sums are in float64 in the order given, so that the same states in the same order give the same bytes. Whole-number
    buffers, such as batch norm's counter of batches, are rounded to the nearest.

    Args:
        states: States with the names and shapes of the reference, and their weights, above 0. Of states that lie on
            disk a part at a time is in memory.
        reference: Gives names, shapes and types of the result.

    Raises:
        ValueError: If there is no state.
    """
    total = total_weight(states)
    mean = {name: np.empty(array.shape, dtype=array.dtype) for name, array in reference.items()}

    def fill(place: tuple[str, slice]) -> None:
        name, part = place
        values = mean_of_block(states, name, part, total=total)
        mean[name].reshape(-1)[part] = as_type(values, mean[name].dtype)

    places = [(name, part) for name, array in mean.items() for part in parts_of(array.size, _NUMBERS_AT_A_TIME)]
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        for _ in threads.map(fill, places):
            pass
    return mean


def total_weight(states: Sequence[tuple[ModelState, float]]) -> float:
    """The sum of the weights.

    Raises:
        ValueError: If there is no state.
    """
    total = sum(weight for _, weight in states)
    if total <= 0:
        raise ValueError("a mean needs at least one state of positive weight")
    return total


def mean_of_block(
    states: Sequence[tuple[ModelState, float]], name: str, block: slice, *, total: float
) -> NDArray[np.float64]:
    """The mean of a part of one array, in float64; shape (length of the block,)."""
    sums = np.zeros(block.stop - block.start, dtype=np.float64)
    product = np.empty(_NUMBERS_IN_CACHE, dtype=np.float64)
    for state, weight in states:
        _add_product(state[name].reshape(-1)[block], weight, to=sums, product=product)
    sums /= total
    return sums


def _add_product(values: Array, weight: float, *, to: NDArray[np.float64], product: NDArray[np.float64]) -> None:
    """Add weighted values to sums, by way of an array that stays in the cache."""
    for part in parts_of(len(to), len(product)):
        weighted = product[: part.stop - part.start]
        weighted[:] = values[part]
        weighted *= weight
        to[part] += weighted


def parts_of(size: int, length: int) -> Iterator[slice]:
    """An array of a size in parts of at most a length, where `blocks` would be too long to hold several of."""
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def as_type(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """Values as a state holds them; where it holds whole numbers they are rounded to the nearest."""
    return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)


def balanced_class_weights(num_patients: tuple[int, int]) -> tuple[float, float]:
    """Loss weights that give both classes the same sum: N / (2 N_c), over the patients of all sites together.

    A class without patients gets the weight 0, since no loss term carries it.
    """
    total = sum(num_patients)
    return (_balanced(num_patients[0], total), _balanced(num_patients[1], total))


def _balanced(count: int, total: int) -> float:
    return total / (2 * count) if count else 0.0


def aggregation_weight(num_patients: tuple[int, int], class_weights: tuple[float, float]) -> float:
    """A site's weight in the mean: the sum of the class weights of its training patients.

    With this weight, and not with the number of patients, one full-batch step at every site equals the step on all
    patients together when classes are weighted.
    """
    return num_patients[0] * class_weights[0] + num_patients[1] * class_weights[1]
