"""The files of a membership: the site's key, and the authorities that the coordinator is checked against."""

import stat
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from client.coordinator import site_key
from client.kit import Kit
from client.rehearsal.findings import Finding
from client.rehearsal.route import DAYS_TO_RENEW
from common.authorities import certificates_in
from common.errors import ConfigError
from common.site_signature import key_fingerprint

_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def check_key(kit: Kit) -> tuple[Finding, ...]:
    """Whether the site's key can be used, and by its owner alone."""
    try:
        key = site_key(kit)
    except ConfigError as error:
        return (_from_error("key", error),)
    if not isinstance(key.curve, ec.SECP384R1):
        found = f"{kit.private_key}: a key on {key.curve.name}, expected secp384r1 (NIST P-384)"
        return (Finding("kit", "key", "FAIL", found, "ask the coordinator for a new invite and enrol again"),)
    fingerprint = key_fingerprint(key.public_key())
    readable = Finding("kit", "key", "ok", f"{kit.private_key}: ECDSA on NIST P-384, {fingerprint}")
    mode = stat.S_IMODE(kit.private_key.stat().st_mode)
    if mode & _OF_OTHERS:
        found = f"{kit.private_key} is open to other users of this machine (mode {mode:04o}), expected 0600"
        return (readable, Finding("kit", "key file", "FAIL", found, f"chmod 600 {kit.private_key}"))
    return (readable, Finding("kit", "key file", "ok", f"for its owner alone (mode {mode:04o})"))


def check_authorities(kit: Kit, *, now: datetime) -> tuple[Finding, ...]:
    """How long each authority in the kit is still good."""
    try:
        certificates = certificates_in(kit.ca_certificate.read_bytes(), origin=str(kit.ca_certificate))
    except ConfigError as error:
        return (_from_error("authority", error),)
    return tuple(_authority(certificate, alone=len(certificates) == 1, now=now) for certificate in certificates)


def _authority(certificate: x509.Certificate, *, alone: bool, now: datetime) -> Finding:
    name = certificate.subject.rfc4514_string()
    days = (certificate.not_valid_after_utc - now) // timedelta(days=1)
    if days < 0:
        found = f"{name} expired {-days} days ago"
        if alone:
            return Finding("kit", "authority", "FAIL", found, "ask the coordinator for a new invite")
        return Finding("kit", "authority", "warning", found, "nothing, as long as the others are valid")
    found = f"{name} is valid for {days} days more"
    if days < DAYS_TO_RENEW:
        advice = "tell the coordinator: `gliorn-server certs` shows how a new authority is rolled in"
        return Finding("kit", "authority", "warning", found, advice)
    return Finding("kit", "authority", "ok", found)


def _from_error(name: str, error: ConfigError) -> Finding:
    found, _, advice = str(error).partition("; ")
    return Finding("kit", name, "FAIL", found, advice)
