"""A model state that stays on disk."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from common.errors import ProtocolError
from common.model_state import SAFETENSORS_TYPES, Array, encode_state, state_digest, update_norm
from server import stored_state
from server.stored_state import StoredState


def state() -> dict[str, Array]:
    arrays = {f"array {name}": np.arange(6).astype(dtype).reshape(2, 3) for dtype, name in SAFETENSORS_TYPES.items()}
    return arrays | {"number": np.array(7, dtype=np.int64), "nothing": np.zeros((0, 2), dtype=np.float32)}


@pytest.fixture(params=[2**20, 1], ids=["read", "mapped"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredState:
    monkeypatch.setattr(stored_state, "_MAPPED_BYTES", request.param)
    path = tmp_path / "state.safetensors"
    path.write_bytes(encode_state(state(), metadata={"gliorn": "x"}))
    return StoredState(path, origin="here")


def test_state_on_disk_is_the_state(stored: StoredState) -> None:
    assert stored.keys() == state().keys()
    assert state_digest(stored) == state_digest(state())
    assert encode_state(stored) == encode_state(state())
    assert update_norm(stored, state()) == 0.0


def test_arrays_cannot_be_written_to(stored: StoredState) -> None:
    with pytest.raises(ValueError, match="read-only"):
        stored["array F32"][0, 0] = 1


def test_file_that_is_replaced_or_removed_is_still_read(stored: StoredState, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").unlink()

    assert state_digest(stored) == state_digest(state())


def test_file_that_safetensors_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(safetensors.numpy.save(state()))

    assert state_digest(StoredState(path, origin="here")) == state_digest(state())


@pytest.mark.parametrize(
    "damage", [slice(0, -1), slice(0, 40), slice(0, 4), slice(0, 0), slice(8, None), slice(1, None)], ids=str
)
def test_damaged_file_is_refused_by_name(damage: slice, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(encode_state(state())[damage])

    with pytest.raises(ProtocolError, match="checkpoint 7: not a whole safetensors file"):
        StoredState(path, origin="checkpoint 7")


@pytest.mark.parametrize(
    "header",
    ["[]", '{"a": 1}', '{"a": {}}', '{"a": {"dtype": "F99", "shape": [], "data_offsets": [0, 4]}}', "{", '{"a": null}'],
)
def test_header_of_another_form_is_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 4)

    with pytest.raises(ProtocolError, match="not a whole safetensors file"):
        StoredState(path, origin="here")
