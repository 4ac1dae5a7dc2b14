"""Evaluation of one model state at all sites."""

import logging
from collections.abc import Callable, Mapping

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.messages import MESSAGE_TYPES, read_evaluate_reply, task_records
from common.tasks import EvaluateTask, Evaluation, Failure, SiteManifest
from server.exchange import collect
from server.pooling import Pool, pool_evaluations

log = logging.getLogger(__name__)


def evaluate_at_sites(
    grid: Grid,
    task: EvaluateTask,
    *,
    nodes: Mapping[str, int],
    manifests: Mapping[str, SiteManifest],
    missing: Mapping[str, str],
    answered: Callable[[str], None],
) -> Pool:
    """Send a model state to all sites and pool what they count.

    Args:
        grid: Flower's Grid.
        task: What every site is asked.
        nodes: Flower's node of each site that is asked.
        manifests: What those sites registered.
        missing: Sites that are not asked, with the reason.
        answered: Called with each site whose reply has come.
    """
    evaluations: dict[str, Evaluation] = {}
    problems = dict(missing)

    def take(site: str, records: RecordDict) -> None:
        try:
            evaluations[site] = _read(records, task, manifests[site])
        except ProtocolError as error:
            problems[site] = str(error)
        answered(site)

    problems |= collect(
        grid,
        lambda: task_records(task),
        message_type=MESSAGE_TYPES[EvaluateTask],
        group=task.split,
        nodes=nodes,
        timeout_s=task.study.participation.round_timeout_s,
        enough=task.study.participation.min_sites,
        on_reply=take,
    )
    for site, reason in sorted(problems.items()):
        log.warning("evaluation on %s, %s: %s", task.split, site, reason)
    return pool_evaluations(evaluations, missing=problems, study=task.study)


def _read(records: RecordDict, task: EvaluateTask, manifest: SiteManifest) -> Evaluation:
    reply = read_evaluate_reply(records, task)
    if isinstance(reply, Failure):
        raise ProtocolError(f"failed: {reply.code}")
    evaluation = reply.evaluation
    if reply.study_digest != task.study.digest:
        raise ProtocolError(f"study {reply.study_digest[:12]}, expected {task.study.digest[:12]}")
    if evaluation.split != task.split:
        raise ProtocolError(f"evaluated the {evaluation.split} patients, expected {task.split}")
    if evaluation.cohort_digest != manifest.cohort_digests[task.split]:
        raise ProtocolError(f"the {task.split} patients are not those registered before the first round")
    if evaluation.statistics is not None:
        found, registered = evaluation.statistics.num_patients, manifest.num_patients[task.split]
        if found != registered:
            raise ProtocolError(f"counted {found} patients, registered {registered}")
    return evaluation
