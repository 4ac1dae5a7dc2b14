"""The certificate authorities of a federation, as PEM texts and as the digests by which both sides name them."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from common.errors import ConfigError


def certificates_in(pem: bytes, *, origin: str) -> list[x509.Certificate]:
    """The certificates of a PEM text, in its order.

    Args:
        pem: The text; what stands around the certificates is ignored.
        origin: What the reader knows the text as, such as a file name; begins the message.

    Raises:
        ConfigError: If it holds none, or one that cannot be read.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(f"{origin}: no readable certificate in it, expected one or more in PEM format") from None


def certificate_digest(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's DER form in hexadecimal; `openssl x509 -fingerprint -sha256` shows it with colons."""
    return certificate.fingerprint(hashes.SHA256()).hex()
