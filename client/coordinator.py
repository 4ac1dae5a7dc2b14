"""Asking the coordinator's gateway who it is and what it offers, over TLS and signed with the site's key."""

import ssl
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Literal

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from client.config import SiteConfig
from client.kit import Kit
from common.authorities import certificate_digest, certificates_in
from common.bundle import bundle_digest, installed_bundle
from common.errors import ConfigError, GliornError
from common.hello import HELLO_PATH, MAX_AUTHORITIES, Hello, HelloFault, HelloRefusal, HelloReply
from common.site_signature import key_fingerprint, signed_headers

TIMEOUT_S = 20.0
"""How long each step of a hello may take: to connect, to send, and between two pieces of the answer."""
MAX_REPLY_BYTES = 8 * 2**20
"""Longest answer that is read."""

CoordinatorFault = Literal["unreachable", "proxy", "certificate", "not-a-gateway", "unavailable"] | HelloFault
"""Why a hello failed: on the way, at the check of the certificate, or as the gateway says."""


class HelloError(GliornError):
    """The coordinator did not answer a hello as one that has admitted this site.

    Attributes:
        fault: "unreachable" and "unavailable" may mend themselves; all others need a person.
        clock_difference: How far the coordinator's clock is ahead of this site's; None where it told no time.
    """

    code = "hello"

    def __init__(self, fault: CoordinatorFault, text: str, *, clock_difference: timedelta | None = None) -> None:
        super().__init__(text)
        self.fault: CoordinatorFault = fault
        self.clock_difference = clock_difference


def say_hello(kit: Kit, config: SiteConfig, *, now: datetime) -> HelloReply:
    """Ask the coordinator for what it tells an admitted site; changes nothing at the site.

    Proxies that the environment names (HTTPS_PROXY, ALL_PROXY, NO_PROXY) are used.

    Args:
        kit: The site's membership.
        config: The site's configuration; its name alone is told.
        now: This site's clock, with time zone.

    Raises:
        ConfigError: If the kit's certificate or key cannot be read.
        HelloError: If the coordinator is not reached, is not the one of the kit, or does not know the site.
    """
    key = site_key(kit)
    trusted = certificates_in(kit.ca_certificate.read_bytes(), origin=str(kit.ca_certificate))
    hello = Hello(
        site=config.name,
        federation_id=kit.federation_id or "",
        version=version("gliorn"),
        bundle_digest=bundle_digest(installed_bundle()),
        authorities=tuple(certificate_digest(certificate) for certificate in trusted[:MAX_AUTHORITIES]),
    )
    status, body = _post(kit, hello, signed_headers(key, now))
    if status == httpx.codes.UNAUTHORIZED:
        raise _refused(kit, key, body, now=now)
    if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        raise HelloError(
            "unavailable", f"the coordinator at {kit.address} is not ready (HTTP {status}); try again in a minute"
        )
    if status != httpx.codes.OK:
        raise _not_a_gateway(kit, f"it answered HTTP {status}")
    try:
        reply = HelloReply.model_validate_json(body)
        clock_difference(reply, now=now)
    except ValidationError as error:
        raise _not_a_gateway(kit, f"its answer is unreadable{_faulty_settings(error)}") from None
    except ValueError:
        raise _not_a_gateway(kit, "its answer is unreadable: time") from None
    if kit.federation_id is not None and reply.federation_id != kit.federation_id:
        raise HelloError(
            "other-federation",
            f"the coordinator at {kit.address} is of federation {reply.federation!r} (id {reply.federation_id}), but "
            f"this kit was made for {kit.federation or 'another'} (id {kit.federation_id}): a kit from another "
            "federation; ask the coordinator for a new invite",
            clock_difference=clock_difference(reply, now=now),
        )
    return reply


def clock_difference(reply: HelloReply | HelloRefusal, *, now: datetime) -> timedelta:
    """How far the coordinator's clock is ahead of this site's, but for the time the answer was on its way.

    Raises:
        ValueError: If the coordinator's time is none, or has no zone.
    """
    time = datetime.fromisoformat(reply.time)
    if time.tzinfo is None:
        raise ValueError("the coordinator's time has no zone")
    return time - now


def site_key(kit: Kit) -> ec.EllipticCurvePrivateKey:
    """The site's private key.

    Raises:
        ConfigError: If the file is not an unencrypted key on an elliptic curve in OpenSSH format.
    """
    try:
        key = serialization.load_ssh_private_key(kit.private_key.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{kit.private_key}: not a site's key, expected an unencrypted ECDSA key in OpenSSH format as "
            "`gliorn-client enroll` makes it; restore it from a copy, or ask the coordinator for a new invite"
        )
    return key


def _post(kit: Kit, hello: Hello, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body of the answer."""
    try:
        client = httpx.Client(verify=ssl.create_default_context(cafile=str(kit.ca_certificate)), timeout=TIMEOUT_S)
    except (ValueError, ImportError, httpx.InvalidURL) as error:  # all of them about a proxy in the environment
        raise HelloError(
            "proxy",
            f"the proxy that the environment names cannot be used ({error}); write it as http://host:port in "
            "HTTPS_PROXY, or unset it",
        ) from None
    try:
        with (
            client,
            client.stream(
                "POST",
                f"https://{kit.address}{HELLO_PATH}",
                content=hello.model_dump_json(),
                headers={**headers, "content-type": "application/json"},
            ) as response,
        ):
            body = b""
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_REPLY_BYTES:
                    raise _not_a_gateway(kit, f"its answer is longer than {MAX_REPLY_BYTES} bytes")
            return response.status_code, body
    except httpx.ProxyError as error:
        raise HelloError(
            "proxy",
            f"the proxy that the environment names did not let the connection to {kit.address} through ({error}); "
            "have it allow CONNECT to this address, or name the address in NO_PROXY",
        ) from None
    except httpx.TransportError as error:
        refusal = _certificate_refusal(error)
        if refusal is not None:
            raise HelloError(
                "certificate",
                f"what answers at {kit.address} is not the coordinator that {kit.ca_certificate} vouches for "
                f"({refusal}); a proxy that opens TLS on the way looks like this too: have it let this address pass "
                "untouched",
            ) from None
        raise HelloError(
            "unreachable",
            f"the coordinator at {kit.address} cannot be reached ({error or type(error).__name__}); check the address, "
            "this machine's network, and that its firewall lets connections out to that port",
        ) from None
    except (httpx.DecodingError, httpx.InvalidURL) as error:
        raise _not_a_gateway(kit, str(error)) from None


def _certificate_refusal(error: BaseException) -> str | None:
    """Why the certificate was refused, in OpenSSL's words; None if the error is of another kind."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None


def _refused(kit: Kit, key: ec.EllipticCurvePrivateKey, body: bytes, *, now: datetime) -> HelloError:
    """The error that says why the gateway refused."""
    try:
        refusal = HelloRefusal.model_validate_json(body)
        difference = clock_difference(refusal, now=now)
    except (ValidationError, ValueError):
        return _not_a_gateway(kit, "it answered HTTP 401 without a reason")
    fingerprint = key_fingerprint(key.public_key())
    match refusal.fault:
        case "unknown-key":
            text = (
                f"the coordinator at {kit.address} has not admitted this site's key ({fingerprint}); send it the "
                "request that `gliorn-client enroll` printed, or wait until it has been admitted"
            )
        case "revoked":
            text = (
                f"the coordinator at {kit.address} has revoked this site's key ({fingerprint}); ask it why, and for a "
                "new invite"
            )
        case "other-federation":
            text = (
                f"the coordinator at {kit.address} is of another federation than this kit "
                f"({kit.federation or 'unnamed'}): a kit from another federation; ask the coordinator for a new invite"
            )
        case "clock":
            text = (
                f"this machine's clock and that of the coordinator at {kit.address} differ by "
                f"{abs(difference.total_seconds()):.0f} s; set this machine's clock (NTP)"
            )
        case fault:
            text = (
                f"the coordinator at {kit.address} does not accept this site's signature ({fault}); a proxy that "
                "changes headers looks like this; else install the version of gliorn that the coordinator runs"
            )
    return HelloError(refusal.fault, text, clock_difference=difference)


def _faulty_settings(error: ValidationError) -> str:
    """Which settings of an answer do not fit, by our names for them; empty where it is no answer at all."""
    faulty = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
    named = ", ".join(sorted(faulty & HelloReply.model_fields.keys()))
    return f": {named}" if named else ""


def _not_a_gateway(kit: Kit, found: str) -> HelloError:
    return HelloError(
        "not-a-gateway",
        f"what answers at {kit.address} is no gateway of a gliorn federation ({found}); check the address and port in "
        "site.yaml, and ask the coordinator which version it runs",
    )
