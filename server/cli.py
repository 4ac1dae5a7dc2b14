"""`gliorn-server`: what a coordinator types."""

import argparse
import sys
import traceback
from collections.abc import Sequence

from common.errors import GliornError
from server.commands import admit, certs, init, invite, pause, report, run, sites, start, status, stop

COMMANDS = (init, invite, admit, sites, certs, start, run, pause, stop, status, report)

DONE, OUR_FAULT, OPERATORS_FAULT = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments without the program's name; those of this process by default.

    Returns:
        0 done, 1 for a fault of this program, 2 for what the operator can mend (one message on stderr).
    """
    arguments = command_line().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except GliornError as error:
        print(f"gliorn-server {arguments.verb}: {error}", file=sys.stderr)
        return OPERATORS_FAULT
    except OSError as error:
        if error.filename is None:
            traceback.print_exc()
            return OUR_FAULT
        reason = error.strerror or type(error).__name__
        print(
            f"gliorn-server {arguments.verb}: {error.filename}: {reason}; look at the file and its rights",
            file=sys.stderr,
        )
        return OPERATORS_FAULT
    except KeyboardInterrupt:
        print(f"gliorn-server {arguments.verb}: stopped", file=sys.stderr)
        return OPERATORS_FAULT


def command_line() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="gliorn-server",
        description="The coordinator of a federation. Research use only.",
    )
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
