"""Small arrays of a message as a single one."""

import json

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.packing import SMALL_BYTES, pack, unpack


def content(**arrays: np.ndarray) -> RecordDict:
    record = ArrayRecord({name: FlowerArray(array) for name, array in sorted(arrays.items())})
    return RecordDict({"task": ConfigRecord({"protocol": 3}), "state": record})


SMALL = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3.0, np.float32), "z": np.zeros((0, 2), np.int64)}
LARGE = {"m": np.ones(SMALL_BYTES // 8)}


@given(
    names=st.lists(st.text(max_size=5), unique=True, max_size=6),
    lengths=st.lists(st.integers(0, 50), min_size=6, max_size=6),
)
def test_packed_arrays_come_back_with_every_byte(names: list[str], lengths: list[int]) -> None:
    arrays = {name: np.arange(length, dtype=np.float32) for name, length in zip(names, lengths, strict=False)}
    given = content(**arrays)

    assert unpack(pack(given)) == given


def test_small_arrays_become_one_and_a_large_one_stays_as_it_is() -> None:
    given = content(**SMALL, **LARGE)

    packed = pack(given)

    assert list(packed.array_records["state"]) == ["m", "(packed)"]
    assert packed.array_records["state"]["m"].data is given.array_records["state"]["m"].data
    assert list(given.array_records["state"]) == ["a", "b", "m", "z"]
    assert unpack(packed) == given
    assert list(unpack(packed).array_records["state"]) == ["a", "b", "m", "z"]


def test_message_with_one_array_or_none_is_left_alone() -> None:
    for alone in (content(), content(a=SMALL["a"]), RecordDict({"reply": ConfigRecord({"failure": "data"})})):
        assert pack(alone) == alone
        assert unpack(alone) == alone


ROW = ["a", "float32", [2], "numpy.ndarray", 3]


def packed(table: object, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


SPOILT = {
    "nothing": b"",
    "no table": packed(b"hello"),
    "a table longer than all": b"\xff" * 8 + b"[]",
    "no list": packed({"a": 1}),
    "deep": packed(b"[" * 200_000),
    "a row that is none": packed([ROW[:4]]),
    "a length below zero": packed([[*ROW[:4], -3], ["b", *ROW[1:4], 6]], b"xyz"),
    "a length that is true": packed([[*ROW[:4], True]], b"x"),
    "a side that is text": packed([["a", "float32", ["2"], "numpy.ndarray", 1]], b"x"),
    "fewer bytes": packed([ROW], b"xy"),
    "more bytes": packed([ROW], b"wxyz"),
    "a name twice": packed([ROW, ROW], b"xyzxyz"),
    "the name of a large one": packed([["m", *ROW[1:]]], b"xyz"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_packed_arrays_that_are_none_are_refused(how: str) -> None:
    joined = FlowerArray("uint8", (1,), "gliorn.packed", SPOILT[how])
    record = ArrayRecord({"(packed)": joined, "m": FlowerArray(LARGE["m"])})

    with pytest.raises(ProtocolError, match="packed arrays"):
        unpack(RecordDict({"state": record}))
