"""Where commands find the federation and the run they are asked about."""

import argparse
import os
from pathlib import Path

from common.errors import ConfigError
from server.federation_folder import FederationFolder
from server.run_folder import RunFolder

FEDERATION_VARIABLE = "GLIORN_FEDERATION"


def add_federation_argument(parser: argparse.ArgumentParser) -> None:
    """Let a command be told which federation it is about."""
    parser.add_argument(
        "--federation",
        type=Path,
        default=Path(os.environ.get(FEDERATION_VARIABLE, ".")),
        metavar="DIR",
        help=f"the federation's folder; by default ${FEDERATION_VARIABLE}, else the current folder",
    )


def federation_folder(arguments: argparse.Namespace) -> FederationFolder:
    """The federation that a command is about; its settings are not read yet."""
    return FederationFolder(arguments.federation)


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Let a command be told which run it is about: by name in a federation's folder, or by path."""
    add_federation_argument(parser)
    parser.add_argument("run", metavar="RUN", help="name of the run, or path of its folder")


def run_folder(arguments: argparse.Namespace) -> RunFolder:
    """The run that a command is about: the one of that name in the federation, else the folder of that path."""
    named = federation_folder(arguments).runs / arguments.run
    return RunFolder(named if named.is_dir() else Path(arguments.run))


def run_of_federation(federation: FederationFolder, name: str) -> RunFolder:
    """A run that the federation carries.

    Raises:
        ConfigError: If there is none of that name.
    """
    folder = RunFolder(federation.runs / name)
    if "/" in name or not folder.wish.is_file():
        known = sorted(path.parent.name for path in federation.runs.glob("*/wish.json"))
        raise ConfigError(
            f"{federation.path}: no run {name!r} in it, expected one of: {', '.join(known) or 'none yet'}"
        )
    return folder
