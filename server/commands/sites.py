"""`gliorn-server sites`: lists the sites that were ever admitted; `sites revoke` turns a site away."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime

from common.errors import ConfigError
from server.admission import revoke
from server.commands.places import add_federation_argument, federation_folder


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "sites",
        help="list the sites that were admitted; `sites revoke SITE` turns one away",
        description="Without an action: list all sites that were ever admitted. With `revoke SITE ...`: let the keys "
        "of these sites count no more, at once and for ever.",
    )
    add_federation_argument(parser)
    parser.add_argument("action", nargs="?", choices=("revoke",), metavar="revoke", help="turn sites away")
    parser.add_argument("sites", nargs="*", metavar="SITE", help="names of the sites to turn away")
    parser.add_argument("--json", action="store_true", help="as JSON, for a script")
    parser.set_defaults(command=_sites)


def _sites(arguments: argparse.Namespace) -> int:
    folder = federation_folder(arguments)
    folder.read_config()
    if arguments.action == "revoke":
        if not arguments.sites:
            raise ConfigError("sites revoke: no site is named; name one or more, as `gliorn-server sites` lists them")
        for site in revoke(folder, arguments.sites, now=datetime.now(UTC)):
            print(f"{site.name}: revoked, key {site.fingerprint}; a gateway that runs turns it away from now on")
        print("Next: to let a site in again, gliorn-server invite SITE; it enrols with a new key")
        return 0
    sites = folder.read_register()
    if arguments.json:
        print(json.dumps([asdict(site) for site in sites], indent=1))
        return 0
    if not sites:
        print("No site has been admitted yet.\nNext: gliorn-server invite SITE [SITE ...]")
        return 0
    rows = [("SITE", "KEY", "ADMITTED", "REVOKED")]
    rows += [(site.name, site.fingerprint, site.admitted_at[:16], (site.revoked_at or "-")[:16]) for site in sites]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
