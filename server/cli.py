"""`gliorn-server`: what a coordinator types."""

import argparse
import os
import select
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from common.errors import GliornError

COMMANDS = (
    "init",
    "invite",
    "admit",
    "sites",
    "certs",
    "start",
    "run",
    "statistics",
    "pause",
    "stop",
    "status",
    "report",
    "compare",
)
"""Modules of `server.commands`."""

LONG_LIVED = ("start",)
"""Commands that a service runs; they end when they are asked to, not when nobody reads their output any more."""

DONE, OUR_FAULT, OPERATORS_FAULT = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments without the program's name; those of this process by default.

    Returns:
        0 done, 1 for a fault of this program, 2 for what the operator can mend (one message on stderr).
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = command_line(argv[0] if argv and argv[0] in COMMANDS else None).parse_args(argv)
    try:
        return _carried_out(arguments)
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


def _carried_out(arguments: argparse.Namespace) -> int:
    try:
        status = int(arguments.command(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        if arguments.verb in LONG_LIVED or not _reader_has_left():
            raise  # nobody asked for this end, so that a service is started again
        # Whoever read the output, such as `head`, has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return status


def _reader_has_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more; a broken pipe may be another's, such as a connection's."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def command_line(only: str | None = None) -> argparse.ArgumentParser:
    """The commands and their arguments.

    Args:
        only: A command that is given alone, since some take a second to load; all by default.
    """
    parser = argparse.ArgumentParser(
        prog="gliorn-server",
        description="The coordinator of a federation. Research use only.",
    )
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name in COMMANDS if only is None else (only,):
        import_module(f"server.commands.{name}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
