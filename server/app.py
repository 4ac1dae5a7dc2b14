"""The ServerApp that Flower runs at the coordinator, whatever the engine.

Which run it is comes with the run's settings as a plain name; where runs lie is the coordinator's own affair and comes
from the environment.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import ConfigError, GliornError
from server.federation import Federation
from server.keeper import is_due
from server.locks import hold
from server.report import write_report
from server.run_folder import RUN_KEY, RUN_NAME, RUNS_VARIABLE, RunFolder
from server.statistics_note import is_statistics_run
from server.statistics_run import carry_statistics

log = logging.getLogger(__name__)

LOGGED = ("server", "common")
"""The rooms whose log lines belong to a run."""

LOG_BYTES, LOG_FILES = 10_000_000, 2
"""Of a run's log, and how many older ones are kept beside it."""

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
    if not folder.path.is_dir():
        raise ConfigError(f"{folder.path}: no such folder, expected the folder of a run")
    otherwise = f"{folder.path}: another process carries this run; it goes on there"
    with hold(folder.server_app_lock, otherwise=otherwise), _logged_to(folder.log):
        if folder.wish.is_file() and not is_due(folder):
            log.warning("started, but nobody wants the run to go on now")
            return
        _carry(grid, folder)


def _carry(grid: Grid, folder: RunFolder) -> None:
    try:
        if is_statistics_run(folder):
            log.info("the run ended %s", carry_statistics(grid, folder, now=lambda: datetime.now(UTC)))
            return
        outcome = Federation(grid, folder, now=lambda: datetime.now(UTC)).run()
        log.info("the run ended %s", outcome)
    except GliornError as error:
        log.error("%s", error)
        if folder.record.is_file():
            write_report(folder)
        raise
    except Exception:
        log.exception("a fault of this program")
        raise
    if folder.record.is_file():
        write_report(folder)


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Add what the coordinator's side logs to a file: one line for each round and site, warnings, faults."""
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in LOGGED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
