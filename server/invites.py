"""Inviting sites: what the coordinator hands out, and what it remembers of it in invites.json."""

import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import TypeAdapter, ValidationError

from common.authorities import certificate_digest
from common.enrolment import NAME, Invite, InvitedStudy, sign_invite
from common.errors import ConfigError, list_of_faults
from common.study import Study
from server.federation_folder import FederationFolder, admitted
from server.private_files import write_private
from server.provisioning import CertificateAuthority

InviteState = Literal["open", "used", "replaced", "revoked"]


@dataclass(frozen=True)
class InviteRecord:
    """An invite as the coordinator remembers it.

    Attributes:
        token: The one-time secret in hexadecimal; None once it is of no use any more.
        expires_at: ISO 8601 with time zone, as the other times.
        replaces_key: Whether its admission revokes the key that the site has until then.
        authorities: SHA-256 of the certificates in it.
        state: "open", "used" by an admission, "replaced" by a newer invite for the same site, or "revoked" with it.
        settled_at: When it ceased to be open.
        request_digest: Of the request that was admitted.
    """

    id: str
    site: str
    token: str | None
    created_at: str
    expires_at: str
    replaces_key: bool
    authorities: tuple[str, ...]
    state: InviteState = "open"
    settled_at: str | None = None
    request_digest: str | None = None

    def settled(self, state: InviteState, *, now: datetime) -> "InviteRecord":
        """The record of an invite that nobody can use any more."""
        return replace(self, state=state, token=None, settled_at=now.isoformat(timespec="seconds"))

    def has_expired(self, now: datetime) -> bool:
        """Whether it is too late to use it."""
        return now >= datetime.fromisoformat(self.expires_at)


@dataclass(frozen=True)
class MadeInvite:
    """An invite to hand out.

    Attributes:
        text: The invite, one line.
        replaced_older: Whether an older unused invite for this site counts no more.
    """

    site: str
    text: str
    expires_at: datetime
    replaced_older: bool


_RECORDS = TypeAdapter(list[InviteRecord])


def invite_sites(
    folder: FederationFolder,
    sites: list[str],
    *,
    authority: CertificateAuthority,
    trusted: list[x509.Certificate],
    study: Study | None,
    lifetime: timedelta,
    replace_key: bool,
    now: datetime,
) -> list[MadeInvite]:
    """Make an invite for each site; all of them or, if one cannot be invited, none.

    Args:
        folder: The federation.
        sites: Their names.
        authority: Signs the invites; one of the trusted.
        trusted: The authorities that the sites will check the coordinator against.
        study: What the invites name as the study to consent to.
        lifetime: How long the invites count.
        replace_key: Whether sites that are admitted may enrol again, which revokes the key they have.
        now: The coordinator's clock, with time zone.

    Raises:
        ConfigError: All sites that cannot be invited.
    """
    config = folder.read_config()
    with folder.locked_register():
        keys = admitted(folder.read_register())
        _require_invitable(sites, set(keys), replace_key=replace_key)
        records = read_invites(folder)
        made = []
        expires = (now + lifetime).replace(microsecond=0)
        signer = x509.load_pem_x509_certificate(authority.certificate)
        invited_study = InvitedStudy(name=study.name, sha256=bytes.fromhex(study.digest)) if study else None
        for site in sites:
            invite = Invite(
                address=config.address,
                authorities=tuple(each.public_bytes(serialization.Encoding.DER) for each in trusted),
                signer=bytes.fromhex(certificate_digest(signer)),
                federation=config.name,
                federation_id=config.id,
                site=site,
                expires=int(expires.timestamp()),
                id=secrets.token_hex(8),
                token=secrets.token_bytes(32),
                study=invited_study,
            )
            older = [record for record in records if record.site == site and record.state == "open"]
            records = [record.settled("replaced", now=now) if record in older else record for record in records]
            records.append(
                InviteRecord(
                    id=invite.id,
                    site=site,
                    token=invite.token.hex(),
                    created_at=now.isoformat(timespec="seconds"),
                    expires_at=expires.isoformat(),
                    replaces_key=site in keys,
                    authorities=tuple(certificate_digest(each) for each in trusted),
                )
            )
            still_good = any(not record.has_expired(now) for record in older)
            made.append(MadeInvite(site, sign_invite(invite, authority.key), expires, still_good))
        write_invites(folder, records)
    return made


def read_invites(folder: FederationFolder) -> list[InviteRecord]:
    """All invites ever made, in their order.

    Raises:
        ConfigError: If the file was damaged.
    """
    if not folder.invites.exists():
        return []
    try:
        return _RECORDS.validate_json(folder.invites.read_bytes(), strict=True, extra="forbid")
    except ValidationError:
        raise ConfigError(
            f"{folder.invites}: unreadable; restore it from a copy, or delete it and invite the sites anew that have "
            "not been admitted"
        ) from None


def write_invites(folder: FederationFolder, records: list[InviteRecord]) -> None:
    """Replace the file; the caller holds `locked_register`."""
    values = [asdict(record) for record in records]
    write_private(folder.invites, (json.dumps(values, indent=1) + "\n").encode())


def open_invites(folder: FederationFolder, *, now: datetime) -> list[InviteRecord]:
    """The invites that can still be used."""
    return [record for record in read_invites(folder) if record.state == "open" and not record.has_expired(now)]


def _require_invitable(sites: list[str], admitted_sites: set[str], *, replace_key: bool) -> None:
    faults = [
        f"{site!r} is no name of a site, expected lower-case letters, digits and '-', at most 63"
        for site in sites
        if not re.fullmatch(NAME, site)
    ]
    faults += [f"{site} is named twice" for site in sorted({site for site in sites if sites.count(site) > 1})]
    if not replace_key:
        faults += [
            f"{site} is admitted already; revoke its key with `gliorn-server sites revoke {site}`, or let the new key "
            "take its place at admission with --replace-key"
            for site in sites
            if site in admitted_sites
        ]
    if faults:
        raise ConfigError(list_of_faults("invite", faults))
