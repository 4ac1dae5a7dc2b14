"""What a hello and its answer may hold: nothing that could change what a terminal shows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.bundle import bundle_digest, installed_bundle
from common.hello import MAX_STUDIES, MAX_STUDY_TEXT, Hello, HelloRefusal, HelloReply, StudyOffer

HELLO: dict[str, object] = {
    "site": "hospital-a",
    "federation_id": "0f" * 16,
    "version": "0.2.0",
    "bundle_digest": "b" * 64,
    "authorities": ["a" * 64],
}
REPLY: dict[str, object] = {
    "federation": "glioma",
    "federation_id": "0f" * 16,
    "site": "hospital-a",
    "time": "2026-03-01T12:00:00.123456+00:00",
    "version": "0.2.0",
    "bundle_digest": "b" * 64,
    "authorities": "",
    "studies": [],
}
OFFER: dict[str, object] = {"name": "necrosis", "digest": "d" * 64, "text": "name: necrosis\n"}

SHOWN = {
    "hello": (Hello, HELLO, ("site", "federation_id", "version", "bundle_digest")),
    "reply": (HelloReply, REPLY, ("federation", "federation_id", "site", "time", "version", "bundle_digest")),
    "offer": (StudyOffer, OFFER, ("name", "digest")),
    "refusal": (HelloRefusal, {"fault": "clock", "time": REPLY["time"]}, ("fault", "time")),
}
"""For each thing that is said: its model, an example, and what one side shows of the other."""

TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="\n\r\t\x1b\x7f\x85\x9b\u2028\u202e a0.-[K", max_size=70),
    st.from_regex(r"[0-9a-f]{32,64}\s?"),
)


@pytest.mark.parametrize(("model", "example", "names"), SHOWN.values(), ids=SHOWN.keys())
@given(text=TEXTS)
def test_nothing_shown_holds_more_than_printable_ascii_on_one_line(
    model: type[Hello] | type[HelloReply], example: dict[str, object], names: tuple[str, ...], text: str
) -> None:
    assert model.model_validate_json(_json(example))
    for name in names:
        try:
            said = model.model_validate_json(_json(example | {name: text}))
        except ValidationError:
            continue
        shown = getattr(said, name)
        assert shown.isascii()
        assert shown.isprintable()
        assert " " not in shown
        assert len(shown) <= 64


@pytest.mark.parametrize(
    "version", ["0.2.0\n", "0.2.0\nsite-b  connected", "\x1b[2K", "0.2.0\r", "", "1" * 41, "0.2 ", "\u0660.2"]
)
def test_version_that_forges_a_line_is_none(version: str) -> None:
    with pytest.raises(ValidationError, match="version"):
        Hello.model_validate_json(_json(HELLO | {"version": version}))
    with pytest.raises(ValidationError, match="version"):
        HelloReply.model_validate_json(_json(REPLY | {"version": version}))


@pytest.mark.parametrize("version", ["0.2.0", "0.2.0rc1", "0.3.0.dev5+g1a2b3c4.d20260301"])
def test_version_as_python_packages_have_it_is_one(version: str) -> None:
    assert Hello.model_validate_json(_json(HELLO | {"version": version})).version == version


def test_what_this_installation_says_fits() -> None:
    digest = bundle_digest(installed_bundle())

    assert (
        Hello.model_validate_json(_json(HELLO | {"bundle_digest": digest, "federation_id": ""})).bundle_digest == digest
    )
    assert HelloReply.model_validate_json(HelloReply.model_validate_json(_json(REPLY)).model_dump_json())


def test_what_is_said_is_bounded() -> None:
    assert StudyOffer.model_validate(OFFER | {"text": "a" * MAX_STUDY_TEXT})
    with pytest.raises(ValidationError, match="text"):
        StudyOffer.model_validate(OFFER | {"text": "a" * (MAX_STUDY_TEXT + 1)})

    assert HelloReply.model_validate_json(_json(REPLY | {"studies": [OFFER] * MAX_STUDIES}))
    with pytest.raises(ValidationError, match="studies"):
        HelloReply.model_validate_json(_json(REPLY | {"studies": [OFFER] * (MAX_STUDIES + 1)}))

    with pytest.raises(ValidationError, match="authorities"):
        Hello.model_validate_json(_json(HELLO | {"authorities": ["a" * 63 + "\n"]}))


def _json(values: dict[str, object]) -> str:
    return json.dumps(values)
