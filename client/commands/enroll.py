"""`gliorn-client enroll`: takes up an invite and prints the request for enrolment."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from client.enroll import enroll
from common.enrolment import INVITE_PREFIX, texts_in


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "enroll",
        help="take up an invite: make this site's key and print the request for the coordinator",
        description="Make this site's key pair, which stays here, write what site.yaml needs, and print the request "
        "that the coordinator has to be sent. Connects to nothing.",
    )
    parser.add_argument(
        "--invite",
        required=True,
        metavar="INVITE",
        help="what the coordinator sent; better -, which reads it from stdin: other users can see arguments",
    )
    parser.add_argument(
        "--site",
        type=Path,
        required=True,
        metavar="FILE",
        help="this hospital's site.yaml; made from a commented example if it does not exist",
    )
    parser.set_defaults(command=_enroll)


def _enroll(arguments: argparse.Namespace) -> int:
    text = _invite_in(sys.stdin.read()) if arguments.invite == "-" else arguments.invite
    done = enroll(text, arguments.site, now=datetime.now(UTC))
    invite = done.invite
    print(f"{invite.site}: invited to the federation {invite.federation} at {invite.address}")
    print(f"  its authority: SHA-256 {invite.signer.hex()}; the coordinator can confirm it by telephone")
    made = "this site's key, made here; it never leaves" if done.key_is_new else "unchanged, the key was made earlier"
    print(f"  {done.folder}: {made}")
    print(f"  {arguments.site}: {done.configuration}")
    if invite.study is not None:
        print(f"  study: {invite.study.name}, {invite.study.digest}")
    print("Send this request to the coordinator; it holds no secret:")
    print(done.request)
    print(f"Next: fill in {arguments.site}, then gliorn-client check --site {arguments.site}")
    return 0


def _invite_in(text: str) -> str:
    """The one invite of a mail; the text itself where none or several begin in it, of which the reader complains."""
    found = texts_in(text, INVITE_PREFIX)
    return found[0] if len(set(found)) == 1 else text
