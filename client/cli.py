"""`gliorn-client`: what a hospital types: check and prepare its data, and join a federation."""

import argparse
import logging
import os
import select
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from client.commands import accept, check, cohort, dicom, enroll, fix, prepare
from client.commands.join import add_options, join
from common.errors import GliornError

COMMANDS = (enroll, accept, dicom, cohort, check, fix, prepare)

DESCRIPTION = """\
A hospital's side of a federation. Images, the table and the site configuration stay on this machine. What leaves it:
the site's name, counts, keyed digests of the lists of cases, model states, losses and timings, the kind of device and
its threads, program versions and codes of errors; docs/site.md lists them all. Without a command: joins the federation
that the site configuration names and stays until it is stopped. Research use only."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when it is done; 1 for a fault of this program; 2 for what the user has to mend.
    """
    arguments = command_line().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every request is no news
    try:
        return _carried_out(arguments)
    except GliornError as error:
        print(f"gliorn-client: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "gliorn-client: stopped; what is in the cache stays, and the next start goes on from there", file=sys.stderr
        )
        return 2
    except OSError as error:
        if error.filename is None:
            traceback.print_exc()
            return 1
        reason = error.strerror or type(error).__name__
        print(f"gliorn-client: {error.filename}: {reason}; look at the file and its rights", file=sys.stderr)
        return 2
    except Exception:  # noqa: BLE001 - the outermost border: our own fault is shown whole
        traceback.print_exc()
        return 1


def _carried_out(arguments: argparse.Namespace) -> int:
    try:
        status = int(arguments.command(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        if arguments.command is join or not _reader_has_left():
            raise  # nobody asked for this end, so that a service is started again
        # Whoever read the output, such as `head`, has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _reader_has_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more; a broken pipe may be another's, such as a connection's."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def command_line() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(prog="gliorn-client", description=DESCRIPTION)
    parser.add_argument("--site", type=Path, metavar="FILE", help="this hospital's site.yaml")
    add_options(parser)
    parser.set_defaults(command=join)
    commands = parser.add_subparsers(title="commands", metavar="")
    for command in COMMANDS:
        command.add(commands)
    return parser
