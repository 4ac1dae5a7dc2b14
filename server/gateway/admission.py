"""Who a request is from: its signature is checked and its key looked up in the register of admitted sites."""

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from common.errors import ConfigError, GliornError
from common.hello import HelloFault
from common.site_signature import (
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    TIME_HEADER,
    SignatureError,
    key_fingerprint,
    public_key_pem,
    verified_key,
)
from server.federation_folder import AdmittedSite, FederationFolder
from server.gateway.limits import network_of

SIGNATURE_HEADERS = (PUBLIC_KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER)


class RefusedError(GliornError):
    """A request is not from an admitted site.

    Attributes:
        fault: What the peer is told.
        site: Whose key signed it, where the register knows the key.
        fingerprint: Of the key that signed it; None if the signature did not hold.
    """

    code = "refused"

    def __init__(self, fault: HelloFault, *, site: str | None = None, fingerprint: str | None = None) -> None:
        super().__init__(fault)
        self.fault = fault
        self.site = site
        self.fingerprint = fingerprint


class FloodError(GliornError):
    """An address has sent too many requests that no admitted site signed; this one was not looked at."""

    code = "flood"


@dataclass(frozen=True)
class _Keys:
    """The register by key: the text of the key's header for those that count, the fingerprint for all."""

    headers: frozenset[str]
    sites: dict[str, AdmittedSite]


class Register:
    """The register of admitted sites, read again whenever its file has changed."""

    def __init__(self, folder: FederationFolder) -> None:
        self._folder = folder
        self._stamp: object = None
        self._keys: _Keys | None = None

    def keys(self) -> _Keys:
        """The keys as the register has them now.

        Raises:
            ConfigError: If the register is damaged.
        """
        stamp = self._stamp_of_file()
        if self._keys is None or stamp != self._stamp:
            self._keys = None
            self._keys = _by_key(self._folder)
            self._stamp = stamp
        return self._keys

    def _stamp_of_file(self) -> object:
        try:
            found = self._folder.register.stat()
        except OSError:
            return "absent"
        return found.st_ino, found.st_mtime_ns, found.st_size


def _by_key(folder: FederationFolder) -> _Keys:
    headers: set[str] = set()
    sites: dict[str, AdmittedSite] = {}
    for site in folder.read_register():
        try:
            key = load_ssh_public_key(site.public_key.encode("ascii"))
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ConfigError(f"{folder.register}: the key of {site.name} is unreadable; restore it from a copy")
        fingerprint = key_fingerprint(key)
        if site.revoked_at is None:
            headers.add(base64.b64encode(public_key_pem(key)).decode("ascii"))
            sites[fingerprint] = site
        else:
            sites.setdefault(fingerprint, site)
    return _Keys(frozenset(headers), sites)


class Admission:
    """Decides whose request it is.

    Args:
        register: The admitted sites.
        may_look: Whether a request of an address (in IPv6 of a /64) may be looked at although no admitted key is
            named in it. Checking a signature takes time, so a flood must not get that far.
    """

    def __init__(self, register: Register, may_look: Callable[[str], bool]) -> None:
        self._register = register
        self._may_look = may_look

    def site_of(self, headers: Iterable[tuple[bytes, bytes]], *, address: str, now: datetime) -> AdmittedSite:
        """The admitted site that signed a request.

        Args:
            headers: Of the request, names in lower case.
            address: Of the peer.
            now: The gateway's clock, with time zone.

        Raises:
            RefusedError: If it is from nobody who is admitted.
            FloodError: If the address has sent too many such requests.
            ConfigError: If the register is damaged, so that nobody can be let in.
        """
        keys = self._register.keys()
        signature = _signature_headers(headers)
        known = signature is not None and signature.get(PUBLIC_KEY_HEADER) in keys.headers
        if not known and not self._may_look(network_of(address)):
            raise FloodError("too many requests of no admitted site")
        try:
            if signature is None:
                raise RefusedError("malformed")
            key = verified_key(signature, now)
        except SignatureError as error:
            if known and not self._may_look(network_of(address)):
                raise FloodError("too many requests of no admitted site") from None
            raise RefusedError(error.fault) from None
        fingerprint = key_fingerprint(key)
        site = keys.sites.get(fingerprint)
        if site is None:
            raise RefusedError("unknown-key", fingerprint=fingerprint)
        if site.revoked_at is not None:
            raise RefusedError("revoked", site=site.name, fingerprint=fingerprint)
        return site


def _signature_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str] | None:
    """The headers of the signature by name; None if one is there twice: who reads which would be left to chance."""
    found: dict[str, str] = {}
    for raw_name, value in headers:
        name = raw_name.decode("latin-1")
        if name in SIGNATURE_HEADERS:
            if name in found:
                return None
            found[name] = value.decode("latin-1")
    return found
