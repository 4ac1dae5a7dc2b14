"""Updates in fewer bytes: what a code may lose, what it must not, and what it refuses."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from common.errors import DataError, ProtocolError
from common.model_state import Array
from common.update_codec import CodedUpdate, Scheme, decode_update, encode_update

SCHEMES: tuple[Scheme, ...] = ("fp16_delta", "int8_delta")
SHARE_LOST: Mapping[Scheme, float] = {"fp16_delta": 2.0**-11 + 2.0**-24, "int8_delta": 0.5 / 127 + 1e-9}
"""Most that a code loses, as a share of the largest difference of the tensor, or of the channel."""

TRAINED = frozenset({"w"})
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)
SHAPES = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def one(values: object) -> dict[str, Array]:
    return {"w": np.asarray(values, dtype=np.float32)}


def f32(values: object) -> Array:
    return np.asarray(values, dtype=np.float32)


def largest_by_scale(difference: Array, scheme: Scheme) -> Array:
    """The largest difference that shares a scale with each entry."""
    magnitudes = np.abs(difference)
    if scheme == "int8_delta" and difference.ndim >= 2:
        axes = tuple(range(1, difference.ndim))
        return np.broadcast_to(magnitudes.max(axis=axes, keepdims=True, initial=0), difference.shape)
    return np.full(difference.shape, magnitudes.max(initial=0))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_decoded_state_is_as_near_as_the_code_promises(scheme: Scheme, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    state, reference = (one(data.draw(arrays(np.float32, shape, elements=NUMBERS))) for _ in range(2))

    update, lost = encode_update(state, reference, scheme, trained=TRAINED)
    decoded = decode_update(update, reference, scheme, trained=TRAINED)["w"]

    difference = state["w"].astype(np.float64) - reference["w"]
    allowed = SHARE_LOST[scheme] * largest_by_scale(difference, scheme)
    half_step = np.spacing(np.abs(state["w"]) + np.float32(1e-38)) + np.spacing(np.abs(decoded) + np.float32(1e-38))
    assert decoded.dtype == np.float32
    assert (np.abs(decoded.astype(np.float64) - state["w"]) <= allowed + half_step).all()
    assert (np.abs(lost["w"]) <= allowed * (1 + 1e-6) + 1e-44).all()


@given(seed=st.integers(0, 2**32 - 1), num_rounds=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_losses_that_are_carried_on_do_not_add_up(seed: int, num_rounds: int) -> None:
    rng = np.random.default_rng(seed)
    reference, sent, meant = one(np.zeros((3, 5))), np.zeros((3, 5)), np.zeros((3, 5))
    carried: dict[str, Array] | None = None

    for _ in range(num_rounds):
        state = one(rng.standard_normal((3, 5)) * 10.0 ** rng.integers(-3, 3))
        update, carried = encode_update(state, reference, "int8_delta", trained=TRAINED, carried=carried)
        sent += update.values["w"] * (update.scales["w"].astype(np.float64)[:, None] / 127)
        meant += state["w"]

    assert carried is not None
    np.testing.assert_allclose(sent + carried["w"], meant, rtol=1e-6, atol=1e-6 * np.abs(meant).max())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_that_did_not_change_comes_back_bit_for_bit(scheme: Scheme) -> None:
    reference = one(np.random.default_rng(0).standard_normal((4, 3)))

    update, lost = encode_update(reference, reference, scheme, trained=TRAINED)

    np.testing.assert_array_equal(decode_update(update, reference, scheme, trained=TRAINED)["w"], reference["w"])
    assert not lost["w"].any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_buffers_and_counters_travel_as_they_are(scheme: Scheme) -> None:
    reference = one([1.0]) | {"mean": f32([0.1, 1e-30]), "count": np.asarray(7, dtype=np.int64)}
    state = one([2.0]) | {"mean": f32([0.3, 3e38]), "count": np.asarray(2**53 + 1, dtype=np.int64)}

    update, _ = encode_update(state, reference, scheme, trained=TRAINED)
    decoded = decode_update(update, reference, scheme, trained=TRAINED)

    assert decoded["mean"].tobytes() == state["mean"].tobytes()
    assert decoded["count"].tobytes() == state["count"].tobytes()
    assert update.scales.keys() == {"w"}


def test_channel_has_a_scale_of_its_own_with_8_bits() -> None:
    state = one([[127.0, 1.0], [1.27, 0.01]])

    update, _ = encode_update(state, one(np.zeros((2, 2))), "int8_delta", trained=TRAINED)

    assert update.values["w"].tolist() == [[127, 1], [127, 1]]
    np.testing.assert_allclose(update.scales["w"], [127.0, 1.27], rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_differences_below_the_normal_numbers_are_kept(scheme: Scheme) -> None:
    state = one([1e-44, -1e-44])

    update, _ = encode_update(state, one([0.0, 0.0]), scheme, trained=TRAINED)

    np.testing.assert_array_equal(decode_update(update, one([0.0, 0.0]), scheme, trained=TRAINED)["w"], state["w"])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38], ids=["nan", "inf", "-inf", "beyond float32"])
def test_update_that_is_not_finite_is_refused_at_the_site(scheme: Scheme, bad: float) -> None:
    with pytest.raises(DataError, match=r"w: the update holds NaN, an infinity or a number beyond float32"):
        encode_update(one([1.0, bad]), one([0.0, -3e38]), scheme, trained=TRAINED)


def broken(update: CodedUpdate, *, values: Array | None = None, scale: Array | None = None) -> CodedUpdate:
    return CodedUpdate(
        update.values if values is None else {**update.values, "w": values},
        update.scales if scale is None else {**update.scales, "w": scale},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros((2, 3), np.float32)}, r"w has shape \(2, 3\) and type float32, expected .* int8"),
        ({"values": np.zeros((3, 2), np.int8)}, r"w has shape \(3, 2\)"),
        ({"scale": np.zeros((), np.float32)}, r"scale of w has shape \(\)"),
        ({"scale": np.zeros(2, np.float64)}, r"scale of w has .* type float64"),
        ({"scale": f32([1, np.nan])}, r"scale of w: found NaN"),
        ({"scale": f32([1, np.inf])}, r"scale of w: found NaN, an infinity"),
        ({"scale": f32([1, -1])}, r"scale of w: found .* negative"),
    ],
    ids=["type", "shape", "one scale", "scale's type", "nan scale", "infinite scale", "negative scale"],
)
def test_malformed_code_is_refused_by_what_is_wrong(changes: dict[str, Array], message: str) -> None:
    reference = one(np.zeros((2, 3)))
    update, _ = encode_update(one(np.ones((2, 3))), reference, "int8_delta", trained=TRAINED)

    with pytest.raises(ProtocolError, match=message):
        decode_update(broken(update, **changes), reference, "int8_delta", trained=TRAINED)


def test_missing_and_extra_entries_are_refused() -> None:
    reference = one([0.0]) | {"mean": f32([1.0])}
    update, _ = encode_update(reference, reference, "fp16_delta", trained=TRAINED)

    with pytest.raises(ProtocolError, match=r"the update: 1 entries of the study's model are missing and 0 are beyond"):
        decode_update(CodedUpdate({"w": update.values["w"]}, update.scales), reference, "fp16_delta", trained=TRAINED)
    with pytest.raises(ProtocolError, match=r"scales of the update: 1 entries .* missing and 1 are beyond"):
        decode_update(CodedUpdate(update.values, {"x": f32(1.0)}), reference, "fp16_delta", trained=TRAINED)


def test_infinite_codes_of_16_bits_are_refused() -> None:
    update = CodedUpdate({"w": np.array([np.inf], np.float16)}, {"w": f32(1.0)})

    with pytest.raises(ProtocolError, match="w holds NaN or infinite numbers"):
        decode_update(update, one([0.0]), "fp16_delta", trained=TRAINED)
