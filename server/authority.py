"""The federation's certificate authority, the gateway's certificate, and the change from one authority to the next.

All state is in plain files. `authority/ca-N.crt` and `ca-N.key` are the authorities ever made; `authority/trusted.crt`
holds the certificates that sites should trust: one, or two while a change is under way, and `authority/vouchers.json`
the signatures of older authorities on newer ones, without which no site trusts one. The authority that signs is the one
that signed `gateway/server.crt`.
"""

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import TypeAdapter, ValidationError

from common.authorities import certificate_digest, certificates_in
from common.errors import ConfigError, list_of_faults
from common.vouchers import Voucher, vouch
from server.federation_folder import FederationFolder, admitted
from server.invites import open_invites
from server.private_files import make_private_folder, write_all_private, write_private
from server.provisioning import (
    CertificateAuthority,
    make_certificate_authority,
    make_server_certificate,
    private_key_pem,
)
from server.sightings import read_sightings

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)
WARN_SERVER = timedelta(days=30)
WARN_AUTHORITY = SERVER_LIFETIME
"""An authority that ends sooner than this cannot sign a certificate of full length."""


_VOUCHERS = TypeAdapter(tuple[Voucher, ...])


@dataclass(frozen=True)
class CertificateState:
    """One certificate of a federation, as `gliorn-server certs` shows it.

    Attributes:
        name: "server", or "ca-N".
        digest: SHA-256 of the certificate in hexadecimal.
        expires_at: ISO 8601 with time zone.
        days_left: Whole days; negative when it has expired.
        note: What it is for.
        advice: What to do, where something is to be done.
    """

    name: str
    digest: str
    expires_at: str
    days_left: int
    note: str
    advice: str | None


def make_first_authority(folder: FederationFolder, *, name: str, now: datetime) -> None:
    """Make the folder `authority/` with one authority, which is trusted."""
    make_private_folder(folder.authority)
    authority = _make_authority(folder, name=name, now=now)
    write_private(folder.authorities, authority.certificate)


def write_server_certificate(
    folder: FederationFolder, authority: CertificateAuthority, *, hosts: tuple[str, ...], now: datetime
) -> x509.Certificate:
    """Make a key and a certificate for the gateway; a gateway that runs takes them without a restart.

    Raises:
        ConfigError: If a host is none, or the authority has expired.
    """
    require_hosts(hosts)
    lifetime = min(SERVER_LIFETIME, x509.load_pem_x509_certificate(authority.certificate).not_valid_after_utc - now)
    if lifetime <= timedelta(0):
        raise ConfigError(
            "the authority has expired, and every site with it; make a new federation with `gliorn-server init`"
        )
    certificate, key = make_server_certificate(authority, hosts=list(hosts), now=now, lifetime=lifetime)
    make_private_folder(folder.gateway)
    write_all_private({folder.certificate_key: key, folder.certificate: certificate})
    return x509.load_pem_x509_certificate(certificate)


def trusted_authorities(folder: FederationFolder) -> list[x509.Certificate]:
    """The certificates that sites should trust, the oldest first.

    Raises:
        ConfigError: If the file is absent or damaged.
    """
    try:
        pem = folder.authorities.read_bytes()
    except OSError:
        raise ConfigError(f"{folder.authorities}: cannot be read; restore the folder authority/ from a copy") from None
    return certificates_in(pem, origin=str(folder.authorities))


def vouchers(folder: FederationFolder) -> tuple[Voucher, ...]:
    """What authorities said for the ones that sites should trust now.

    Raises:
        ConfigError: If the file or the authorities are damaged.
    """
    path = _vouchers_file(folder)
    try:
        written = _VOUCHERS.validate_json(path.read_bytes())
    except FileNotFoundError:  # no authority was ever added
        return ()
    except (OSError, ValidationError):
        raise ConfigError(f"{path}: unreadable; restore the folder authority/ from a copy") from None
    wanted = {certificate_digest(authority) for authority in trusted_authorities(folder)}
    return tuple(voucher for voucher in written if voucher.authority in wanted)


def signing_authority(folder: FederationFolder) -> CertificateAuthority:
    """The authority that signs: the trusted one that signed the server's certificate, else the oldest trusted one.

    Raises:
        ConfigError: If its key is absent or damaged.
    """
    return _with_key(folder, _signer(folder))


def renew_server_certificate(folder: FederationFolder, *, now: datetime) -> x509.Certificate:
    """Replace the gateway's certificate by one for the hosts that federation.yaml names now; no site is touched."""
    with folder.locked_register():
        hosts = folder.read_config().hosts
        return write_server_certificate(folder, signing_authority(folder), hosts=hosts, now=now)


def add_authority(folder: FederationFolder, *, now: datetime) -> x509.Certificate:
    """Make a second authority that sites should trust; the first goes on signing, and vouches for the second.

    Raises:
        ConfigError: If there are two already, or the first's key is absent.
    """
    with folder.locked_register():
        trusted = trusted_authorities(folder)
        if len(trusted) > 1:
            raise ConfigError(
                f"{folder.authorities}: holds {len(trusted)} authorities already, expected one; finish the change with "
                "`gliorn-server certs use-new-authority` and `gliorn-server certs retire-old-authority`"
            )
        name = folder.read_config().name
        first = _with_key(folder, trusted[0])
        added = x509.load_pem_x509_certificate(_make_authority(folder, name=name, now=now).certificate)
        known = (*vouchers(folder), vouch(added, by=trusted[0], key=first.key))
        # Before the authority is named to sites, which would otherwise ask in vain.
        write_private(_vouchers_file(folder), _VOUCHERS.dump_json(known, indent=1) + b"\n")
        write_private(folder.authorities, _pem(*trusted, added))
        return added


def use_new_authority(folder: FederationFolder, *, now: datetime, force: bool) -> x509.Certificate:
    """Have the newest authority sign the gateway's certificate from now on.

    Args:
        folder: The federation.
        now: The coordinator's clock, with time zone.
        force: Whether to do so although some sites do not trust it yet and will be cut off.

    Raises:
        ConfigError: If there is no second authority, it signs already, or sites do not trust it yet; names them.
    """
    with folder.locked_register():
        trusted = trusted_authorities(folder)
        if len(trusted) < 2:
            raise ConfigError(
                f"{folder.authorities}: holds one authority, expected two; begin with `gliorn-server certs "
                "new-authority`"
            )
        new = trusted[-1]
        if _signer(folder) == new:
            raise ConfigError(
                "the new authority signs already; when all sites have been seen since, go on with `gliorn-server certs "
                "retire-old-authority`"
            )
        left_out = _who_would_be_cut_off(folder, certificate_digest(new), now=now)
        if left_out and not force:
            raise ConfigError(
                list_of_faults("the new authority cannot be used yet", left_out)
                + "\nA site trusts it after its next hello. Wait for these, revoke them, or cut them off with --force."
            )
        hosts = folder.read_config().hosts
        return write_server_certificate(folder, _with_key(folder, new), hosts=hosts, now=now)


def retire_old_authority(folder: FederationFolder) -> x509.Certificate:
    """Trust the authority alone that signs; its predecessor's files stay and can be deleted.

    Returns:
        The authority that is trusted no more.

    Raises:
        ConfigError: If no other is trusted, or the old one still signs.
    """
    with folder.locked_register():
        trusted = trusted_authorities(folder)
        if len(trusted) < 2:
            raise ConfigError(f"{folder.authorities}: holds one authority, which signs; there is none to retire")
        if _signer(folder) != trusted[-1]:
            raise ConfigError(
                "the old authority still signs the server's certificate; first `gliorn-server certs use-new-authority`"
            )
        write_private(folder.authorities, _pem(trusted[-1]))
        return trusted[0]


def certificate_states(folder: FederationFolder, *, now: datetime) -> list[CertificateState]:
    """All certificates that matter now, the authorities first.

    Raises:
        ConfigError: If the authorities are absent or damaged.
    """
    signer = _signer(folder)
    states = []
    for authority in trusted_authorities(folder):
        note = "trusted, signs the server's certificate" if authority == signer else "trusted"
        advice = None
        if authority == signer and authority.not_valid_after_utc - now < WARN_AUTHORITY:
            advice = "change to a new one: begin with `gliorn-server certs new-authority`"
        states.append(_state(_name_of(folder, authority), authority, note=note, advice=advice, now=now))
    server = server_certificate(folder)
    if server is None:
        raise ConfigError(f"{folder.certificate}: no readable certificate; `gliorn-server certs renew` makes one")
    note = f"for {', '.join(hosts_of(server))}, signed by {_name_of(folder, signer)}"
    soon = server.not_valid_after_utc - now < WARN_SERVER
    advice = "renew it: `gliorn-server certs renew`" if soon else None
    if not _key_fits(folder, server):
        advice = "its private key is another: `gliorn-server certs renew`"
    elif not _is_signed_by(server, signer):
        advice = "no trusted authority signed it: `gliorn-server certs renew`"
    elif set(map(_plain_host, folder.read_config().hosts)) != set(hosts_of(server)):
        advice = "federation.yaml names other hosts: `gliorn-server certs renew`"
    states.append(_state("server", server, note=note, advice=advice, now=now))
    return states


def server_certificate(folder: FederationFolder) -> x509.Certificate | None:
    """The gateway's certificate; None if it is absent or damaged."""
    try:
        return x509.load_pem_x509_certificate(folder.certificate.read_bytes())
    except (OSError, ValueError):
        return None


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Names and addresses that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def require_hosts(hosts: tuple[str, ...]) -> None:
    """Check that a certificate can be made for these hosts.

    Raises:
        ConfigError: If one is neither an address nor a name in ASCII; names all.
    """
    faults = [
        f"host is {host!r}, expected an IP address or a name of letters, digits, '.' and '-' (umlauts as punycode)"
        for host in hosts
        if not _is_address(host) and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host)
    ]
    if faults:
        raise ConfigError(list_of_faults("hosts", faults))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # an address with a zone means something on one machine alone


def _plain_host(host: str) -> str:
    """A host as a certificate holds it: addresses in their one shortest form."""
    return str(ipaddress.ip_address(host)) if _is_address(host) else host


def _make_authority(folder: FederationFolder, *, name: str, now: datetime) -> CertificateAuthority:
    """Make the next authority's files, its key before its certificate."""
    number = 1 + max((_number(path) for path in folder.authority.glob("ca-*.key")), default=0)
    authority = make_certificate_authority(f"gliorn {name[:40]} CA {number}", now=now, lifetime=AUTHORITY_LIFETIME)
    write_all_private(
        {
            folder.authority / f"ca-{number}.key": private_key_pem(authority.key),
            folder.authority / f"ca-{number}.crt": authority.certificate,
        }
    )
    return authority


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("ca-")
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _signer(folder: FederationFolder) -> x509.Certificate:
    trusted = trusted_authorities(folder)
    server = server_certificate(folder)
    signers = [authority for authority in trusted if server is not None and _is_signed_by(server, authority)]
    return signers[0] if signers else trusted[0]


def _is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _vouchers_file(folder: FederationFolder) -> Path:
    return folder.authority / "vouchers.json"


def _file_of(folder: FederationFolder, authority: x509.Certificate) -> Path:
    """The file in authority/ that holds a certificate."""
    for path in sorted(folder.authority.glob("ca-*.crt")):
        if authority in certificates_in(path.read_bytes(), origin=str(path)):
            return path
    raise ConfigError(
        f"{folder.authority}: no ca-N.crt holds the trusted authority {certificate_digest(authority)}; restore the "
        "folder from a copy"
    )


def _name_of(folder: FederationFolder, authority: x509.Certificate) -> str:
    return _file_of(folder, authority).stem


def _with_key(folder: FederationFolder, authority: x509.Certificate) -> CertificateAuthority:
    path = _file_of(folder, authority).with_suffix(".key")
    key = _private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise ConfigError(f"{path}: not the key of the authority beside it; restore the folder authority/ from a copy")
    return CertificateAuthority(_pem(authority), key)


def _key_fits(folder: FederationFolder, certificate: x509.Certificate) -> bool:
    key = _private_key(folder.certificate_key)
    return isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()


def _private_key(path: Path) -> object:
    """The private key in a file; None if it is absent or damaged."""
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _who_would_be_cut_off(folder: FederationFolder, new: str, *, now: datetime) -> list[str]:
    """Admitted sites that have not said that they trust an authority, and invites made before it."""
    sightings = read_sightings(folder.sightings)
    found = []
    for site in admitted(folder.read_register()):
        if site not in sightings:
            found.append(f"{site}: not seen yet")
        elif new not in sightings[site].authorities:
            found.append(f"{site}: does not trust it yet, last seen {sightings[site].last_seen}")
    invites = open_invites(folder, now=now)
    return found + [
        f"{invite.site}: its invite was made before and is not used yet; invite it anew"
        for invite in invites
        if new not in invite.authorities
    ]


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _state(
    name: str, certificate: x509.Certificate, *, note: str, advice: str | None, now: datetime
) -> CertificateState:
    expires = certificate.not_valid_after_utc
    return CertificateState(
        name=name,
        digest=certificate_digest(certificate),
        expires_at=expires.astimezone(UTC).isoformat(),
        days_left=(expires - now) // timedelta(days=1),
        note=note,
        advice=advice,
    )
