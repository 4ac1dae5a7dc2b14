"""Leaves a run off before its end, because the coordinator wishes it. What it has done so far is kept."""

import json
import time
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigError
from common.tasks import SiteManifest
from server import progress as checkpoint
from server.keeper import outcome_of
from server.locks import PATIENCE_S, hold, holder, is_held
from server.processes import kill_tree, wait_for_end
from server.progress import Progress
from server.record import stopped_text, write_record
from server.report import write_report
from server.run_folder import RunFolder, write_atomically

_MANIFESTS = TypeAdapter(dict[str, SiteManifest])


def require_unended(folder: RunFolder) -> None:
    """Refuse to leave off a run that has ended.

    Raises:
        ConfigError: If it has.
    """
    if folder.record.is_file() and not folder.resumption.is_file():
        raise ConfigError(f"{folder.path}: this run has ended {outcome_of(folder)} already")


def kill_server_app(folder: RunFolder) -> None:
    """End the process that carries a run, if there is one, at once."""
    end = time.monotonic() + PATIENCE_S
    while (carrier := holder(folder.server_app_lock)) is None:
        if not is_held(folder.server_app_lock) or time.monotonic() >= end:
            return
        time.sleep(0.05)  # it has the lock and has not said yet who it is
    kill_tree(carrier.pid)
    wait_for_end(carrier.pid, carrier.started)
    end = time.monotonic() + PATIENCE_S
    while is_held(folder.server_app_lock) and time.monotonic() < end:
        time.sleep(0.05)  # its main thread is gone, and others are about to be


def record_stop(folder: RunFolder, *, now: datetime) -> None:
    """Write the record and the report of a run that the coordinator stops.

    Args:
        folder: The run.
        now: When it was stopped.

    Raises:
        ConfigError: If a process carries the run, or its files were damaged.
    """
    study = folder.read_study()
    with hold(folder.server_app_lock, otherwise=f"{folder.path}: a process carries this run; stop that one"):
        progress = checkpoint.read_progress(folder)
        if progress is None:
            progress = Progress(round=0, state_digest="", study_digest=study.digest)
            write_atomically(folder.rounds, b"")
        manifests = read_manifests(folder)
        expected = folder.read_participants().sites
        write_record(
            folder,
            study,
            progress=progress,
            manifests=manifests,
            not_joined={site: "had not joined by then" for site in expected if site not in manifests},
            final=None,
            error=stopped_text(progress.round),
            now=now,
        )
        write_report(folder)


def read_manifests(folder: RunFolder) -> dict[str, SiteManifest]:
    """What the sites of a run brought, as far as they have joined; nothing where that is not known."""
    try:
        digest = folder.read_study().digest
        values: dict[str, dict[str, Any]] = json.loads(folder.manifests.read_bytes())
        return _MANIFESTS.validate_python(
            {site: {"site": site, "study_digest": digest, **each} for site, each in values.items()}
        )
    except (OSError, ValueError, TypeError, AttributeError, ValidationError):
        return {}
