"""How a site comes to trust a new certificate authority: one that it trusts already signs the new one's certificate.

A connection proves only who holds the gateway's key. That key lies on a machine in the network; those of authorities
need not. So what a gateway says of authorities counts only with such a signature.
"""

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from common.authorities import certificate_digest
from common.documents import Settings

_PURPOSE = b"gliorn-voucher-1\n"
"""Begins what is signed, so that no other signature of an authority can be taken for a voucher."""

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Voucher(Settings):
    """The word of one authority for another."""

    authority: _Sha256 = Field(description="SHA-256 of the certificate (DER, hexadecimal) that is vouched for")
    by: _Sha256 = Field(description="the same of the one that vouches")
    signature: str = Field(
        pattern=r"^[A-Za-z0-9+/]{1,400}={0,2}$", description="ECDSA with SHA-384 over the certificate, DER, in base64"
    )


def vouch(authority: x509.Certificate, *, by: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Voucher:
    """Sign an authority with the key of another."""
    signature = key.sign(_signed(authority), ec.ECDSA(hashes.SHA384()))
    return Voucher(
        authority=certificate_digest(authority),
        by=certificate_digest(by),
        signature=base64.b64encode(signature).decode("ascii"),
    )


def is_vouched_for(
    authority: x509.Certificate, vouchers: Iterable[Voucher], *, trusted: Iterable[x509.Certificate]
) -> bool:
    """Whether a certificate is one of an authority, and one that is trusted already vouches for it."""
    digest, by_digest = certificate_digest(authority), {certificate_digest(each): each for each in trusted}
    return _is_authority(authority) and any(
        _holds(voucher, authority, by=by_digest[voucher.by])
        for voucher in vouchers
        if voucher.authority == digest and voucher.by in by_digest
    )


def _holds(voucher: Voucher, authority: x509.Certificate, *, by: x509.Certificate) -> bool:
    try:
        key = by.public_key()
        signature = base64.b64decode(voucher.signature, validate=True)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, _signed(authority), ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, binascii.Error):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _signed(authority: x509.Certificate) -> bytes:
    return _PURPOSE + authority.public_bytes(serialization.Encoding.DER)
