"""The ClientApp that Flower runs at a hospital, whatever the engine.

Where the site's configuration lies comes from the hospital's own node settings, never from the run. What goes wrong is
answered with a code: the text of an exception may hold a path or a patient's identifier, and Flower would send it.
"""

import logging
import os
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.answers import entry_of
from client.config import read_site_config
from client.consent import require_consent
from client.download import arrived
from client.journal import JOURNAL_VARIABLE, Kind, append
from client.kit import SITE_CONFIG_KEY
from client.site import Site
from client.site_memory import SiteMemory
from client.time_limit import time_limit
from client.upload import coded_reply
from common.errors import (
    ConfigError,
    ConsentError,
    DataError,
    DisclosureError,
    DiskFullError,
    GliornError,
    StateMissingError,
)
from common.messages import (
    ping_records,
    read_compare_task,
    read_describe_task,
    read_duplicates_task,
    read_evaluate_task,
    read_statistics_task,
    read_train_task,
    reply_records,
)
from common.record_values import sizes_of_records
from common.study import Study
from common.tasks import (
    CompareTask,
    DescribeTask,
    DuplicatesTask,
    EvaluateReply,
    EvaluateTask,
    Failure,
    Reply,
    StatisticsTask,
    TrainReply,
    TrainTask,
)

__all__ = ["SITE_CONFIG_KEY", "app"]

log = logging.getLogger(__name__)

_CHECK = "; `gliorn-client check` at this site shows the details"
_ADVICE = {
    ConfigError.code: _CHECK,
    DataError.code: _CHECK,
    DisclosureError.code: _CHECK,
    ConsentError.code: "; `gliorn-client accept` at this site shows the study and agrees to it",
}
"""What a person at the site can do, by the code of the error."""

_DISK_FULL = "; the disk that holds the folder `cache` of site.yaml is full: make room there"

Task = DescribeTask | TrainTask | EvaluateTask | CompareTask | StatisticsTask | DuplicatesTask
TaskT = TypeVar("TaskT", DescribeTask, TrainTask, EvaluateTask, CompareTask, StatisticsTask, DuplicatesTask)

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say what this site brings to the study."""
    return _answer(message, context, "describe", read_describe_task, lambda site, task: site.describe())


@app.query("ping")
def ping(message: Message, context: Context) -> Message:
    """Say that this site has done all it was sent before, for it does one thing after the other."""
    return Message(ping_records(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluate the state that arrived, then train it."""
    return _answer(message, context, "train", read_train_task, _train)


def _train(site: Site, task: TrainTask) -> TrainReply:
    memory = _memory(site, task)
    task, held = arrived(task, memory)
    reply = coded_reply(site.train(task), task, memory)
    return replace(reply, damaged=tuple(sorted({*reply.damaged, *memory.damaged})), held=held)


def _memory(site: Site, task: TrainTask | EvaluateTask) -> SiteMemory:
    return SiteMemory(site.config.cache, run=task.run, study_digest=site.study.digest, run_id=task.run_id)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the state that arrived."""
    return _answer(message, context, "evaluate", read_evaluate_task, _evaluate)


def _evaluate(site: Site, task: EvaluateTask) -> EvaluateReply:
    task, held = arrived(task, _memory(site, task))
    return replace(site.evaluate(task), held=held)


@app.query("compare")
def compare(message: Message, context: Context) -> Message:
    """Compare two models on the test patients, in sums over them."""
    return _answer(message, context, "compare", read_compare_task, lambda site, task: site.compare(task))


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Show statistics of the cohort, where this site agreed to that."""
    return _answer(message, context, "statistics", read_statistics_task, lambda site, task: site.show_statistics())


@app.query("duplicates")
def duplicates(message: Message, context: Context) -> Message:
    """Blind images, where this site agreed to have its patients compared with those of others."""
    return _answer(message, context, "duplicates", read_duplicates_task, lambda site, task: site.blind_patients(task))


_open_sites: dict[str, Site] = {}
_opening: dict[str, threading.Lock] = defaultdict(threading.Lock)


def _site(context: Context, study: Study) -> Site:
    """The site of this node in a study; kept open between messages where the process lives on.

    Each site has a lock of its own, so that several sites in one process do not wait for one that opens slowly.
    """
    path = context.node_config.get(SITE_CONFIG_KEY)
    if not isinstance(path, str):
        raise ConfigError(f"node setting {SITE_CONFIG_KEY!r} is {path!r}, expected the path of a site configuration")
    with _opening[path]:
        site = _open_sites.get(path)
        if site is None or site.study != study:
            _open_sites.pop(path, None)  # before the next one is loaded: both together may not fit into memory
            config = read_site_config(Path(path))
            require_consent(config, study)
            site = _open_sites[path] = Site.open(config, study)
        return site


def _answer(
    message: Message,
    context: Context,
    kind: Kind,
    read: Callable[[RecordDict], TaskT],
    act: Callable[[Site, TaskT], Reply],
) -> Message:
    """Carry out a task within the coordinator's time, and turn every failure into a code.

    What leaves is written to the site's journal first, and does not leave if it cannot be.
    """
    started = time.monotonic()
    task: TaskT | None = None
    disk_is_full = False
    try:
        with time_limit(
            message.metadata.ttl
        ):  # not until created_at + ttl: that is the time of the coordinator's clock
            task = read(message.content)
            reply = act(_site(context, task.study), task)
            content = reply_records(reply)
            _record(kind, task, reply, content, started=started)
            return Message(content, reply_to=message)
    except StateMissingError as error:
        failure = Failure(error.code)
        log.info("the coordinator is asked for the whole global state, which this site does not have")
    except GliornError as error:
        failure = Failure(error.code)
        disk_is_full = isinstance(error, DiskFullError)
        advice = _DISK_FULL if disk_is_full else _ADVICE.get(error.code, "")
        log.error("%s failed (%s)%s", message.metadata.message_type, error.code, advice)
    except Exception as error:  # noqa: BLE001 - the border of the hospital: no exception's text may pass it
        failure = Failure("internal")
        log.error("%s failed: %s", message.metadata.message_type, _place_of(error))
    content = reply_records(failure)
    try:
        _record(kind, task, failure, content, started=started, disk_is_full=disk_is_full)
    except OSError as error:  # a code alone leaves without it, so that the coordinator learns of a full disk
        log.error("the journal cannot be written: %s", _place_of(error))
    return Message(content, reply_to=message)


def _record(
    kind: Kind,
    task: Task | None,
    reply: Reply,
    content: RecordDict,
    *,
    started: float,
    disk_is_full: bool = False,
) -> None:
    """Write to the journal, where there is one, what is about to leave."""
    path = os.environ.get(JOURNAL_VARIABLE)
    if path:
        entry = entry_of(kind, task, reply, sizes_of_records(content))
        facts = {**entry.facts, "disk": "full"} if disk_is_full else entry.facts
        append(Path(path), replace(entry, facts=facts, seconds=round(time.monotonic() - started, 1)))


def _place_of(error: Exception) -> str:
    """Type and source line of an exception, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
