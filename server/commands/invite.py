"""`gliorn-server invite`: prints an invite for each site."""

import argparse
import sys
from datetime import UTC, datetime, timedelta

from common.authorities import certificate_digest, certificates_in
from common.errors import ConfigError
from common.study import Study, parse_study
from server.authority import require_hosts, signing_authority, trusted_authorities
from server.commands.places import add_federation_argument, federation_folder
from server.federation_folder import FederationFolder
from server.invites import invite_sites

LONGEST_DAYS = 90


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "invite",
        help="print an invite for each site",
        description="Print an invite for each site, on a line of its own. Whoever holds an invite can enrol under the "
        "site's name, once: send it to the hospital's own person, by a way that others do not read.",
    )
    add_federation_argument(parser)
    parser.add_argument("sites", nargs="+", metavar="SITE", help="name: lower-case letters, digits and '-'")
    parser.add_argument("--days", type=int, default=14, metavar="N", help="how long the invites count (14)")
    parser.add_argument(
        "--replace-key", action="store_true", help="also for admitted sites; the new key takes the place of the old"
    )
    parser.set_defaults(command=_invite)


def _invite(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.days <= LONGEST_DAYS:
        raise ConfigError(f"--days {arguments.days}: expected 1 to {LONGEST_DAYS}")
    folder = federation_folder(arguments)
    require_hosts(folder.read_config().hosts)
    study = _study(folder)
    authority, trusted = signing_authority(folder), trusted_authorities(folder)
    [signer] = [certificate_digest(each) for each in certificates_in(authority.certificate, origin="authority")]
    made = invite_sites(
        folder,
        arguments.sites,
        authority=authority,
        trusted=trusted,
        study=study,
        lifetime=timedelta(days=arguments.days),
        replace_key=arguments.replace_key,
        now=datetime.now(UTC),
    )
    for invite in made:
        older = "; the older unused invite for it counts no more" if invite.replaced_older else ""
        print(f"# {invite.site}, until {invite.expires_at:%Y-%m-%d %H:%M} UTC{older}")
        print(invite.text)
    print(f"# Sites may compare the authority's fingerprint with you: {signer}")
    if study is not None:
        print(f"# The invites name the study {study.name}, {study.digest}")
    print("# Next: send each site its line; it types gliorn-client enroll --invite '...' --site site.yaml")
    print("# and answers with a request: gliorn-server admit REQUEST [REQUEST ...]")
    return 0


def _study(folder: FederationFolder) -> Study | None:
    """The study that invites name; none, and a word about it, where study.yaml is absent or has faults."""
    try:
        return parse_study(folder.study.read_text(encoding="utf-8"), origin=str(folder.study))
    except (OSError, UnicodeDecodeError):
        fault = f"{folder.study}: cannot be read"
    except ConfigError as error:
        fault = str(error)
    print(f"gliorn-server invite: the invites name no study: {fault}", file=sys.stderr)
    return None
