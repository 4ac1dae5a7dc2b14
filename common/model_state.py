"""The state of a model as named arrays: compared, hashed, and turned into safetensors bytes and back."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from common.errors import ProtocolError

Array = NDArray[Any]
ModelState = Mapping[str, Array]
"""Parameters and buffers by their PyTorch name, as in `state_dict()`."""


def in_c_order(array: Array) -> Array:
    """The array in C order; unlike `np.ascontiguousarray` this leaves one without dimensions as it is."""
    return np.asarray(array, order="C")


def state_digest(state: ModelState) -> str:
    """SHA-256 over names, types, shapes and bytes in the order of the names, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = in_c_order(state[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def encode_state(state: ModelState, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """The state as the bytes of a safetensors file; equal states and metadata give equal bytes.

    They are those that safetensors 0.8 writes, but for the order of the metadata, which there differs from call to
    call. Written here, since safetensors holds the state three times meanwhile.
    """
    return b"".join(encoded_parts(state, metadata=metadata))


def encoded_parts(state: ModelState, *, metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The bytes of `encode_state` array by array, for a file that is written without a second copy of the state."""
    types = {name: np.asarray(state[name]).dtype for name in state}
    names = sorted(state, key=lambda name: (-_RANK[types[name].str], name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        array = state[name]
        header[name] = {
            "dtype": SAFETENSORS_TYPES[types[name].str],
            "shape": list(array.shape),
            "data_offsets": [end, end := end + array.nbytes],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        yield in_c_order(state[name]).reshape(-1).view(np.uint8).data


SAFETENSORS_TYPES = {
    "|b1": "BOOL",
    "|u1": "U8",
    "|i1": "I8",
    "<i2": "I16",
    "<u2": "U16",
    "<f2": "F16",
    "<i4": "I32",
    "<u4": "U32",
    "<f4": "F32",
    "<f8": "F64",
    "<i8": "I64",
    "<u8": "U64",
}
"""What safetensors calls NumPy's types, in the order in which it writes them, the last one first."""

_RANK = {dtype: rank for rank, dtype in enumerate(SAFETENSORS_TYPES)}


def decode_state(payload: bytes, *, origin: str) -> dict[str, Array]:
    """Read the bytes of a safetensors file.

    Raises:
        ProtocolError: If the bytes are no safetensors file, or not a whole one.
    """
    try:
        return dict(safetensors.numpy.load(payload))
    except SafetensorError as error:
        raise ProtocolError(
            f"{origin}: not a whole safetensors file ({error}); restore it from a copy or delete it"
        ) from None


def require_same_parameters(state: ModelState, reference: ModelState) -> None:
    """Check that a state has the names, shapes and types of another one.

    Raises:
        ProtocolError: Names what is missing, extra or different.
    """
    missing, extra = sorted(reference.keys() - state.keys()), sorted(state.keys() - reference.keys())
    if missing or extra:
        raise ProtocolError(
            f"the model state lacks {_first(missing)} and has {_first(extra)} beyond the study's model; "
            "both sides need the same version of this program and the same study"
        )
    for name, expected in reference.items():
        found = state[name]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ProtocolError(
                f"{name} has shape {found.shape} and type {found.dtype}, expected {expected.shape} and {expected.dtype}"
            )


def non_finite_entry(state: ModelState) -> str | None:
    """Name of the first array that holds NaN or an infinity; None if all numbers are finite."""
    for name in sorted(state):
        array = state[name]
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            return name
    return None


def update_norm(state: ModelState, reference: ModelState) -> float:
    """Euclidean norm of `state - reference` over all arrays of floating-point numbers."""
    square = 0.0
    room = np.empty(_BLOCK_IN_CACHE)
    for name in sorted(reference):
        if np.issubdtype(reference[name].dtype, np.floating):
            before, after = reference[name].reshape(-1), state[name].reshape(-1)
            for start in range(0, before.size, _BLOCK_IN_CACHE):
                block = slice(start, start + _BLOCK_IN_CACHE)
                difference = room[: before[block].size]
                np.subtract(after[block], before[block], out=difference, dtype=np.float64)
                square += float(np.vdot(difference, difference))
    return float(np.sqrt(square))


_BLOCK_IN_CACHE = 2**13
"""Numbers whose differences are still in a core's cache when their squares are added."""


def blocks(size: int) -> Iterator[slice]:
    """A long array in parts, so that what is computed of it need not all be in memory."""
    for start in range(0, size, _BLOCK):
        yield slice(start, min(start + _BLOCK, size))


_BLOCK = 2**20


def _first(names: list[str]) -> str:
    if not names:
        return "nothing"
    first = repr(names[0][:80])
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
