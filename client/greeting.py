"""What a site does before it connects and every ten minutes after: says hello and keeps up with what it is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from client.config import SiteConfig
from client.coordinator import HelloError, say_hello
from client.kit import Kit
from client.private_files import write_atomically
from client.rehearsal.route import route_to, walk
from common.authorities import certificate_digest, certificates_in
from common.bundle import bundle_digest, installed_bundle
from common.errors import ConfigError
from common.hello import HelloReply
from common.vouchers import is_vouched_for

PASSING_FAULTS = ("unreachable", "unavailable")
"""Faults that mend themselves; all others need a person."""

MOST_AUTHORITIES = 4
"""So many a site trusts at once; a change from one to the next needs two."""


@dataclass(frozen=True)
class Greeting:
    """How the coordinator answered.

    Attributes:
        refusal: Why this site cannot connect now; None if it can.
        passing: Whether the reason may pass by itself.
        notes: What a person at the site should know besides.
        authorities_changed: Whether the site trusts other authorities than before, which a program that runs does
            not know yet.
        federation: The federation's name.
    """

    refusal: str | None = None
    passing: bool = False
    notes: tuple[str, ...] = ()
    authorities_changed: bool = False
    federation: str = ""


class Greeter:
    """Says hello for one site."""

    def __init__(
        self,
        kit: Kit,
        config: SiteConfig,
        *,
        installed_version: str,
        environment: Mapping[str, str],
        now: Callable[[], datetime],
    ) -> None:
        """Say nothing yet.

        Args:
            kit: The site's membership; its file of authorities is kept up to date.
            config: The site's configuration.
            installed_version: Version of gliorn here.
            environment: Names the proxies to use.
            now: The site's clock, with time zone.
        """
        self._kit, self._config, self._now = kit, config, now
        self._version, self._environment = installed_version, environment
        self._bundle = bundle_digest(installed_bundle())

    def greet(self) -> Greeting:
        """Say hello and take over the authorities that the coordinator names. Takes as long as the network does."""
        try:
            reply = say_hello(self._kit, self._config, now=self._now())
        except HelloError as error:
            text = None
            if error.fault == "certificate":
                text = _why_untrusted(self._kit, self._environment, self._now())
            return Greeting(text or str(error), passing=error.fault in PASSING_FAULTS)
        except (ConfigError, OSError) as error:
            return Greeting(str(error))
        notes = self._notes(reply)
        try:
            changed, strange = self._take_over(reply)
            notes = (*notes, *strange)
        except (ConfigError, OSError) as error:  # those trusted already do for now
            changed, notes = False, (*notes, f"the coordinator's authorities cannot be kept here: {error}")
        return Greeting(notes=notes, authorities_changed=changed, federation=reply.federation)

    def _notes(self, reply: HelloReply) -> tuple[str, ...]:
        notes = []
        if reply.version != self._version:
            notes.append(
                f"the coordinator runs gliorn {reply.version}, this site {self._version}; agree on one version"
            )
        if reply.bundle_digest != self._bundle:
            notes.append(
                f"the coordinator's app bundle is {reply.bundle_digest[:16]}, this site's is {self._bundle[:16]}, so "
                "this site will refuse its runs; install the version of gliorn and Flower that the coordinator runs"
            )
        return tuple(notes)

    def _take_over(self, reply: HelloReply) -> tuple[bool, tuple[str, ...]]:
        """Add authorities of the reply that a trusted one vouches for, and drop retired ones if nothing needs them.

        The reply came over a connection that was checked with what is trusted already; but whoever has stolen the
        gateway's key can make one too, and it must not outlast that key's certificate.

        Returns:
            Whether the site trusts others than before, and what a person should know.
        """
        path = self._kit.ca_certificate
        try:
            offered = certificates_in(reply.authorities.encode(), origin="the coordinator")
        except ConfigError:  # it names none
            return False, ()
        trusted = certificates_in(path.read_bytes(), origin=str(path))
        old = _digests(trusted)
        offered = list(dict.fromkeys(offered))
        new = [each for each in offered if certificate_digest(each) not in old]
        vouched = [each for each in new if is_vouched_for(each, reply.vouchers, trusted=trusted)]
        vouched = vouched[: max(0, MOST_AUTHORITIES - len(old))]
        notes = tuple(
            f"the coordinator names an authority that none trusted here vouches for, SHA-256 {certificate_digest(each)}"
            "; this site does not trust it; ask the coordinator by telephone whether it is theirs"
            for each in new[:MOST_AUTHORITIES]
            if each not in vouched
        )
        kept = [each for each in offered if each not in new]
        remaining = kept + vouched
        drops_some = len(kept) < len(old)
        wanted = remaining if drops_some and remaining and self._verifies_with(remaining) else trusted + vouched
        if _digests(wanted) == old:
            return False, notes
        write_atomically(path, _pem(wanted))
        return True, notes

    def _verifies_with(self, authorities: list[x509.Certificate]) -> bool:
        """Whether the coordinator's present certificate is one of these authorities' alone."""
        candidate = self._kit.folder / ".authorities.offered"
        write_atomically(candidate, _pem(authorities))
        try:
            say_hello(replace(self._kit, ca_certificate=candidate), self._config, now=self._now())
        except (HelloError, ConfigError):
            return False
        finally:
            candidate.unlink(missing_ok=True)
        return True


def _digests(certificates: list[x509.Certificate]) -> set[str]:
    return {certificate_digest(certificate) for certificate in certificates}


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def _why_untrusted(kit: Kit, environment: Mapping[str, str], now: datetime) -> str | None:
    """Which certificate is presented in place of the coordinator's, and what to do; None if it looks right now."""
    try:
        walked = walk(route_to(kit.address, environment), kit.ca_certificate, now=now)
    except ConfigError as error:  # about a proxy in the environment
        return str(error)
    if walked.arrived:
        return None
    fault = walked.findings[-1]
    return f"{fault.found}; {fault.advice}"
