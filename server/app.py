"""The ServerApp that Flower runs at the coordinator, whatever the engine.

Which run it is comes with the run's settings as a plain name; where runs lie is the coordinator's own affair and comes
from the environment.
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import ConfigError
from server.federation import Federation, QuorumError
from server.report import write_report
from server.run_folder import RUN_NAME, RunFolder

RUNS_VARIABLE = "GLIORN_RUNS"
"""Environment variable that names the folder of all runs."""

RUN_KEY = "run"
"""Flower run setting that names the run: a folder's name, no path."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the named run, from the start or from where it was stopped."""
    name = context.run_config.get(RUN_KEY)
    if not isinstance(name, str) or not re.fullmatch(RUN_NAME, name):
        raise ConfigError(f"run setting {RUN_KEY!r} is {name!r}, expected the name of a run's folder")
    runs = os.environ.get(RUNS_VARIABLE)
    if not runs:
        raise ConfigError(f"the environment variable {RUNS_VARIABLE} is not set, expected the folder of all runs")
    folder = RunFolder(Path(runs) / name)
    federation = Federation(grid, folder, now=lambda: datetime.now(UTC))
    try:
        federation.run()
    except QuorumError:
        write_report(folder)
        raise
    write_report(folder)
