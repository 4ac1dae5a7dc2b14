"""`gliorn-server status`: says how the federation is, or how far a run is."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from server.commands.places import add_federation_argument, federation_folder, run_folder
from server.federation_folder import FederationFolder
from server.federation_status import federation_facts, federation_lines, federation_values, read_federation_status
from server.run_folder import RunFolder
from server.run_status import read_status, stand, status_lines

WATCH_EVERY_S = 2.0


@dataclass(frozen=True)
class _View:
    """One status in its three forms: for a person, as short lines of which each may be news, for a script."""

    lines: Sequence[str]
    facts: Sequence[str]
    values: dict[str, Any]


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "status",
        help="say how the federation is, or how far a run is",
        description="Say how the federation is: server, certificate, sites, runs. With RUN: how far that run is, and "
        "what went wrong so far.",
    )
    add_federation_argument(parser)
    parser.add_argument("run", nargs="?", metavar="RUN", help="name of the run, or path of its folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON, for a script")
    how.add_argument("--watch", action="store_true", help="stay, and show what changes, until Ctrl-C")
    parser.set_defaults(command=_status)


def _status(arguments: argparse.Namespace) -> int:
    def look() -> _View:
        if arguments.run is None:
            return _view_of_federation(federation_folder(arguments))
        return _view_of_run(run_folder(arguments))

    if arguments.watch:
        return _watch(look)
    view = look()
    print(json.dumps(view.values, indent=1) if arguments.json else "\n".join(view.lines))
    return 0


def _view_of_federation(folder: FederationFolder) -> _View:
    now = datetime.now(UTC)
    status = read_federation_status(folder, now=now)
    return _View(federation_lines(status, now=now), federation_facts(status), federation_values(status))


def _view_of_run(folder: RunFolder) -> _View:
    status = read_status(folder)
    values = asdict(status) | {"changed_at": status.changed_at.isoformat(timespec="seconds")}
    facts = [f"{status.run}: {stand(status)}", *(f"{status.run}: {problem}" for problem in status.problems)]
    facts += [f"{status.run}: {status.trouble}"] if status.trouble else []
    return _View(status_lines(status, now=datetime.now(UTC)), facts, values)


def _watch(look: Callable[[], _View]) -> int:
    """Show what changes until Ctrl-C: in place on a terminal, else a line for each piece of news."""
    view = look()
    console = Console()
    try:
        if console.is_terminal:
            with Live(Text("\n".join(view.lines)), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(WATCH_EVERY_S)
                    live.update(Text("\n".join(look().lines)), refresh=True)
        known: set[str] = set()
        while True:
            for fact in view.facts:
                if fact not in known:
                    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {fact}", flush=True)
            known = {*view.facts}
            time.sleep(WATCH_EVERY_S)
            view = look()
    except KeyboardInterrupt:
        return 0
