"""The ClientApp that Flower runs at a hospital, whatever the engine.

Where the site's configuration lies comes from the hospital's own node settings, never from the run. What goes wrong is
answered with a code: the text of an exception may hold a path or a patient's identifier, and Flower would send it.
"""

import logging
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.config import read_site_config
from client.kit import SITE_CONFIG_KEY
from client.site import Site
from client.time_limit import time_limit
from common.errors import ConfigError, DataError, DisclosureError, GliornError
from common.messages import ping_records, read_describe_task, read_evaluate_task, read_train_task, reply_records
from common.study import Study
from common.tasks import Failure, Reply

__all__ = ["SITE_CONFIG_KEY", "app"]

log = logging.getLogger(__name__)

_CODES_OF_CHECK = (ConfigError.code, DataError.code, DisclosureError.code)
"""Codes of what `gliorn-client check` finds as well."""

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say what this site brings to the study."""
    return _answer(message, lambda: _site(context, read_describe_task(message.content).study).describe())


@app.query("ping")
def ping(message: Message, context: Context) -> Message:
    """Say that this site has done all it was sent before, for it does one thing after the other."""
    return Message(ping_records(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluate the state that arrived, then train it."""

    def act() -> Reply:
        task = read_train_task(message.content)
        return _site(context, task.study).train(task)

    return _answer(message, act)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the state that arrived."""

    def act() -> Reply:
        task = read_evaluate_task(message.content)
        return _site(context, task.study).evaluate(task)

    return _answer(message, act)


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
            site = _open_sites[path] = Site.open(read_site_config(Path(path)), study)
        return site


def _answer(message: Message, act: Callable[[], Reply]) -> Message:
    """Carry out a task within the coordinator's time and turn every failure into a code."""
    try:
        with time_limit(
            message.metadata.ttl
        ):  # not until created_at + ttl: that is the time of the coordinator's clock
            content = reply_records(act())
    except GliornError as error:
        advice = "; `gliorn-client check` at this site shows the details" if error.code in _CODES_OF_CHECK else ""
        log.error("%s failed (%s)%s", message.metadata.message_type, error.code, advice)
        content = reply_records(Failure(error.code))
    except Exception as error:  # noqa: BLE001 - the border of the hospital: no exception's text may pass it
        log.error("%s failed: %s", message.metadata.message_type, _place_of(error))
        content = reply_records(Failure("internal"))
    return Message(content, reply_to=message)


def _place_of(error: Exception) -> str:
    """Type and source line of an exception, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
