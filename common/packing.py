"""The small arrays of a message as a single one, so that the message travels in few pieces.

Flower (1.41) hands on each array, and each piece of one, by a call of its own at every station between coordinator and
ClientApp. A ResNet10 has 77 arrays, most of them a few hundred bytes long, whose calls take longer than its megabytes.
"""

import json
from typing import Any

from flwr.app import Array as FlowerArray
from flwr.app import RecordDict

from common.errors import ProtocolError

SMALL_BYTES = 2**20
"""Arrays below this size travel together; larger ones fill pieces of their own."""

_PACKED, _KIND = "(packed)", "gliorn.packed"
"""Name and serialisation of the array that holds the small ones: the length of a table, the table, their bytes."""

_LENGTH_BYTES = 8


def pack(content: RecordDict) -> RecordDict:
    """The same content with the small arrays of each record of arrays in one; what is large is not copied."""
    packed = RecordDict(dict(content))
    for key, arrays in content.array_records.items():
        small = {name: array for name, array in arrays.items() if len(array.data) < SMALL_BYTES}
        if len(small) < 2 or _PACKED in arrays:
            continue
        kept = {name: array for name, array in arrays.items() if name not in small}
        packed[key] = type(arrays)({**kept, _PACKED: _joined(small)})
    return packed


def _joined(arrays: dict[str, FlowerArray]) -> FlowerArray:
    rows = [[name, each.dtype, list(each.shape), each.stype, len(each.data)] for name, each in arrays.items()]
    table = json.dumps(rows).encode()
    data = b"".join([len(table).to_bytes(_LENGTH_BYTES, "little"), table, *(each.data for each in arrays.values())])
    return FlowerArray("uint8", (len(data),), _KIND, data)


def unpack(content: RecordDict) -> RecordDict:
    """What was packed, with the arrays of each record in the order of their names; other content as it is.

    Raises:
        ProtocolError: If what should be packed arrays is none; the text holds nothing that the peer wrote.
    """
    unpacked = RecordDict(dict(content))
    for key, arrays in content.array_records.items():
        joined = arrays.get(_PACKED)
        if joined is None or joined.stype != _KIND:
            continue
        small = _parted(joined.data)
        if small.keys() & arrays.keys():
            raise ProtocolError("packed arrays bear the names of others")
        every = {name: array for name, array in arrays.items() if name != _PACKED} | small
        unpacked[key] = type(arrays)({name: every[name] for name in sorted(every)})
    return unpacked


def _parted(data: bytes) -> dict[str, FlowerArray]:
    begin = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        rows = json.loads(data[_LENGTH_BYTES:begin])
    except (ValueError, RecursionError):
        raise ProtocolError("the table of packed arrays is not readable") from None
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise ProtocolError("the table of packed arrays does not describe arrays")
    if begin + sum(row[4] for row in rows) != len(data) or len({row[0] for row in rows}) != len(rows):
        raise ProtocolError("the table of packed arrays does not fit their bytes and names")
    arrays = {}
    for name, dtype, shape, kind, length in rows:
        arrays[name] = FlowerArray(dtype, tuple(shape), kind, data[begin : begin + length])
        begin += length
    return arrays


def _is_row(row: Any) -> bool:
    match row:
        case [str(), str(), list() as shape, str(), int() as length] if type(length) is int and length >= 0:
            return all(type(side) is int for side in shape)
    return False
