"""`gliorn-server statistics`: has the sites show statistics of their cohorts before any training, or shows them."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ConfigError
from server.commands.places import add_federation_argument, federation_folder
from server.commands.run import DONE, begin, wait_for_end
from server.run_folder import RunFolder, write_atomically
from server.serving import is_served
from server.statistics_note import statistics_file, statistics_page
from server.statistics_page import read_statistics, render_statistics, statistics_lines


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "statistics",
        help="have the sites show statistics of their cohorts before training, or show them",
        description="Have the sites show statistics of their cohorts: classes, ages, sexes, voxels, missing sequences, "
        "intensities. It is a run of its own in which nothing is trained. A site takes part if it has accepted the "
        "study and its site.yaml says disclosure.statistics: true; it hides small counts itself.",
    )
    add_federation_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("study", nargs="?", type=Path, metavar="STUDY", help="study.yaml that the sites agree to")
    what.add_argument("--show", metavar="RUN", help="show what a run of statistics found, and write its page anew")
    parser.add_argument("--name", help="the run's name; by default the study's with -statistics, date and time")
    parser.add_argument(
        "--sites", metavar="A,B,…", help="names of the sites that are expected; by default all that are admitted"
    )
    parser.add_argument(
        "--wait", action="store_true", help="stay until it has ended, then show it; 2 if without result"
    )
    parser.add_argument("--json", action="store_true", help="--show: as JSON, for a script")
    parser.set_defaults(command=_statistics)


def _statistics(arguments: argparse.Namespace) -> int:
    federation = federation_folder(arguments)
    if arguments.show is not None:
        if arguments.name is not None or arguments.sites is not None or arguments.wait:
            raise ConfigError("--show: begins nothing; leave --name, --sites and --wait out")
        named = federation.runs / arguments.show
        show(RunFolder(named if named.is_dir() else Path(arguments.show)), as_json=arguments.json)
        return DONE
    if arguments.json:
        raise ConfigError("--json: belongs to --show; wait for the run's end and show it then")
    federation.read_config()
    folder = begin(
        federation,
        arguments.study,
        name=arguments.name,
        sites=arguments.sites,
        now=datetime.now(UTC),
        statistics=True,
    )
    if not is_served(federation):
        print("No server is running: the run begins when `gliorn-server start` does.")
    if not arguments.wait:
        print(f"Next: `gliorn-server statistics --show {folder.name}` shows it once it has ended.")
        return DONE
    status = wait_for_end(folder)
    if status == DONE:
        show(folder, as_json=False)
    return status


def show(folder: RunFolder, *, as_json: bool) -> None:
    """Print what a run of statistics found and write its page.

    Raises:
        ConfigError: If there is nothing to show yet.
    """
    shown = read_statistics(folder)
    page = statistics_page(folder)
    write_atomically(page, render_statistics(shown).encode())
    if as_json:
        print(json.dumps(json.loads(statistics_file(folder).read_text(encoding="utf-8")), indent=1))
        return
    print("\n".join(statistics_lines(shown)))
    print(f"Page: {page}")
