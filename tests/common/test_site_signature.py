import base64
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    public_key_to_bytes,
    sign_message,
    verify_signature,
)

from common.site_signature import (
    NEWEST_S,
    OLDEST_S,
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    SignatureError,
    key_fingerprint,
    public_key_pem,
    signed_headers,
    verified_key,
)

KEY, OTHER = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_signed_request_is_known_by_its_key() -> None:
    assert public_key_pem(verified_key(signed_headers(KEY, NOW), NOW)) == public_key_pem(KEY.public_key())


def test_signature_is_the_one_of_flower_s_supernodes() -> None:
    headers = signed_headers(KEY, NOW)
    key = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
    signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER])
    theirs = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key_to_bytes(KEY.public_key())).decode(),
        TIMESTAMP_HEADER: NOW.isoformat(),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(KEY, NOW.isoformat().encode())).decode(),
    }

    assert verify_signature(bytes_to_public_key(key), headers[TIMESTAMP_HEADER].encode(), signature)
    assert verified_key(theirs, NOW) == KEY.public_key()
    assert tuple(theirs) == (PUBLIC_KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER)
    assert (OLDEST_S, NEWEST_S) == (TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE, SYSTEM_TIME_TOLERANCE)


@pytest.mark.parametrize("age_s", [-4.9, 0.0, 304.0])
def test_clocks_may_differ_a_little(age_s: float) -> None:
    verified_key(signed_headers(KEY, NOW - timedelta(seconds=age_s)), NOW)


@pytest.mark.parametrize("age_s", [-5.0, 305.0, 86_400.0, -86_400.0])
def test_recorded_or_predated_signature_is_refused(age_s: float) -> None:
    with pytest.raises(SignatureError, match="by the site's clock") as refusal:
        verified_key(signed_headers(KEY, NOW - timedelta(seconds=age_s)), NOW)

    assert refusal.value.fault == "clock"


def test_zone_of_the_clock_does_not_matter() -> None:
    verified_key(signed_headers(KEY, NOW.astimezone(timezone(timedelta(hours=9)))), NOW)


@pytest.mark.parametrize("missing", [PUBLIC_KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER])
def test_request_without_one_of_the_headers_is_unsigned(missing: str) -> None:
    headers = signed_headers(KEY, NOW)
    del headers[missing]

    with pytest.raises(SignatureError) as refusal:
        verified_key(headers, NOW)

    assert refusal.value.fault == "unsigned"


def _pem_of_another_kind() -> str:
    pem = ed25519.Ed25519PrivateKey.generate().public_key()
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return base64.b64encode(pem.public_bytes(serialization.Encoding.PEM, kind)).decode()


MALFORMED = {
    "key is no base64": {PUBLIC_KEY_HEADER: "%"},
    "key is no key": {PUBLIC_KEY_HEADER: "aGVsbG8="},
    "key is of another kind": {PUBLIC_KEY_HEADER: _pem_of_another_kind()},
    "key is empty": {PUBLIC_KEY_HEADER: ""},
    "time is no time": {TIME_HEADER: "noon"},
    "time has no zone": {TIME_HEADER: "2026-03-01T12:00:00"},
    "time has other digits": {TIME_HEADER: "２０２６-03-01T12:00:00+00:00"},
    "signature is no base64": {SIGNATURE_HEADER: "é"},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_header_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(SignatureError) as refusal:
        verified_key(signed_headers(KEY, NOW) | change, NOW)

    assert refusal.value.fault == "malformed"


def test_signature_of_another_key_or_time_is_refused() -> None:
    good, other = signed_headers(KEY, NOW), signed_headers(OTHER, NOW)
    later = (NOW + timedelta(seconds=1)).isoformat()
    forged = [
        good | {PUBLIC_KEY_HEADER: other[PUBLIC_KEY_HEADER]},
        good | {SIGNATURE_HEADER: other[SIGNATURE_HEADER]},
        good | {TIME_HEADER: later},
        good | {SIGNATURE_HEADER: ""},
    ]

    for headers in forged:
        with pytest.raises(SignatureError) as refusal:
            verified_key(headers, NOW)
        assert refusal.value.fault == "forged"


def test_fingerprint_is_the_one_of_ssh_keygen(tmp_path: Path) -> None:
    public_key = KEY.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (tmp_path / "site.pub").write_bytes(public_key + b"\n")

    done = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "site.pub")], capture_output=True, text=True, check=True)

    assert done.stdout.split()[1] == key_fingerprint(KEY.public_key())
