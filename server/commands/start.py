"""`gliorn-server start`: serves the federation, in the foreground, until it is ended."""

import argparse
from datetime import UTC, datetime

from server.commands.places import add_federation_argument, federation_folder
from server.serving import serve


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "start",
        help="serve the federation until Ctrl-C or SIGTERM",
        description="Serve the federation in the foreground: the port that sites connect to, and its runs. "
        "Ends on Ctrl-C or SIGTERM; runs at work go on at the next start.",
    )
    add_federation_argument(parser)
    parser.set_defaults(command=_start)


def _start(arguments: argparse.Namespace) -> int:
    serve(federation_folder(arguments), say=_say)
    return 0


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}", flush=True)
