"""How a site proves with its key that a request over HTTPS is its own.

The scheme is the one of Flower's SuperNodes (flwr 1.41, `NodeAuthHttpInterceptor`): the headers hold the public key, a
time, and the ECDSA signature (SHA-256) of that time. TLS protects the rest of the request.
"""

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import GliornError

PUBLIC_KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER = "flwr-public-key", "flwr-timestamp", "flwr-signature"
OLDEST_S, NEWEST_S = 305.0, 5.0
"""A signature may be this many seconds old, or from this many seconds in the future; Flower's own limits."""

SignatureFault = Literal["unsigned", "malformed", "clock", "forged"]


class SignatureError(GliornError):
    """A request is not signed as it should be.

    Attributes:
        fault: "unsigned", "malformed", "clock" (the two clocks differ too much) or "forged".
    """

    code = "signature"

    def __init__(self, fault: SignatureFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def signed_headers(private_key: ec.EllipticCurvePrivateKey, now: datetime) -> dict[str, str]:
    """The headers that sign a request sent now; the time has a time zone."""
    time = now.isoformat()
    signature = private_key.sign(time.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    return {
        PUBLIC_KEY_HEADER: base64.b64encode(public_key_pem(private_key.public_key())).decode("ascii"),
        TIME_HEADER: time,
        SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
    }


def verified_key(headers: Mapping[str, str], now: datetime) -> ec.EllipticCurvePublicKey:
    """The key that signed a request. Whose key it is, and whether it is admitted, is not looked at here.

    Args:
        headers: Of the request, with names in lower case.
        now: The receiver's clock, with time zone.

    Raises:
        SignatureError: If headers are missing or malformed, the time is too far off, or the signature is wrong.
    """
    values = [headers.get(name) for name in (PUBLIC_KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER)]
    if any(value is None for value in values):
        raise SignatureError("unsigned", "the request carries no signature of a site")
    public_key, time, signature = (str(value) for value in values)
    try:
        key = serialization.load_pem_public_key(base64.b64decode(public_key, validate=True))
        signed_at = datetime.fromisoformat(time)
        signature_bytes = base64.b64decode(signature, validate=True)
        message = time.encode("ascii")
    except (ValueError, binascii.Error, UnsupportedAlgorithm):
        raise SignatureError("malformed", "the headers of the signature are malformed") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or signed_at.tzinfo is None:
        raise SignatureError("malformed", "expected a key on an elliptic curve and a time with its zone")
    age_s = (now - signed_at).total_seconds()
    if not -NEWEST_S < age_s < OLDEST_S:
        raise SignatureError("clock", f"signed {age_s:.0f} s ago by the site's clock, expected 0 to {OLDEST_S:.0f}")
    try:
        key.verify(signature_bytes, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SignatureError("forged", "the signature is not that of the key") from None
    return key


def public_key_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as PEM (SubjectPublicKeyInfo), as it stands in the header."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key as `ssh-keygen -l` shows it, such as `SHA256:Ql9…`."""
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(base64.b64decode(text.split()[1]))
    return "SHA256:" + base64.b64encode(digest.finalize()).decode("ascii").rstrip("=")
