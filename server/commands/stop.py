"""`gliorn-server stop`: ends a run without a result."""

import argparse
from datetime import UTC, datetime

from server.commands.places import add_federation_argument, federation_folder, run_of_federation
from server.leaving_off import kill_server_app, record_stop, require_unended
from server.locks import is_held


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "stop",
        help="end a run after the round it is in, without a result",
        description="End a run after the round it is in. Its record says INVALID and why; what it has done is kept, "
        "and `gliorn-server run --resume RUN` continues it.",
    )
    add_federation_argument(parser)
    parser.add_argument("run", metavar="RUN", help="name of the run")
    parser.add_argument("--now", action="store_true", help="at once; the round it is in is lost")
    parser.set_defaults(command=_stop)


def _stop(arguments: argparse.Namespace) -> int:
    folder = run_of_federation(federation_folder(arguments), arguments.run)
    require_unended(folder)
    folder.write_wish("stop")
    if arguments.now:
        kill_server_app(folder)
    if is_held(folder.server_app_lock):
        print(f"Run {folder.name} ends after the round it is in; `--now` does not wait for that round's end.")
    else:
        if not folder.record.is_file():
            record_stop(folder, now=datetime.now(UTC))
        folder.resumption.unlink(missing_ok=True)
        print(f"Run {folder.name} is ended; {folder.record} says so.")
    print(f"Next: `gliorn-server status {folder.name}`; `gliorn-server run --resume {folder.name}` continues it.")
    return 0
