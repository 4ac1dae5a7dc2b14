"""The way to the coordinator, step by step: proxy, name, TCP connection, TLS handshake."""

import base64
import contextlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from client.rehearsal.findings import Finding, shown_seconds
from common.errors import ConfigError, GliornError

TIMEOUT_S = 10.0
"""How long each step may take."""
DAYS_TO_RENEW = 30
"""A certificate with fewer days left than this is warned of."""

_EXPIRED, _NOT_YET_VALID, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's codes (x509_vfy.h) of a certificate that fails for another reason than who signed it."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that the environment names.

    Attributes:
        credentials: `user:password`, or empty. Never shown.
        variable: The variable that names it.
    """

    scheme: str
    host: str
    port: int
    credentials: str
    variable: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port} ({self.variable})"


@dataclass(frozen=True)
class Route:
    """How the coordinator is reached: directly, or through a proxy."""

    host: str
    port: int
    proxy: Proxy | None

    @property
    def address(self) -> str:
        """host:port of the coordinator."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RouteError(GliornError):
    """A step on the way failed.

    Attributes:
        step: Name of the step.
        advice: What to do.
    """

    code = "route"

    def __init__(self, step: str, found: str, advice: str) -> None:
        super().__init__(found)
        self.step = step
        self.advice = advice


def route_to(address: str, environment: Mapping[str, str]) -> Route:
    """The way that Flower's programs and this one take, by the same rules as their HTTP client (httpx 0.28).

    Args:
        address: host:port of the coordinator, an IPv6 address in brackets.
        environment: HTTPS_PROXY, else ALL_PROXY, names a proxy, NO_PROXY the hosts reached without one; lower-case
            names come first.

    Raises:
        ConfigError: If the environment names something that is no HTTP proxy.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    named = [_setting(variable, environment) for variable in ("HTTPS_PROXY", "ALL_PROXY")]
    variable, text = next(((variable, text) for variable, text in named if text), ("", ""))
    if not text or _is_exempt(host, int(port), environment):
        return Route(host, int(port), None)
    return Route(host, int(port), _proxy(text, variable))


def _setting(variable: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The name and value of a variable; in lower case it wins, even empty."""
    spelling = variable.lower() if variable.lower() in environment else variable
    return spelling, environment.get(spelling, "").strip()


def _is_exempt(host: str, port: int, environment: Mapping[str, str]) -> bool:
    _, text = _setting("NO_PROXY", environment)
    for entry in (part.strip().lower() for part in text.split(",")):
        name, _, entry_port = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
        if entry_port and entry_port != str(port):
            continue
        own = host.lower()
        if name == "*" or name.strip("[]") == own:
            return True
        if name and not _is_address(name) and name != "localhost":
            suffix = name if name.startswith(".") else f".{name}"
            if own.endswith(suffix):
                return True
    return False


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _proxy(text: str, variable: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or host is None:
        raise ConfigError(f"{variable} names no HTTP proxy, expected http://host:port; mend it, or unset it")
    credentials = "" if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme], credentials, variable)


@dataclass(frozen=True)
class Walked:
    """How far the way to the coordinator was walked; `arrived` is whether a verified TLS connection stood."""

    findings: tuple[Finding, ...]
    arrived: bool


def walk(route: Route, ca_certificate: Path, *, now: datetime, timeout_s: float = TIMEOUT_S) -> Walked:
    """Resolve the name, connect, and shake hands, and say what each step found; nothing is sent to the coordinator.

    Args:
        route: The way.
        ca_certificate: PEM file of the authorities that the coordinator is checked against, readable.
        now: This site's clock, with time zone.
        timeout_s: How long each step may take.
    """
    if route.proxy is not None and route.proxy.scheme == "https":
        found = f"{route.proxy} is spoken to over TLS itself, so the steps to the coordinator are not tried one by one"
        return Walked((Finding("connection", "proxy", "ok", found),), arrived=True)
    findings: list[Finding] = []
    try:
        findings.append(_resolve(route))
        started = time.monotonic()
        stream = _connect(route, timeout_s)
        way = f"directly to {route.address}" if route.proxy is None else f"through the proxy {route.proxy}"
        took = shown_seconds(time.monotonic() - started)
        findings.append(Finding("connection", "TCP", "ok", f"connected {way} in {took}"))
        with stream:
            findings.append(_shake_hands(stream, route, ca_certificate, now=now, timeout_s=timeout_s))
    except RouteError as error:
        findings.append(Finding("connection", error.step, "FAIL", str(error), error.advice))
        return Walked(tuple(findings), arrived=False)
    return Walked(tuple(findings), arrived=True)


def _resolve(route: Route) -> Finding:
    """Look up the name of what is connected to: the proxy where there is one, since it looks up the coordinator's."""
    host, port = (route.host, route.port) if route.proxy is None else (route.proxy.host, route.proxy.port)
    whose = "the coordinator's" if route.proxy is None else f"the proxy's, from {route.proxy.variable},"
    if _is_address(host):
        return Finding("connection", "name", "ok", f"{host} ({whose} address) needs no look-up")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise RouteError(
            "name",
            f"the name {host} ({whose} name) cannot be resolved: {reason}",
            "check server.address in site.yaml letter by letter; else ask IT whether this machine may resolve outside "
            "names, or must use a proxy (HTTPS_PROXY=http://host:port)",
        ) from None
    addresses = ", ".join(sorted({str(entry[4][0]) for entry in found}))
    return Finding("connection", "name", "ok", f"{host} ({whose} name) is {addresses}")


def _connect(route: Route, timeout_s: float) -> socket.socket:
    """A stream to the coordinator, through the proxy where there is one."""
    host, port = (route.host, route.port) if route.proxy is None else (route.proxy.host, route.proxy.port)
    target = route.address if route.proxy is None else f"the proxy {route.proxy}"
    try:
        stream = socket.create_connection((host, port), timeout=timeout_s)
    except ConnectionRefusedError:
        raise RouteError(
            "TCP",
            f"{target} refuses the connection: nothing listens on port {port} there, or a firewall says so",
            "ask the coordinator whether `gliorn-server start` runs and which port it uses"
            if route.proxy is None
            else f"check {route.proxy.variable}",
        ) from None
    except OSError as error:
        reason = f"no answer within {timeout_s:.0f} s" if isinstance(error, TimeoutError) else error.strerror or "error"
        raise RouteError(
            "TCP",
            f"{target} cannot be reached: {reason}",
            f"ask IT to allow this machine outgoing TCP connections to {target}, or which HTTP proxy to name in "
            "HTTPS_PROXY",
        ) from None
    if route.proxy is None:
        return stream
    try:
        _tunnel(stream, route, route.proxy)
    except BaseException:
        stream.close()
        raise
    return stream


def _tunnel(stream: socket.socket, route: Route, proxy: Proxy) -> None:
    """Ask a proxy to let the stream through (CONNECT, RFC 9110 section 9.3.6)."""
    lines = [f"CONNECT {route.address} HTTP/1.1", f"Host: {route.address}"]
    if proxy.credentials:
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(proxy.credentials.encode()).decode("ascii"))
    answer = b""
    with contextlib.suppress(OSError):  # what came until then is looked at below
        stream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        while b"\r\n\r\n" not in answer and len(answer) < 65536:
            piece = stream.recv(1)  # the byte after the empty line belongs to the tunnel
            if not piece:
                break
            answer += piece
    words = answer.split(b"\r\n", 1)[0].decode("ascii", "replace").split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise RouteError(
            "proxy",
            f"the proxy {proxy} gave no answer of an HTTP proxy",
            f"check {proxy.variable}; it has to name an HTTP proxy that allows CONNECT",
        )
    if words[1].startswith("2"):
        return
    advice = (
        f"write the proxy's user and password into {proxy.variable}=http://user:password@host:port"
        if words[1] == "407"
        else f"ask IT to allow CONNECT to {route.address} on the proxy, or to let this machine connect directly "
        f"(NO_PROXY={route.host})"
    )
    raise RouteError("proxy", f"the proxy {proxy} refuses CONNECT to {route.address}: {' '.join(words[1:])}", advice)


def _shake_hands(
    stream: socket.socket, route: Route, ca_certificate: Path, *, now: datetime, timeout_s: float
) -> Finding:
    """Do the TLS handshake as every later connection does it, checked against the kit's authorities."""
    context = ssl.create_default_context(cafile=str(ca_certificate))
    try:
        with context.wrap_socket(stream, server_hostname=route.host) as secured:
            certificate = _presented(secured)
            version = secured.version()
    except ssl.SSLCertVerificationError as error:
        raise _refused_certificate(error, route, ca_certificate, now=now, timeout_s=timeout_s) from None
    except OSError as error:  # ssl.SSLError is one
        raise _no_tls(error, route, timeout_s) from None
    assert certificate is not None, "a verified peer has a certificate"
    days = _days_left(certificate, now)
    found = f"{version}, the certificate is for {_names(certificate)} and valid for {days} days more"
    if days < DAYS_TO_RENEW:
        advice = "ask the coordinator to renew it (`gliorn-server certs renew`); nothing changes at this site"
        return Finding("connection", "TLS", "warning", found, advice)
    return Finding("connection", "TLS", "ok", found)


def _refused_certificate(
    error: ssl.SSLCertVerificationError, route: Route, ca_certificate: Path, *, now: datetime, timeout_s: float
) -> RouteError:
    """Say whose certificate was presented instead of a good one; looks at it again without trusting it."""
    certificate = _untrusted_certificate(route, timeout_s)
    if certificate is None:
        return RouteError(
            "TLS",
            f"the certificate presented does not verify ({error.verify_message}), and a second look got none",
            "run this again; if it stays so, ask IT what inspects connections to " + route.address,
        )
    match error.verify_code:
        case code if code == _EXPIRED and certificate.not_valid_after_utc < now:
            found = f"the coordinator's certificate expired {-_days_left(certificate, now)} days ago"
            return RouteError("TLS", found, "ask the coordinator to renew it (`gliorn-server certs renew`)")
        case code if code == _EXPIRED:
            return RouteError(
                "TLS",
                f"an authority in {ca_certificate}, or this machine's clock ({now:%Y-%m-%d %H:%M} UTC), is out of date",
                "check the clock; else ask the coordinator for a new invite",
            )
        case code if code == _NOT_YET_VALID:
            return RouteError(
                "TLS",
                f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, but this "
                f"machine's clock says {now:%Y-%m-%d %H:%M} UTC",
                "set this machine's clock (NTP)",
            )
        case code if code in (_OTHER_NAME, _OTHER_ADDRESS):
            return RouteError(
                "TLS",
                f"the coordinator's certificate is for {_names(certificate)}, not for {route.host}",
                "write one of its names as server.address in site.yaml, or ask the coordinator to add this one "
                "(hosts in federation.yaml, then `gliorn-server certs renew`)",
            )
    return _foreign_certificate(certificate, route, ca_certificate)


def _foreign_certificate(certificate: x509.Certificate, route: Route, ca_certificate: Path) -> RouteError:
    """The error that names who issued a certificate that the kit's authorities did not."""
    own = [authority.subject for authority in x509.load_pem_x509_certificates(ca_certificate.read_bytes())]
    issuer = _shown(certificate.issuer.rfc4514_string())
    if certificate.issuer in own:
        return RouteError(
            "TLS",
            f"the certificate was issued by an authority that is named {issuer} as the kit's is, but is another one: "
            "the kit is of another federation, or the coordinator began anew",
            "ask the coordinator for a new invite and enrol again; if it says that nothing changed, somebody is "
            "between: tell IT",
        )
    trusted = _shown(", ".join(name.rfc4514_string() for name in own))
    if re.match(r"CN=gliorn .* CA \d+$", issuer):  # how `gliorn-server` names its authorities
        return RouteError(
            "TLS",
            f"a certificate issued by {issuer} was presented, the kit trusts {trusted}: a kit from another federation, "
            "or the coordinator changed its authority while this site was away",
            "ask the coordinator for a new invite and enrol again",
        )
    return RouteError(
        "TLS",
        f"a certificate issued by {issuer} was presented instead of the federation's "
        f"({trusted}): an intercepting proxy, or a kit from another federation",
        f"ask IT to exempt {route.address} from TLS inspection; if nothing inspects it, the address is another "
        "federation's than the kit: ask the coordinator for an invite",
    )


def _no_tls(error: OSError, route: Route, timeout_s: float) -> RouteError:
    if _answers_plain_http(route, timeout_s):
        return RouteError(
            "TLS",
            f"a plain-HTTP server answers at {route.address}, without TLS",
            "check the port in server.address; a federation's gateway speaks TLS only",
        )
    if isinstance(error, TimeoutError):
        found = f"no answer to the TLS handshake within {timeout_s:.0f} s"
    elif isinstance(error, ssl.SSLError) and error.reason:
        found = f"what answers does not speak TLS as expected ({error.reason})"
    else:
        found = "the connection was closed during the TLS handshake"
    advice = f"check the port in server.address; else ask IT whether a firewall filters TLS to {route.address}"
    return RouteError("TLS", found, advice)


def _untrusted_certificate(route: Route, timeout_s: float) -> x509.Certificate | None:
    """The certificate that is presented, whoever signed it. Nothing is sent over this connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _connect(route, timeout_s) as stream, context.wrap_socket(stream, server_hostname=route.host) as secured:
            return _presented(secured)
    except (RouteError, OSError, ValueError):
        return None


def _answers_plain_http(route: Route, timeout_s: float) -> bool:
    try:
        with _connect(route, timeout_s) as stream:
            stream.sendall(f"GET / HTTP/1.0\r\nHost: {route.address}\r\n\r\n".encode("ascii"))
            return stream.recv(5).startswith(b"HTTP/")
    except (RouteError, OSError):
        return False


def _presented(secured: ssl.SSLSocket) -> x509.Certificate | None:
    der = secured.getpeercert(binary_form=True)
    return None if der is None else x509.load_der_x509_certificate(der)


def _days_left(certificate: x509.Certificate, now: datetime) -> int:
    """Whole days, below 0 once it has expired."""
    return (certificate.not_valid_after_utc - now) // timedelta(days=1)


def _names(certificate: x509.Certificate) -> str:
    """The hosts that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        commons = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return _shown(", ".join(str(name.value) for name in commons) or "nobody")
    texts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return _shown(", ".join(texts) or "nobody")


def _shown(text: str) -> str:
    """What a peer wrote, short and printable."""
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return plain if len(plain) <= 160 else plain[:157] + "..."
