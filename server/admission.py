"""Admitting sites: whether a request for enrolment is genuine, and what becomes of the register."""

from dataclasses import replace
from datetime import datetime

from common.enrolment import SealedRequest, proven_key, read_request
from common.errors import ConfigError
from common.site_signature import key_fingerprint
from server.federation_folder import AdmittedSite, FederationFolder, admitted
from server.invites import InviteRecord, read_invites, write_invites


def admit(folder: FederationFolder, text: str, *, now: datetime) -> AdmittedSite:
    """Register the key that a request asks to admit.

    Args:
        folder: The federation.
        text: The request as the site sent it.
        now: The coordinator's clock, with time zone.

    Raises:
        ConfigError: If the request is refused, with the reason; nothing has changed then.
    """
    sealed = read_request(text)
    request = sealed.request
    config = folder.read_config()
    if request.federation_id != config.id:
        raise ConfigError(
            f"the request is for another federation (id {request.federation_id}), this one is {config.name} (id "
            f"{config.id}); name the right one with --federation, or invite the site to this one"
        )
    with folder.locked_register():
        records = read_invites(folder)
        record = next((record for record in records if record.id == request.invite_id), None)
        if record is None:
            raise ConfigError(f"no invite {request.invite_id} was made here; invite {request.site} anew")
        register = folder.read_register()
        token = _require_usable(record, sealed, register, now=now)
        if not sealed.is_sealed_with(token) or request.site != record.site:
            raise ConfigError(
                f"the request was changed after it was made, or is not from the holder of the invite for {record.site}"
                "; have the site send it again, whole"
            )
        key = proven_key(request)
        fingerprint = key_fingerprint(key)
        _require_new_key(fingerprint, register, site=request.site)
        if request.site in admitted(register) and not record.replaces_key:
            raise ConfigError(
                f"{request.site} is admitted already, with another key; revoke that with `gliorn-server sites revoke "
                f"{request.site}` first, or invite with --replace-key"
            )
        at = now.isoformat(timespec="seconds")
        site = AdmittedSite(request.site, request.public_key, fingerprint, admitted_at=at)
        # The register first: after a crash in between, the invite finds its key admitted and changes nothing.
        folder.write_register([*_with_revoked(register, request.site, at=at), site])
        used = replace(record.settled("used", now=now), request_digest=sealed.digest)
        write_invites(folder, [used if each is record else each for each in records])
        return site


def revoke(folder: FederationFolder, sites: list[str], *, now: datetime) -> list[AdmittedSite]:
    """Let the keys of sites count no more, nor invites by which they could replace them.

    The gateway turns the sites away from their next request on.

    Raises:
        ConfigError: If one is not admitted; none is revoked then.
    """
    with folder.locked_register():
        register = folder.read_register()
        current = admitted(register)
        unknown = sorted(set(sites) - current.keys())
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)}: no such site is admitted now, expected one of "
                f"{', '.join(sorted(current)) or 'none'}; see `gliorn-server sites`"
            )
        at = now.isoformat(timespec="seconds")
        # The invites first: after a crash in between, the site is still admitted and is revoked again.
        records = read_invites(folder)
        if any(record.state == "open" and record.site in sites for record in records):
            write_invites(folder, [_without(record, sites, now=now) for record in records])
        for site in sites:
            register = _with_revoked(register, site, at=at)
        folder.write_register(register)
        return [replace(current[site], revoked_at=at) for site in dict.fromkeys(sites)]


def _without(record: InviteRecord, sites: list[str], *, now: datetime) -> InviteRecord:
    """An invite that counts no more if it is for one of these sites."""
    return record.settled("revoked", now=now) if record.state == "open" and record.site in sites else record


def _require_usable(
    record: InviteRecord, sealed: SealedRequest, register: list[AdmittedSite], *, now: datetime
) -> bytes:
    """The token of an invite that can still be used."""
    if record.state == "used":
        if record.request_digest == sealed.digest:
            raise ConfigError(
                f"this very request was admitted already, as {record.site} at {record.settled_at}; nothing has changed"
            )
        raise ConfigError(
            f"the invite for {record.site} was used already, at {record.settled_at}; if that was not by the site, "
            f"revoke it with `gliorn-server sites revoke {record.site}` and invite anew"
        )
    if record.state == "revoked":
        raise ConfigError(
            f"the invite counts no more since {record.site} was revoked at {record.settled_at}; if the site may come "
            f"back, invite {record.site} anew"
        )
    if record.state == "replaced" or record.token is None:
        raise ConfigError(
            f"the invite was replaced by a newer one for {record.site} at {record.settled_at}; have the site enrol "
            "with the newer one"
        )
    if record.has_expired(now):
        raise ConfigError(f"the invite for {record.site} expired at {record.expires_at}; invite {record.site} anew")
    return bytes.fromhex(record.token)


def _require_new_key(fingerprint: str, register: list[AdmittedSite], *, site: str) -> None:
    """Refuse a key that was ever registered: Flower registers none twice."""
    known = next((each for each in register if each.fingerprint == fingerprint), None)
    if known is None:
        return
    if known.revoked_at is not None:
        raise ConfigError(
            f"the key {fingerprint} was revoked at {known.revoked_at} and can never be admitted again; invite {site} "
            "anew, and have it enrol with a new key"
        )
    if known.name == site:
        raise ConfigError(
            f"the key {fingerprint} is admitted already, as {site} at {known.admitted_at}; nothing has changed"
        )
    raise ConfigError(
        f"the key {fingerprint} is admitted already, under the name {known.name}; every site needs a key of its own"
    )


def _with_revoked(register: list[AdmittedSite], site: str, *, at: str) -> list[AdmittedSite]:
    return [replace(each, revoked_at=at) if each.name == site and not each.revoked_at else each for each in register]
