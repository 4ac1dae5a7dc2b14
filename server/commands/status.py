"""`gliorn-server status`: says how far a run is."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime

from server.commands.places import add_run_argument, run_folder
from server.run_status import RunStatus, read_status, status_lines


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "status", help="say how far a run is", description="Say how far a run is, and what went wrong so far."
    )
    add_run_argument(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, for a script")
    parser.set_defaults(command=_status)


def _status(arguments: argparse.Namespace) -> int:
    status = read_status(run_folder(arguments))
    print(_as_json(status) if arguments.json else "\n".join(status_lines(status, now=datetime.now(UTC))))
    return 0


def _as_json(status: RunStatus) -> str:
    values = asdict(status) | {"changed_at": status.changed_at.isoformat(timespec="seconds")}
    return json.dumps(values, indent=1)
