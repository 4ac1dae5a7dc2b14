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

PASSING_FAULTS = ("unreachable", "unavailable")
"""Faults that mend themselves; all others need a person."""


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
            changed = self._take_over(reply)
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

    def _take_over(self, reply: HelloReply) -> bool:
        """Add the authorities of the reply to those trusted, and drop retired ones if nothing needs them.

        The reply came over a connection that was checked with what is trusted already.
        """
        path = self._kit.ca_certificate
        try:
            offered = certificates_in(reply.authorities.encode(), origin="the coordinator")
        except ConfigError:  # it names none
            return False
        trusted = certificates_in(path.read_bytes(), origin=str(path))
        new, old = _digests(offered), _digests(trusted)
        if new == old:
            return False
        wanted = (
            offered
            if self._verifies_with(offered)
            else [*trusted, *(c for c in offered if certificate_digest(c) not in old)]
        )
        if _digests(wanted) == old:
            return False
        write_atomically(path, _pem(wanted))
        return True

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
