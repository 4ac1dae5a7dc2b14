"""`gliorn-server certs`: shows the federation's certificates, renews the server's, changes the authority."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime

from common.authorities import certificate_digest
from server.authority import (
    add_authority,
    certificate_states,
    renew_server_certificate,
    retire_old_authority,
    use_new_authority,
)
from server.commands.places import add_federation_argument, federation_folder
from server.federation_folder import FederationFolder

ACTIONS = ("renew", "new-authority", "use-new-authority", "retire-old-authority")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "certs",
        help="show the certificates and their days left, renew the server's, change the authority",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Without an action: show all certificates and how long they are valid.\n\n"
        "  renew                 a new server certificate; no site is touched, no restart is needed\n"
        "  new-authority         make a second authority; sites learn to trust it with their next hello\n"
        "  use-new-authority     sign the server's certificate with it, once all sites trust it\n"
        "  retire-old-authority  have sites trust the new one alone",
    )
    add_federation_argument(parser)
    parser.add_argument("action", nargs="?", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("--force", action="store_true", help="use the new authority and cut off sites without it")
    parser.add_argument("--json", action="store_true", help="show as JSON, for a script")
    parser.set_defaults(command=_certs)


def _certs(arguments: argparse.Namespace) -> int:
    folder = federation_folder(arguments)
    folder.read_config()
    now = datetime.now(UTC)
    done = None if arguments.action is None else _act(folder, arguments.action, force=arguments.force, now=now)
    states = certificate_states(folder, now=now)
    if arguments.json:
        print(json.dumps([asdict(state) for state in states], indent=1))
        return 0
    if done is not None:
        print(done)
    for state in states:
        left = f"{state.days_left} days left" if state.days_left >= 0 else "EXPIRED"
        print(f"{state.name:8} until {state.expires_at[:10]}, {left}: {state.note}")
        print(f"         SHA-256 {state.digest}")
    for state in states:
        if state.advice is not None:
            print(f"WARNING {state.name}: {state.advice}")
    return 0


def _act(folder: FederationFolder, action: str, *, force: bool, now: datetime) -> str:
    """Carry out an action; returns what was done and what to do next."""
    match action:
        case "renew":
            renew_server_certificate(folder, now=now)
            return "A new server certificate; a gateway that runs takes it within a minute. Sites need nothing."
        case "new-authority":
            digest = certificate_digest(add_authority(folder, now=now))
            return (
                f"A second authority, {digest}. Sites that are connected learn to trust it by themselves.\n"
                "Next: after a day, gliorn-server certs use-new-authority; it names the sites that still lack it."
            )
        case "use-new-authority":
            use_new_authority(folder, now=now, force=force)
            return (
                "The new authority signs from now on; sites that trust it notice nothing.\n"
                "Next: when all sites have been seen since, gliorn-server certs retire-old-authority"
            )
        case _:
            retired = certificate_digest(retire_old_authority(folder))
            return (
                f"Sites are told to trust the new authority alone, not {retired}.\n"
                "Its files in authority/ are of no use any more and can be deleted."
            )
