"""The values that the parts of a message are made of, read with the type and range they must have.

But for the few keys that several messages share, what the values mean is not known here; see `common.messages`.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import ValidationError

from common.errors import ProtocolError
from common.model_state import Array, ModelState, in_c_order
from common.study import Study
from common.tasks import DAMAGES, Damage, Failure

PROTOCOL = 4
"""Version of the messages. Both sides speak the same one."""

MAX_FAILURE_CODE = 40
"""Longest code of a failure. Codes are constant names, so a longer text is refused."""

_MAX_COUNT = 10**9
_SHORT_TEXT = r"[ -~]{0,80}"
_T = TypeVar("_T")


def array_record(state: ModelState) -> ArrayRecord:
    """The arrays of a state as a part of a message, in the order of their names."""
    return ArrayRecord({name: FlowerArray(in_c_order(state[name])) for name in sorted(state)})


def read_arrays(records: RecordDict, *, key: str, what: str) -> dict[str, Array]:
    """The arrays of a message, by name.

    Args:
        records: The message.
        key: Of the part that holds them.
        what: The part in words, for an error.

    Raises:
        ProtocolError: If they are missing or unreadable.
    """
    record = records.get(key)
    if not isinstance(record, ArrayRecord) or not record:
        raise ProtocolError(f"the message holds no {what}; both sides need the same version of this program")
    state = {}
    for name, array in record.items():
        try:
            state[name] = _read_array(array)
        except ValueError as error:
            raise ProtocolError(f"array {name[:80]!r} of the {what} is unreadable: {error}") from None
    return state


_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '([<|](?:f[248]|[iu][1248]))', 'fortran_order': (False|True), "
    rb"'shape': \(([0-9, ]{0,100})\), \} *\n"
)
"""The beginning of a NumPy file of numbers, version 1.0, as NumPy writes it."""


def _read_array(array: FlowerArray) -> Array:
    """The array in a NumPy file, as Flower packs it; read-only, without a copy.

    NumPy's own reader trusts the header: one that promises a milliard numbers takes their memory before it finds out,
    and one that is no Python expression ends in an error of the tokenizer.

    Raises:
        ValueError: If the bytes are not exactly one array of numbers.
    """
    header = _NPY.match(array.data) if array.stype == "numpy.ndarray" else None
    if header is None:
        raise ValueError("it does not begin like an array of numbers")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(length) for length in header[3].split(b",") if length.strip())
    count, start = math.prod(shape), header.end()
    if count * dtype.itemsize != len(array.data) - start:
        raise ValueError(f"{len(array.data) - start} bytes of numbers do not fit its shape and type")
    return np.frombuffer(array.data, dtype, count, start).reshape(shape, order="F" if header[2] == b"True" else "C")


def lists_of_integers(record: MetricRecord) -> dict[str, list[int]]:
    """Lists of whole numbers, by name; raises ProtocolError where there is anything else."""
    integers = {}
    for name, numbers in record.items():
        if not (isinstance(numbers, list) and all(type(number) is int for number in numbers)):
            raise ProtocolError(f"statistics {name[:80]!r} must be a list of whole numbers")
        integers[name] = cast(list[int], numbers)
    return integers


def sizes_of_records(records: RecordDict) -> dict[str, dict[str, int]]:
    """For each part of a message its size: "arrays" and "bytes", or "values"."""
    sizes = {}
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            sizes[name] = {"arrays": len(record), "bytes": sum(len(array.data) for array in record.values())}
        else:
            values = [len(value) if isinstance(value, list) else 1 for value in record.values()]
            sizes[name] = {"values": sum(values)}
    return sizes


def content_bytes(records: RecordDict) -> int:
    """Bytes of what a message says: arrays as they travel, 8 for each number, and texts; without Flower's framing."""
    size = 0
    for record in records.values():
        for value in record.values():
            items = value if isinstance(value, list) else [value]
            size += sum(_bytes_of(item) for item in items)
    return size


def _bytes_of(value: object) -> int:
    match value:
        case FlowerArray():
            return len(value.data)
        case str():
            return len(value.encode())
        case bytes():
            return len(value)
        case _:
            return 8


class Values:
    """The values of one configuration record, each asked for with the type and range it must have.

    Every question raises ProtocolError where the value is missing, of another type or out of range.

    Args:
        records: The message.
        key: Of the part that holds them.

    Raises:
        ProtocolError: If there is no such part, or it is of another protocol.
    """

    def __init__(self, records: RecordDict, key: str) -> None:
        record = records.get(key)
        if not isinstance(record, ConfigRecord):
            raise ProtocolError(f"the message has no {key!r} part; both sides need the same version of this program")
        self._record: Mapping[str, object] = record
        protocol = record.get("protocol")
        if type(protocol) is not int or protocol != PROTOCOL:
            found = protocol if type(protocol) is int else type(protocol).__name__
            raise ProtocolError(
                f"the message is of protocol {found}, this program speaks {PROTOCOL}; "
                "install the same version on both sides"
            )

    def failure(self) -> Failure | None:
        """The failure that a site reports instead of a reply; None for a reply."""
        if "failure" not in self._record:
            return None
        return Failure(self.text("failure", pattern=rf"[a-z][a-z_]{{0,{MAX_FAILURE_CODE - 1}}}"))

    def study(self) -> Study:
        """The study in the message."""
        try:
            return Study.model_validate_json(self._get("study", str))
        except ValidationError as error:
            raise ProtocolError(
                f"the study in the message has {error.error_count()} faults; "
                "both sides need the same version of this program"
            ) from None

    def _get(self, key: str, kind: type[_T]) -> _T:
        if key not in self._record:
            raise ProtocolError(f"{key!r} is missing; both sides need the same version of this program")
        value = self._record[key]
        if type(value) is not kind:
            raise ProtocolError(f"{key!r} must be of type {kind.__name__}, got {type(value).__name__}")
        return value

    def text(self, key: str, *, pattern: str) -> str:
        """A text that has the form of a pattern from its beginning to its end."""
        value = self._get(key, str)
        if not re.fullmatch(pattern, value):
            raise ProtocolError(f"{key!r} does not have the form {pattern}")
        return value

    def choice(self, key: str, choices: tuple[Any, ...]) -> Any:
        """One of some values."""
        value = self._get(key, str)
        if value not in choices:
            raise ProtocolError(f"{key!r} must be one of {', '.join(map(repr, choices))}")
        return value

    def whole(self, key: str, *, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return _in_range(key, self._get(key, int), low, high)

    def number(self, key: str, *, low: float, high: float) -> float:
        """A finite number from `low` to `high`."""
        return _in_range(key, self._get(key, float), low, high)

    def wholes(self, key: str, *, length: int, low: int, high: int) -> list[int]:
        """So many whole numbers, each from `low` to `high`."""
        values = self._get(key, list)
        if len(values) != length or not all(type(value) is int for value in values):
            raise ProtocolError(f"{key!r} must be {length} whole numbers")
        return [_in_range(key, value, low, high) for value in values]

    def numbers(self, key: str, *, length: int | None, low: float, high: float) -> list[float]:
        """So many numbers, or any number of them with None, each from `low` to `high`."""
        values = self._get(key, list)
        if length not in (None, len(values)) or not all(type(value) is float for value in values):
            raise ProtocolError(f"{key!r} must be {'' if length is None else length} numbers")
        return [_in_range(key, value, low, high) for value in values]

    def damaged(self) -> tuple[Damage, ...]:
        """What a site had kept and could not read."""
        names = self._get("damaged", list)
        if len(names) > len(DAMAGES) or not all(name in DAMAGES for name in names):
            raise ProtocolError(f"'damaged' must be some of {', '.join(DAMAGES)}")
        return tuple(cast(list[Damage], names))

    def named_counts(self, key: str) -> dict[str, int]:
        """Counts by name."""
        values = self._named(key)
        if not all(type(value) is int and 0 <= value <= _MAX_COUNT for value in values.values()):
            raise ProtocolError(f"{key!r} must be counts by name")
        return cast(dict[str, int], values)

    def named_texts(self, key: str) -> dict[str, str]:
        """Short texts by name."""
        values = self._named(key)
        if not all(isinstance(value, str) and re.fullmatch(_SHORT_TEXT, value) for value in values.values()):
            raise ProtocolError(f"{key!r} must be short texts by name")
        return cast(dict[str, str], values)

    def _named(self, key: str) -> dict[str, object]:
        try:
            values = json.loads(self._get(key, str))
        except (ValueError, RecursionError):
            raise ProtocolError(f"{key!r} is not readable as JSON") from None
        if (
            not isinstance(values, dict)
            or len(values) > 100
            or not all(re.fullmatch(_SHORT_TEXT, name) for name in values)
        ):
            raise ProtocolError(f"{key!r} must be a short list of names and values")
        return values


def _in_range(key: str, value: _T, low: float, high: float) -> _T:
    if not low <= cast(float, value) <= high:  # NaN fails this too
        raise ProtocolError(f"{key!r} is {value!r}, expected {low} to {high}")
    return value
