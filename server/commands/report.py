"""`gliorn-server report`: writes the report of a run that has ended."""

import argparse

from common.errors import ConfigError
from server.commands.places import add_run_argument, run_folder
from server.report import write_report
from server.statistics_note import is_statistics_run


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "report", help="write report.html of a run that has ended", description="Write report.html of a run anew."
    )
    add_run_argument(parser)
    parser.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> int:
    folder = run_folder(arguments)
    if is_statistics_run(folder):
        raise ConfigError(
            f"{folder.path}: is a run of statistics, which has no report; "
            f"`gliorn-server statistics --show {arguments.run}` shows what it has"
        )
    print(write_report(folder))
    print("Next: open it in a browser, or print it; it is one file and asks nothing of any network.")
    return 0
