"""`gliorn-server`: what a coordinator types."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from common.errors import GliornError
from server.report import write_report
from server.run_folder import RunFolder
from server.run_status import RunStatus, read_status, status_lines

DONE, OPERATORS_FAULT = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments without the program's name; those of this process by default.

    Returns:
        0 done, 2 for what the operator can mend (one message on stderr). Our own faults end with a traceback and 1.
    """
    arguments = _parser().parse_args(argv)
    folder = RunFolder(arguments.run)
    try:
        match arguments.command:
            case "report":
                print(write_report(folder))
                print("Next: open it in a browser, or print it; it is one file and asks nothing of any network.")
            case "status":
                status = read_status(folder)
                print(_as_json(status) if arguments.json else "\n".join(status_lines(status, now=datetime.now(UTC))))
    except GliornError as error:
        print(f"gliorn-server {arguments.command}: {error}", file=sys.stderr)
        return OPERATORS_FAULT
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gliorn-server",
        description="The coordinator of a federation. Research use only.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report", help="write report.html of a run that has ended", description="Write report.html of a run anew."
    )
    status = commands.add_parser(
        "status", help="say how far a run is", description="Say how far a run is, and what went wrong so far."
    )
    for command in (report, status):
        command.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    status.add_argument("--json", action="store_true", help="as JSON, for a script")
    return parser


def _as_json(status: RunStatus) -> str:
    values = asdict(status) | {"changed_at": status.changed_at.isoformat(timespec="seconds")}
    return json.dumps(values, indent=1)


if __name__ == "__main__":
    sys.exit(main())
