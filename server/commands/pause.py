"""`gliorn-server pause`: has a run wait after the round it is in."""

import argparse

from server.commands.places import add_federation_argument, federation_folder, run_of_federation
from server.leaving_off import kill_server_app, require_unended
from server.locks import is_held


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "pause",
        help="have a run wait after the round it is in",
        description="Have a run wait after the round it is in. `gliorn-server run --resume RUN` continues it with the "
        "same bytes as if it had not waited.",
    )
    add_federation_argument(parser)
    parser.add_argument("run", metavar="RUN", help="name of the run")
    parser.add_argument("--now", action="store_true", help="at once; the round it is in is done again later")
    parser.set_defaults(command=_pause)


def _pause(arguments: argparse.Namespace) -> int:
    folder = run_of_federation(federation_folder(arguments), arguments.run)
    require_unended(folder)
    folder.write_wish("pause")
    if arguments.now:
        kill_server_app(folder)
    if is_held(folder.server_app_lock):
        print(f"Run {folder.name} waits after the round it is in; `--now` does not wait for that round's end.")
    else:
        print(f"Run {folder.name} waits.")
    print(f"Next: `gliorn-server run --resume {folder.name}` continues it.")
    return 0
