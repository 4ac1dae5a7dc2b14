"""`gliorn-server admit`: admits the sites whose requests are genuine."""

import argparse
import sys
from datetime import UTC, datetime

from common.enrolment import REQUEST_PREFIX, texts_in
from common.errors import ConfigError
from server.admission import admit
from server.commands.places import add_federation_argument, federation_folder

ADMITTED, REFUSED = 0, 2


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "admit",
        help="admit the sites whose requests are genuine",
        description="Admit the sites whose requests are genuine. One that is refused does not stop the others.",
    )
    add_federation_argument(parser)
    parser.add_argument(
        "requests",
        nargs="+",
        metavar="REQUEST",
        help="a line of `gliorn-client enroll`; - reads them from stdin, as a mail program may have wrapped them",
    )
    parser.set_defaults(command=_admit)


def _admit(arguments: argparse.Namespace) -> int:
    folder = federation_folder(arguments)
    folder.read_config()
    texts = [text for argument in arguments.requests for text in _texts(argument)]
    num_admitted = 0
    for number, text in enumerate(texts, start=1):
        try:
            site = admit(folder, text, now=datetime.now(UTC))
        except ConfigError as error:
            which = f"request {number} of {len(texts)} " if len(texts) > 1 else ""
            print(f"gliorn-server admit: {which}refused: {error}", file=sys.stderr)
        else:
            num_admitted += 1
            print(f"{site.name}: admitted, key {site.fingerprint}")
    if num_admitted:
        print("A gateway that runs lets them in from now on.")
        print("Next: gliorn-server start, if it does not run yet; the sites type gliorn-client --site site.yaml")
    return ADMITTED if num_admitted == len(texts) else REFUSED


def _texts(argument: str) -> list[str]:
    """The requests that an argument stands for."""
    if argument != "-":
        found = texts_in(argument, REQUEST_PREFIX)
        return found if len(found) > 1 else [argument]
    text = sys.stdin.read()
    found = texts_in(text, REQUEST_PREFIX)
    if not found:
        raise ConfigError(
            f"stdin: no line of {len(text.splitlines())} begins with {REQUEST_PREFIX}; give requests as `gliorn-client "
            "enroll` printed them, each from the beginning of a line"
        )
    return found
