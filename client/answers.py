"""What the site's journal says of an answer."""

from collections.abc import Mapping
from datetime import UTC, datetime

from client.journal import Entry, Kind
from common.tasks import (
    CompareReply,
    CompareTask,
    DescribeTask,
    DuplicatesReply,
    DuplicatesTask,
    EvaluateReply,
    EvaluateTask,
    Failure,
    Reply,
    SiteManifest,
    StatisticsReply,
    StatisticsTask,
    TrainReply,
    TrainTask,
)


def entry_of(
    kind: Kind,
    task: DescribeTask | TrainTask | EvaluateTask | CompareTask | StatisticsTask | DuplicatesTask | None,
    reply: Reply,
    sent: Mapping[str, Mapping[str, int]],
) -> Entry:
    """The entry of an answer.

    Args:
        kind: What was asked.
        task: The same; None where it could not be read.
        reply: What is answered.
        sent: The size of each of its parts.
    """
    facts: dict[str, float | str] = {}
    match reply:
        case TrainReply():
            facts = {"steps": reply.num_steps, "patients": sum(reply.num_patients), "mean_loss": reply.train_loss}
        case EvaluateReply():
            facts = {"split": reply.evaluation.split}
        case SiteManifest():
            facts = {"patients": sum(reply.num_patients["train"])}
        case CompareReply():
            facts = {"withheld": reply.withheld}
            if isinstance(task, CompareTask):
                facts |= {"first": task.first.run, "second": task.second.run}
        case StatisticsReply():
            facts = {"withheld": reply.withheld}
        case DuplicatesReply():
            whose = "own" if isinstance(task, DuplicatesTask) and task.patients is None else "all sites'"
            facts = {"patients": sum(len(patients.groups) for patients in reply.patients), "whose": whose}
        case Failure():
            pass
    training = task if isinstance(task, TrainTask) else None
    return Entry(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
        study=task.study.name if task else None,
        study_digest=task.study.digest if task else None,
        run=training.run if training else None,
        round=training.round if training else None,
        rounds=training.study.rounds if training else None,
        failure=reply.code if isinstance(reply, Failure) else None,
        sent=sent,
        facts=facts,
    )
