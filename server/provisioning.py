"""Certificates for the coordinator and key pairs for sites, in the formats that Flower 1.41 reads."""

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = timedelta(hours=1)
"""Certificates count from this long before they were made, for sites whose clocks are a little behind."""


@dataclass(frozen=True)
class CertificateAuthority:
    """A certificate authority of a federation's own.

    Attributes:
        certificate: PEM; what sites check the coordinator against.
        key: Signs the coordinator's certificates; never leaves the coordinator.
    """

    certificate: bytes
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class KeyPair:
    """A site's key pair on NIST P-384 in OpenSSH format, the only format that Flower's SuperNode reads."""

    private_key: bytes
    public_key: bytes


def make_certificate_authority(name: str, *, now: datetime, lifetime: timedelta) -> CertificateAuthority:
    """Make a certificate authority that signs itself.

    Args:
        name: Common name.
        now: When it is made, with time zone.
        lifetime: How long it is valid from then on.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _common_name(name)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, key.public_key(), now=now, lifetime=lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    return CertificateAuthority(certificate.public_bytes(serialization.Encoding.PEM), key)


def make_server_certificate(
    authority: CertificateAuthority, *, hosts: list[str], now: datetime, lifetime: timedelta
) -> tuple[bytes, bytes]:
    """Make a TLS server certificate.

    Args:
        authority: Signs it.
        hosts: Names and addresses under which sites reach the coordinator.
        now: When it is made, with time zone.
        lifetime: How long it is valid from then on.

    Returns:
        The certificate and its private key, both PEM.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    issuer = x509.load_pem_x509_certificate(authority.certificate).subject
    subject = _common_name(hosts[0])
    issuer_key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, issuer, key.public_key(), now=now, lifetime=lifetime)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key_id, critical=False)
        .sign(authority.key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private_key_pem(key)


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM (PKCS 8), unencrypted: the file's rights guard it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_site_key_pair() -> KeyPair:
    """Make a key pair for a site."""
    key = ec.generate_private_key(ec.SECP384R1())
    private_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public_key = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private_key, public_key + b"\n")


def _common_name(name: str) -> x509.Name:
    """A subject; X.509 allows 64 characters, and what is checked stands in the alternative names."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
