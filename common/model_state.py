"""The state of a model as named arrays: compared, hashed, and turned into safetensors bytes and back."""

import hashlib
import json
from collections.abc import Mapping
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
    """The state as the bytes of a safetensors file; equal states and metadata give equal bytes."""
    arrays = {name: in_c_order(state[name]) for name in sorted(state)}
    payload: bytes = safetensors.numpy.save(arrays, dict(metadata) if metadata else None)
    return _with_sorted_metadata(payload) if metadata else payload


def _with_sorted_metadata(payload: bytes) -> bytes:
    """Undo that safetensors 0.8 writes the metadata in an order that differs from call to call."""
    size = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload[8 + size :]


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
    for name in sorted(reference):
        if np.issubdtype(reference[name].dtype, np.floating):
            difference = state[name].astype(np.float64) - reference[name]
            square += float(np.vdot(difference, difference))
    return float(np.sqrt(square))


def _first(names: list[str]) -> str:
    if not names:
        return "nothing"
    first = repr(names[0][:80])
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
