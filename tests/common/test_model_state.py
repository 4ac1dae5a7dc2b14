"""Model states as bytes: what is equal has equal bytes and digests, and damage is noticed."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

from common.errors import ProtocolError
from common.model_state import (
    SAFETENSORS_TYPES,
    Array,
    decode_state,
    encode_state,
    non_finite_entry,
    require_same_parameters,
    state_digest,
    update_norm,
)


def state() -> dict[str, Array]:
    return {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bias": np.zeros(3, dtype=np.float32),
        "num_batches": np.array(7, dtype=np.int64),
    }


METADATA = {name: f"value of {name}" for name in ("study", "run", "round", "notice", "threshold", "ü")}


def test_state_comes_back_from_its_bytes_with_shapes_and_types() -> None:
    decoded = decode_state(encode_state(state()), origin="here")

    require_same_parameters(decoded, state())
    assert state_digest(decoded) == state_digest(state())
    assert decoded["num_batches"].shape == ()


def test_equal_states_have_equal_bytes_whatever_the_order_of_their_names() -> None:
    turned = dict(reversed(state().items()))

    assert encode_state(turned) == encode_state(state())
    assert state_digest(turned) == state_digest(state())


def test_metadata_has_one_order_in_the_file() -> None:
    payloads = {encode_state(state(), metadata=dict(reversed(METADATA.items()))) for _ in range(20)}
    payloads |= {encode_state(state(), metadata=METADATA)}

    assert len(payloads) == 1


def test_file_with_metadata_is_read_by_safetensors_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_state(state(), metadata=METADATA))

    with safe_open(path, framework="np") as opened:
        assert opened.metadata() == METADATA
        np.testing.assert_array_equal(opened.get_tensor("weight"), state()["weight"])
    assert state_digest(load(encode_state(state(), metadata=METADATA))) == state_digest(state())


def test_bytes_are_those_that_safetensors_writes() -> None:
    mixed = {
        f"{index} of {name}": np.arange(index + 1).astype(dtype)
        for index, (dtype, name) in enumerate(SAFETENSORS_TYPES.items())
    }
    mixed |= {"z": np.zeros((0, 3), np.float32), "a": np.ones((2, 3), np.float32), "ünïcode": np.array(1.5)}

    assert encode_state(mixed) == save(mixed)
    assert encode_state(mixed, metadata={"a": "ä"}) == save(mixed, {"a": "ä"})


def test_strided_array_counts_as_its_values() -> None:
    turned = {"weight": np.asfortranarray(state()["weight"])}
    plain = {"weight": state()["weight"]}

    assert state_digest(turned) == state_digest(plain)
    assert encode_state(turned) == encode_state(plain)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"w": np.zeros((2, 3), np.float32)}, id="shape"),
        pytest.param({"w": np.zeros((3, 2), np.float64)}, id="type"),
        pytest.param({"v": np.zeros((3, 2), np.float32)}, id="name"),
        pytest.param({"w": np.full((3, 2), 1e-30, np.float32)}, id="value"),
        pytest.param({"w": np.full((3, 2), -0.0, np.float32)}, id="sign of zero"),
        pytest.param({}, id="nothing"),
    ],
)
def test_digest_tells_states_apart(other: dict[str, Array]) -> None:
    assert state_digest(other) != state_digest({"w": np.zeros((3, 2), np.float32)})


@pytest.mark.parametrize("damage", [slice(0, -1), slice(0, 40), slice(0, 0), slice(8, None)], ids=str)
def test_damaged_file_is_refused_by_name(damage: slice) -> None:
    with pytest.raises(ProtocolError, match="checkpoint 7: not a whole safetensors file"):
        decode_state(encode_state(state())[damage], origin="checkpoint 7")


def test_missing_and_extra_arrays_are_both_named() -> None:
    found = state()
    found["surplus"] = found.pop("weight")

    with pytest.raises(ProtocolError, match="lacks 'weight' and has 'surplus' beyond"):
        require_same_parameters(found, state())


def test_name_that_a_peer_made_up_is_shortened() -> None:
    with pytest.raises(ProtocolError) as caught:
        require_same_parameters(state() | {"x" * 10_000: np.zeros(1)}, state())

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_entry_that_is_not_finite_is_found(bad: float) -> None:
    assert non_finite_entry(state()) is None

    spoilt = state()
    spoilt["weight"][1, 2] = bad

    assert non_finite_entry(spoilt) == "weight"


def test_norm_of_an_update_is_the_distance_over_all_real_numbers() -> None:
    moved = state()
    moved["weight"][0, 0] += 3
    moved["bias"][1] -= 4
    moved["num_batches"] += 100

    assert update_norm(moved, state()) == 5.0
