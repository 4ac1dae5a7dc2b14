"""A model state that stays on disk: a safetensors file of which each array is read when it is asked for."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.errors import ProtocolError
from common.model_state import SAFETENSORS_TYPES, Array

_MAPPED_BYTES = 2**20
"""Arrays of at least this size are mapped, so that only the parts that are looked at are in memory."""


@dataclass(frozen=True)
class _Place:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


class StoredState(Mapping[str, Array]):
    """The arrays of a safetensors file by name; they cannot be written to.

    The file is kept open, so that it may be replaced or removed meanwhile.

    Args:
        path: The file.
        origin: What it is, for messages.

    Raises:
        ProtocolError: If it is no safetensors file, or not a whole one.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path, *, origin: str) -> None:
        self._file = path.open("rb")
        try:
            self._places = _read_places(self._file)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._file.close()
            raise ProtocolError(
                f"{origin}: not a whole safetensors file; restore it from a copy or delete it"
            ) from None

    def __getitem__(self, name: str) -> Array:
        """One array."""
        place = self._places[name]
        if place.num_bytes >= _MAPPED_BYTES:
            return np.memmap(self._file, place.dtype, "r", place.begin, place.shape)
        values = os.pread(self._file.fileno(), place.num_bytes, place.begin)  # no place in the file that threads share
        return np.frombuffer(values, place.dtype).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._places)

    def __len__(self) -> int:
        """The number of arrays."""
        return len(self._places)


def _read_places(file: IO[bytes]) -> dict[str, _Place]:
    """Where in the file each array lies; raises one of several errors where the file is damaged."""
    num_bytes = os.fstat(file.fileno()).st_size
    begin = 8 + int.from_bytes(file.read(8), "little")
    if not 8 < begin <= num_bytes:
        raise ValueError("no header")
    header = json.loads(file.read(begin - 8))
    header.pop("__metadata__", None)
    places, end = {}, 0
    for name, values in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        dtype, shape = np.dtype(_TYPES[values["dtype"]]), tuple(int(length) for length in values["shape"])
        first, last = values["data_offsets"]
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError("arrays that overlap, or are not as long as they should be")
        places[name], end = _Place(dtype, shape, begin + first, last - first), last
    if begin + end != num_bytes:
        raise ValueError("too short, or too long")
    return places


_TYPES = {name: dtype for dtype, name in SAFETENSORS_TYPES.items()}
