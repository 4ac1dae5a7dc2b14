"""How the global state reaches a site: whole, as a coded difference, or not at all where the site keeps it already.

Whatever the way, the state that a site works with is the one that the coordinator named by its digest.
"""

import logging
from dataclasses import replace
from typing import TypeVar

from client.site_memory import SiteMemory
from client.trained_names import trained_names
from common.errors import ConfigError, ProtocolError, StateMissingError
from common.model_state import ModelState, state_digest
from common.study import Study
from common.tasks import EvaluateTask, SentState, TrainTask
from common.update_codec import decode_update

log = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", TrainTask, EvaluateTask)


def arrived(task: TaskT, memory: SiteMemory) -> tuple[TaskT, str]:
    """The task with the state that it is about, which stays in the site's memory where it can be of use again.

    A message that comes again, after lost work, may find that state already there in place of the one before.

    Returns:
        The task, and the digest of the state that the site keeps from now on; empty where it keeps none.

    Raises:
        StateMissingError: If the site does not keep what the state is to be made of.
        ProtocolError: If what came is no such state.
    """
    sent = task.sent
    assert sent is not None, "a task that was read says how its state came"
    kept = None if sent.way == "whole" else memory.read_global(sent.digest)
    if kept is not None:
        return replace(task, state=kept), sent.digest
    state = _received(task, sent, memory)
    return replace(task, state=state), sent.digest if _keeps(task, state, sent.digest, memory) else ""


def _received(task: TrainTask | EvaluateTask, sent: SentState, memory: SiteMemory) -> ModelState:
    if sent.way == "whole":
        if state_digest(task.state) != sent.digest:
            raise ProtocolError(
                "the global state that came is not the one that the message names by its SHA-256; both sides need the "
                "same version of this program"
            )
        return task.state
    reference = memory.read_global(sent.reference) if sent.update is not None else None
    if reference is None:
        raise StateMissingError("this site does not keep the global state that the message builds on")
    scheme = task.study.communication.download
    assert sent.update is not None and scheme != "fp32"  # noqa: PT018 - as the message was read
    state = decode_update(sent.update, reference, scheme, trained=trained_names(task.study))
    if state_digest(state) != sent.digest:
        raise StateMissingError("the difference that came does not lead to the state that the message names")
    return state


def _keeps(task: TrainTask | EvaluateTask, state: ModelState, digest: str, memory: SiteMemory) -> bool:
    """Keep a state that the site may be asked about again; False if it is none, or there is no room for it.

    In a study that sends whole states, and whose rounds change them, that of a round is not sent a second time.
    """
    if isinstance(task, TrainTask) and not _needs_last_state(task.study):
        return False
    try:
        memory.keep_global(state, digest)
    except ConfigError as error:
        log.warning("the global state is not kept (%s) and has to be sent whole the next time", type(error).__name__)
        return False
    return True


def _needs_last_state(study: Study) -> bool:
    return study.communication.download != "fp32" or study.aggregation.method == "local"
