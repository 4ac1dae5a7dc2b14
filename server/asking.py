"""Asks several sites the same and takes the replies that are of use; a site whose reply is not has a reason instead."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.messages import MESSAGE_TYPES, task_records
from common.study import Study
from common.tasks import CompareTask, DuplicatesTask, EvaluateTask, Failure, StatisticsTask
from server.exchange import Contents, collect

ReplyT = TypeVar("ReplyT")


class OfStudy(Protocol):
    """A reply that names the study it was given for."""

    @property
    def study_digest(self) -> str:
        """Digest of the study."""


OfStudyT = TypeVar("OfStudyT", bound=OfStudy)


def ask_each(
    grid: Grid,
    task: EvaluateTask | CompareTask | StatisticsTask | DuplicatesTask,
    read: Callable[[str, RecordDict], ReplyT],
    *,
    nodes: Mapping[str, int],
    contents: Contents | None = None,
    on_sent: Callable[[str, int], None] = lambda site, num_bytes: None,
    group: str,
    enough: int,
    answered: Callable[[str], None],
) -> tuple[dict[str, ReplyT], dict[str, str]]:
    """Send a task to several sites and read what they reply.

    Args:
        grid: Flower's Grid.
        task: What every site is asked.
        read: Reads the reply of a site; raises ProtocolError, whose text is the reason, if it is of no use.
        contents: What the sites are sent of the task; None for all of it.
        on_sent: Called with the site and the bytes of the content whenever it has been sent that.
        nodes: Flower's node of each site that is asked.
        group: Flower's label for these messages.
        enough: Replies without which sites that are not connected are waited for.
        answered: Called with each site whose reply has come, of use or not.

    Returns:
        The reply of each site, and the reason for each that gave none of use.
    """
    replies: dict[str, ReplyT] = {}
    problems: dict[str, str] = {}

    def take(site: str, records: RecordDict) -> None:
        try:
            replies[site] = read(site, records)
        except ProtocolError as error:
            problems[site] = str(error)
        answered(site)

    problems |= collect(
        grid,
        contents or Contents.alike(lambda: task_records(task)),
        message_type=MESSAGE_TYPES[type(task)],
        group=group,
        nodes=nodes,
        timeout_s=task.study.participation.round_timeout_s,
        enough=enough,
        on_reply=take,
        on_sent=on_sent,
    )
    return replies, problems


def require_of_study(reply: OfStudyT | Failure, study: Study, *, failures: Mapping[str, str] | None = None) -> OfStudyT:
    """The reply, where it is one and of the study that was asked about.

    Args:
        reply: Of a site.
        study: What was asked about.
        failures: Reasons in words by the code of a failure; of others the code is the reason.

    Raises:
        ProtocolError: If it is not.
    """
    if isinstance(reply, Failure):
        raise ProtocolError((failures or {}).get(reply.code, f"failed: {reply.code}"))
    if reply.study_digest != study.digest:
        raise ProtocolError(f"study {reply.study_digest[:12]}, expected {study.digest[:12]}")
    return reply
