"""Invites and requests: what goes in comes out, and nothing changed on the way is taken."""

import base64
import os
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from common.authorities import certificate_digest
from common.enrolment import (
    INVITE_PREFIX,
    REQUEST_PREFIX,
    Invite,
    InvitedStudy,
    _packed,
    _seal,
    make_request,
    openssh_text,
    proven_key,
    read_invite,
    read_request,
    sign_invite,
)
from common.errors import ConfigError
from server.provisioning import make_certificate_authority

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AUTHORITY = make_certificate_authority("gliorn necrosis CA 1", now=NOW, lifetime=timedelta(days=3650))
CERTIFICATE = x509.load_pem_x509_certificate(AUTHORITY.certificate)
SITE_KEY = ec.generate_private_key(ec.SECP384R1())

names = st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z")
invites = st.builds(
    Invite,
    address=st.from_regex(r"\A([A-Za-z0-9._-]{1,60}|\[[0-9a-f:]{2,39}\]):[0-9]{1,5}\Z"),
    authorities=st.just((CERTIFICATE.public_bytes(Encoding.DER),)),
    signer=st.just(bytes.fromhex(certificate_digest(CERTIFICATE))),
    federation=names,
    federation_id=st.from_regex(r"\A[0-9a-f]{32}\Z"),
    site=names,
    expires=st.integers(int(NOW.timestamp()) + 1, 2**37),
    id=st.from_regex(r"\A[0-9a-f]{16}\Z"),
    token=st.binary(min_size=32, max_size=32),
    study=st.none()
    | st.builds(
        InvitedStudy,
        name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
        sha256=st.binary(min_size=32, max_size=32),
    ),
)


def an_invite(**changes: object) -> Invite:
    invite = Invite(
        address="federation.example-hospital.org:9092",
        authorities=(CERTIFICATE.public_bytes(Encoding.DER),),
        signer=bytes.fromhex(certificate_digest(CERTIFICATE)),
        federation="necrosis-2026",
        federation_id="0123456789abcdef" * 2,
        site="hospital-a",
        expires=int((NOW + timedelta(days=14)).timestamp()),
        id="00112233aabbccdd",
        token=os.urandom(32),
        study=InvitedStudy(name="gliorn-necrosis", sha256=os.urandom(32)),
    )
    return invite.model_copy(update=changes)


INVITE = an_invite()
INVITE_TEXT = sign_invite(INVITE, AUTHORITY.key)
REQUEST_TEXT = make_request(INVITE, SITE_KEY)


@given(invites)
def test_invite_and_the_request_that_answers_it_come_out_as_they_went_in(invite: Invite) -> None:
    read = read_invite(sign_invite(invite, AUTHORITY.key), now=NOW)
    sealed = read_request(make_request(read, SITE_KEY))

    assert read == invite
    assert sealed.is_sealed_with(invite.token)
    assert proven_key(sealed.request) == SITE_KEY.public_key()
    request = sealed.request
    assert (request.site, request.invite_id, request.federation_id) == (invite.site, invite.id, invite.federation_id)


def test_invite_fits_into_1200_characters_and_the_request_into_600() -> None:
    assert len(INVITE_TEXT) < 1200
    assert len(REQUEST_TEXT) < 600


def test_token_of_the_invite_does_not_travel_back() -> None:
    payload = read_request(REQUEST_TEXT).payload

    assert INVITE.token not in payload
    assert base64.urlsafe_b64encode(INVITE.token)[:20] not in _packed(read_request(REQUEST_TEXT).request)


def test_line_breaks_of_a_mail_program_do_no_harm() -> None:
    wrapped = "\r\n".join(INVITE_TEXT[start : start + 76] for start in range(0, len(INVITE_TEXT), 76))

    assert read_invite(f"  {wrapped}\n", now=NOW) == INVITE


@given(st.data())
def test_any_changed_character_of_an_invite_is_refused(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(INVITE_TEXT) - 1))
    other = data.draw(st.characters(exclude_characters=INVITE_TEXT[place]))
    changed = INVITE_TEXT[:place] + other + INVITE_TEXT[place + 1 :]

    with pytest.raises(ConfigError):
        read_invite(changed, now=NOW)


@given(st.data())
def test_any_changed_byte_of_an_invite_is_refused(data: st.DataObject) -> None:
    content = bytearray(_content(INVITE_TEXT, INVITE_PREFIX))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(ConfigError):
        read_invite(INVITE_PREFIX + _text(bytes(content)), now=NOW)


def is_taken(text: str) -> bool:
    """Whether a request passes all that the coordinator asks of it by the invite alone."""
    sealed = read_request(text)
    if not sealed.is_sealed_with(INVITE.token):
        raise ConfigError("the seal is broken")
    return proven_key(sealed.request) is not None


@given(st.data())
def test_any_changed_character_of_a_request_is_refused(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(REQUEST_TEXT) - 1))
    other = data.draw(st.characters(exclude_characters=REQUEST_TEXT[place]))

    with pytest.raises(ConfigError):
        is_taken(REQUEST_TEXT[:place] + other + REQUEST_TEXT[place + 1 :])


@given(st.data())
def test_any_changed_byte_of_a_request_is_refused(data: st.DataObject) -> None:
    content = bytearray(_content(REQUEST_TEXT, REQUEST_PREFIX))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(ConfigError):
        is_taken(REQUEST_PREFIX + _text(bytes(content)))


@given(st.text() | st.binary(max_size=300).map(lambda content: INVITE_PREFIX + _text(content)))
def test_any_other_text_is_refused_as_an_invite(text: str) -> None:
    with pytest.raises(ConfigError):
        read_invite(text, now=NOW)


@given(st.text() | st.binary(max_size=300).map(lambda content: REQUEST_PREFIX + _text(content)))
def test_any_other_text_is_refused_as_a_request(text: str) -> None:
    with pytest.raises(ConfigError):
        read_request(text)


@pytest.mark.parametrize("cut", [1, 40, 700, 1100])
def test_invite_that_was_not_copied_whole_is_refused(cut: int) -> None:
    with pytest.raises(ConfigError, match="was changed or is incomplete"):
        read_invite(INVITE_TEXT[:-cut], now=NOW)


def test_request_in_the_place_of_an_invite_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no invite, expected a text that begins with gliorn-invite-1"):
        read_invite(REQUEST_TEXT, now=NOW)


def test_invite_of_another_version_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="of another version of gliorn than this one"):
        read_invite(INVITE_TEXT.replace("invite-1.", "invite-2."), now=NOW)


def test_expired_invite_is_refused_with_both_times() -> None:
    with pytest.raises(
        ConfigError, match=r"expired at 2026-03-15 00:00 UTC, and by this .* is 2026-03-15 01:00 UTC now"
    ):
        read_invite(INVITE_TEXT, now=NOW + timedelta(days=14, hours=1))


def test_invite_signed_by_another_key_than_that_of_its_authority_is_refused() -> None:
    with pytest.raises(ConfigError, match="its signature does not fit"):
        read_invite(sign_invite(INVITE, SITE_KEY), now=NOW)


def test_invite_whose_fingerprint_is_of_no_certificate_in_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="no certificate in it has the fingerprint"):
        read_invite(sign_invite(an_invite(signer=os.urandom(32)), AUTHORITY.key), now=NOW)


def test_invite_with_something_else_for_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigError, match="a certificate in it is unreadable"):
        read_invite(sign_invite(an_invite(authorities=(b"no certificate",)), AUTHORITY.key), now=NOW)


def test_content_that_unpacks_to_no_end_is_refused() -> None:
    import zlib

    with pytest.raises(ConfigError, match="does not end where it should"):
        read_request(REQUEST_PREFIX + _text(bytes(32) + zlib.compress(bytes(10**7), 9)))


def test_request_for_the_key_of_another_is_refused() -> None:
    stolen = read_request(REQUEST_TEXT).request.model_copy(
        update={"public_key": openssh_text(ec.generate_private_key(ec.SECP384R1()).public_key())}
    )

    with pytest.raises(ConfigError, match="does not prove that its sender holds the private key"):
        proven_key(stolen)


@pytest.mark.parametrize(
    ("public_key", "words"),
    [
        ("no key", "unreadable"),
        ("ümlaut", "unreadable"),
        (openssh_text(ec.generate_private_key(ec.SECP256R1()).public_key()), "of another kind"),
        (openssh_text(SITE_KEY.public_key()) + " comment", "carries more than a key"),
    ],
)
def test_request_with_another_kind_of_key_is_refused(public_key: str, words: str) -> None:
    request = read_request(REQUEST_TEXT).request

    with pytest.raises(ConfigError, match=words):
        proven_key(request.model_copy(update={"public_key": public_key}))


def test_seal_of_another_token_does_not_fit() -> None:
    sealed = read_request(REQUEST_TEXT)

    assert not sealed.is_sealed_with(os.urandom(32))
    assert sealed.seal == _seal(INVITE.token, sealed.payload)


def _content(text: str, prefix: str) -> bytes:
    body = text.removeprefix(prefix)
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
