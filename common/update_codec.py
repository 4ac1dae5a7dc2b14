"""A model state in fewer bytes than it has: as a coded difference from one that the receiver has already.

Of a site it is what it trained, from the state that it was sent; of the coordinator the next global state, from the one
before.

Differences of trained parameters are sent as 16-bit floating-point numbers with one scale a tensor, or as 8-bit whole
numbers with one scale for each output channel. Everything else of a state, such as statistics of normalisation layers
and counters, is sent as it is. What a code loses, its sender knows and may add to the next difference (error feedback;
Seide et al. 2014, Interspeech, section 3; Karimireddy et al. 2019, arXiv:1901.09847, algorithm 2), so that the losses
do not add up over the rounds.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.errors import DataError, ProtocolError
from common.model_state import Array, ModelState, blocks, in_c_order

Scheme = Literal["fp16_delta", "int8_delta"]

_INT8_MOST = 127
_TYPES: Mapping[Scheme, np.dtype[np.float16] | np.dtype[np.int8]] = {
    "fp16_delta": np.dtype(np.float16),
    "int8_delta": np.dtype(np.int8),
}


@dataclass(frozen=True)
class CodedUpdate:
    """An update as it travels.

    Attributes:
        values: For each coded entry of the state the codes, of the entry's shape; every other entry as it is.
        scales: For each coded entry the scale of its codes, float32: shape () for a whole tensor, or (C,) for the
            channels along its first axis.
    """

    values: ModelState
    scales: ModelState


def encode_update(
    state: ModelState,
    reference: ModelState,
    scheme: Scheme,
    *,
    trained: Set[str],
    carried: ModelState | None = None,
) -> tuple[CodedUpdate, dict[str, Array]]:
    """Code what has changed since a reference.

    Args:
        state: The new state.
        reference: The state that the receiver has too; of the same names and shapes.
        scheme: The code.
        trained: Names of the trained parameters; those of floating-point numbers are coded.
        carried: What earlier codes have lost, by the name; added to the difference. None adds nothing.

    Returns:
        The coded update, and what this code has lost: the difference as it was meant less as it will be read.

    Raises:
        DataError: If an entry that is to be coded holds NaN or an infinity, or differs by more than float32 holds.
    """
    values: dict[str, Array] = {}
    scales: dict[str, Array] = {}
    lost: dict[str, Array] = {}
    for name, array in state.items():
        if name not in trained or not np.issubdtype(array.dtype, np.floating):
            values[name] = array
            continue
        difference = array.astype(np.float64) - reference[name]
        if carried is not None and name in carried:
            difference += carried[name]
        scale = _scale_of(difference, scheme)
        if not np.isfinite(scale).all():
            raise DataError(
                f"{name}: the update holds NaN, an infinity or a number beyond float32, expected finite ones; "
                "lower training.learning_rate"
            )
        values[name] = _codes(difference, scale, scheme)
        scales[name] = scale
        lost[name] = (difference - _decoded(values[name], scale, scheme)).astype(np.float32)
    return CodedUpdate(values, scales), lost


def decode_update(update: CodedUpdate, reference: ModelState, scheme: Scheme, *, trained: Set[str]) -> dict[str, Array]:
    """The state that a coded update stands for.

    Args:
        update: What came.
        reference: The state that it is a difference from.
        scheme: The code.
        trained: As in `encode_update`.

    Raises:
        ProtocolError: If it is no such code of a state like the reference; says what was found and what was expected.
    """
    _require_names(update.values.keys(), reference.keys(), "update")
    coded = {name for name in trained & reference.keys() if np.issubdtype(reference[name].dtype, np.floating)}
    _require_names(update.scales.keys(), coded, "scales of the update")
    state: dict[str, Array] = {}
    for name in reference:
        found, expected = update.values[name], reference[name]
        dtype = _TYPES[scheme] if name in coded else expected.dtype
        _require_alike(name, found, shape=expected.shape, dtype=dtype)
        if name not in coded:
            state[name] = found
            continue
        scale = update.scales[name]
        _require_alike(f"scale of {name}", scale, shape=_scale_shape(expected.shape, scheme), dtype=np.dtype("<f4"))
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise ProtocolError(f"scale of {name}: found NaN, an infinity or a negative number, expected none")
        if not np.isfinite(found).all():
            raise ProtocolError(f"{name} holds NaN or infinite numbers, expected finite ones")
        state[name] = _added(expected, found, scale, scheme)
    return state


def _added(reference: Array, codes: Array, scale: Array, scheme: Scheme) -> Array:
    """The reference and what the codes stand for; where rounding leads out of the type's range, its greatest number."""
    most = np.finfo(reference.dtype).max
    state = np.empty(reference.shape, reference.dtype)
    if scale.ndim == 0:
        flat, before, out = codes.reshape(-1), reference.reshape(-1), state.reshape(-1)
        for block in blocks(flat.size):
            out[block] = np.clip(_decoded(flat[block], scale, scheme) + before[block], -most, most)
        return state
    for channel in range(codes.shape[0]):
        part = _decoded(codes[channel : channel + 1], scale[channel : channel + 1], scheme)
        state[channel : channel + 1] = np.clip(part + reference[channel : channel + 1], -most, most)
    return state


def _scale_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """One scale for each output channel of 8-bit numbers; a bias or a gain has one for all of it."""
    return shape[:1] if scheme == "int8_delta" and len(shape) >= 2 else ()


def _scale_of(difference: Array, scheme: Scheme) -> Array:
    """The largest magnitude, of the tensor or of each channel, rounded up to a float32."""
    num_kept = len(_scale_shape(difference.shape, scheme))
    largest = np.asarray(np.abs(difference).max(axis=tuple(range(num_kept, difference.ndim)), initial=0.0))
    with np.errstate(over="ignore"):
        scale = largest.astype(np.float32)
        return np.asarray(np.where(scale < largest, np.nextafter(scale, np.float32(np.inf)), scale), dtype=np.float32)


def _codes(difference: Array, scale: Array, scheme: Scheme) -> Array:
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    shares = difference / divisor.reshape(divisor.shape + (1,) * (difference.ndim - divisor.ndim))
    if scheme == "int8_delta":
        shares = np.rint(shares * _INT8_MOST)
    return in_c_order(shares.astype(_TYPES[scheme]))


def _decoded(codes: Array, scale: Array, scheme: Scheme) -> Array:
    """What codes stand for, float64."""
    factor = scale.astype(np.float64) / (_INT8_MOST if scheme == "int8_delta" else 1)
    decoded: Array = codes.astype(np.float64) * factor.reshape(factor.shape + (1,) * (codes.ndim - factor.ndim))
    return decoded


def _require_names(found: Set[str], expected: Set[str], what: str) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        raise ProtocolError(
            f"the {what}: {len(missing)} entries of the study's model are missing and {len(extra)} are beyond it; both "
            "sides need the same version of this program and the same study"
        )


def _require_alike(name: str, found: Array, *, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    if found.shape != shape or found.dtype != dtype:
        raise ProtocolError(f"{name} has shape {found.shape} and type {found.dtype}, expected {shape} and {dtype}")
