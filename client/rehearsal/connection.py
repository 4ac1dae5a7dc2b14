"""The connection to the coordinator: the way there, and what it says of this site, its clock and its version."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version

from client.config import SiteConfig
from client.coordinator import CoordinatorFault, HelloError, clock_difference, say_hello, site_key
from client.kit import Kit
from client.rehearsal.findings import Finding
from client.rehearsal.membership import check_authorities, check_key
from client.rehearsal.route import TIMEOUT_S, route_to, walk
from common.authorities import certificate_digest, certificates_in
from common.bundle import bundle_digest, installed_bundle
from common.errors import ConfigError
from common.hello import HelloReply
from common.site_signature import NEWEST_S, OLDEST_S, key_fingerprint

CLOCK_WARNING_S = 2.0
"""Clocks that differ by more than this are warned of."""

_NAMES: dict[CoordinatorFault, str] = {
    "unknown-key": "admission",
    "revoked": "admission",
    "other-federation": "federation",
    "clock": "clock",
    "unsigned": "signature",
    "malformed": "signature",
    "forged": "signature",
    "proxy": "proxy",
    "certificate": "TLS",
}


@dataclass(frozen=True)
class Connection:
    """What the rehearsal of the connection found, and the coordinator's answer if it gave one."""

    findings: tuple[Finding, ...]
    reply: HelloReply | None


def rehearse_connection(
    config: SiteConfig,
    kit: Kit,
    *,
    environment: Mapping[str, str],
    clock: Callable[[], datetime],
    timeout_s: float = TIMEOUT_S,
) -> Connection:
    """Look at the kit's files, walk the way to the coordinator, and ask it what it knows of this site.

    Args:
        config: The site's configuration.
        kit: Its membership; the files exist.
        environment: This process's environment, which names proxies.
        clock: This site's clock, with time zone.
        timeout_s: How long each step of the way may take.
    """
    keys, authorities = check_key(kit), check_authorities(kit, now=clock())
    findings = [*keys, *authorities]
    unusable = [finding.name for finding in findings if finding.level == "FAIL" and finding.name != "key file"]
    if "authority" in unusable and len(authorities) == 1 and not _readable(kit):
        return Connection((*findings, _not_tried("the authorities' file cannot be used")), None)
    try:
        walked = walk(route_to(kit.address, environment), kit.ca_certificate, now=clock(), timeout_s=timeout_s)
    except ConfigError as error:
        found, _, advice = str(error).partition("; ")
        return Connection((*findings, Finding("connection", "proxy", "FAIL", found, advice)), None)
    findings += walked.findings
    if not walked.arrived:
        return Connection((*findings, _not_tried("the coordinator is not reached")), None)
    if "key" in unusable:
        return Connection((*findings, _not_tried("the site's key cannot be used")), None)
    before = clock()
    try:
        reply = say_hello(kit, config, now=before)
    except HelloError as error:
        return Connection((*findings, *_refusal(error, before=before, after=clock())), None)
    after = clock()
    findings.append(_clock(before + clock_difference(reply, now=before), before=before, after=after))
    findings += _judged(config, kit, reply)
    return Connection(tuple(findings), reply)


def _readable(kit: Kit) -> bool:
    try:
        return bool(certificates_in(kit.ca_certificate.read_bytes(), origin=str(kit.ca_certificate)))
    except ConfigError:
        return False


def _not_tried(reason: str) -> Finding:
    return Finding("connection", "hello", "warning", f"not tried: {reason}", "mend what failed and run this again")


def _refusal(error: HelloError, *, before: datetime, after: datetime) -> list[Finding]:
    """What a hello that failed tells."""
    found, _, advice = str(error).partition("; ")
    refusal = Finding("connection", _NAMES.get(error.fault, "hello"), "FAIL", found, advice)
    if error.clock_difference is None:
        return [refusal]
    clock = _clock(before + error.clock_difference, before=before, after=after)
    if error.fault == "clock" and clock.level == "FAIL":
        return [clock]
    return [clock, refusal]


def _clock(theirs: datetime, *, before: datetime, after: datetime) -> Finding:
    """Compare the clocks; only what the time of the exchange does not explain counts as a difference."""
    behind = max(theirs - after, timedelta(0))  # this site's clock, seen from the coordinator's
    ahead = max(before - theirs, timedelta(0))
    seconds = max(behind, ahead).total_seconds()
    if not seconds:
        return Finding("connection", "clock", "ok", "agrees with the coordinator's")
    direction = "behind" if behind else "ahead of"
    found = f"this machine's clock is {seconds:.1f} s {direction} the coordinator's"
    advice = "set this machine's clock by NTP (`timedatectl set-ntp true`, or IT's own time server)"
    if ahead.total_seconds() >= NEWEST_S or behind.total_seconds() >= OLDEST_S - NEWEST_S:
        found += f"; signatures count from {NEWEST_S:.0f} s ahead to {OLDEST_S - NEWEST_S:.0f} s behind"
        return Finding("connection", "clock", "FAIL", found, advice)
    if seconds > CLOCK_WARNING_S:
        return Finding("connection", "clock", "warning", found, advice)
    return Finding("connection", "clock", "ok", found)


def _judged(config: SiteConfig, kit: Kit, reply: HelloReply) -> list[Finding]:
    """Compare what the coordinator says with what this site has."""
    return [
        _federation(kit, reply),
        _admission(config, kit, reply),
        *_versions(reply),
        *_new_authorities(kit, reply),
    ]


def _federation(kit: Kit, reply: HelloReply) -> Finding:
    found = f"{reply.federation} (id {reply.federation_id})"
    if kit.federation_id is None:
        advice = f"write federation_id: {reply.federation_id} under server in site.yaml"
        return Finding("connection", "federation", "warning", f"{found}; this kit names none to compare", advice)
    return Finding("connection", "federation", "ok", f"{found}, as in the kit")


def _admission(config: SiteConfig, kit: Kit, reply: HelloReply) -> Finding:
    fingerprint = key_fingerprint(site_key(kit).public_key())
    if reply.site != config.name:
        return Finding(
            "connection",
            "admission",
            "FAIL",
            f"the coordinator admitted this key as {reply.site!r}, site.yaml names the site {config.name!r}",
            f"write name: {reply.site} in site.yaml, or ask the coordinator for an invite of the other name",
        )
    return Finding("connection", "admission", "ok", f"the key {fingerprint} is admitted as {reply.site}")


def _versions(reply: HelloReply) -> list[Finding]:
    own, own_bundle = version("gliorn"), bundle_digest(installed_bundle())
    advice = f"install the version of gliorn that the coordinator runs: pip install 'gliorn=={reply.version}'"
    if reply.bundle_digest != own_bundle:
        found = (
            f"the coordinator's app bundle is {reply.bundle_digest[:16]}… (gliorn {reply.version}), this site's is "
            f"{own_bundle[:16]}… (gliorn {own}); the site refuses any bundle but its own"
        )
        return [Finding("connection", "bundle", "FAIL", found, advice)]
    bundle = Finding("connection", "bundle", "ok", f"both sides have the app bundle {own_bundle[:16]}…")
    if reply.version != own:
        found = f"the coordinator runs gliorn {reply.version}, this site {own}; the bundle is the same"
        return [bundle, Finding("connection", "version", "warning", found, advice)]
    return [bundle, Finding("connection", "version", "ok", f"both sides run gliorn {own}")]


def _new_authorities(kit: Kit, reply: HelloReply) -> list[Finding]:
    own = {certificate_digest(each) for each in certificates_in(kit.ca_certificate.read_bytes(), origin="kit")}
    try:
        offered = certificates_in(reply.authorities.encode(), origin="the coordinator's authorities")
    except ConfigError as error:
        return [Finding("connection", "authorities", "warning", str(error), "tell the coordinator")]
    new = [each.subject.rfc4514_string() for each in offered if certificate_digest(each) not in own]
    if not new:
        return []
    found = f"the coordinator rolls in a new one: {', '.join(new)}; this site takes it over when it joins"
    return [Finding("connection", "authorities", "ok", found)]
