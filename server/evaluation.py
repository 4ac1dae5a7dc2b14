"""Evaluation of one model state at all sites."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.messages import read_evaluate_reply
from common.tasks import Damage, EvaluateReply, EvaluateTask, Evaluation, OwnChoice, SiteManifest
from server.asking import ask_each, require_of_study
from server.downloads import Downloads
from server.pooling import Pool, pool_evaluations

log = logging.getLogger(__name__)

HELD_OUT = "held out: a site that does not train has no model of its own"


@dataclass(frozen=True)
class EvaluatedState:
    """What the sites counted of one model state.

    Attributes:
        pool: Of the global model.
        personal: Of the sites' own models, each on its own patients; None in a study without.
        choices: What each site chose for a model that it trained by itself; empty where one model is tested.
        personal_choices: The same for the sites' own models beside the global one.
        damaged: What each site had kept and could not read.
    """

    pool: Pool
    personal: Pool | None
    choices: Mapping[str, OwnChoice]
    personal_choices: Mapping[str, OwnChoice]
    damaged: Mapping[str, tuple[Damage, ...]]


def evaluate_at_sites(
    grid: Grid,
    task: EvaluateTask,
    *,
    downloads: Downloads,
    nodes: Mapping[str, int],
    manifests: Mapping[str, SiteManifest],
    missing: Mapping[str, str],
    answered: Callable[[str], None],
) -> EvaluatedState:
    """Send a model state to all sites and pool what they count.

    Args:
        grid: Flower's Grid.
        task: What every site is asked.
        downloads: How its state goes to each.
        nodes: Flower's node of each site that is asked.
        manifests: What those sites registered.
        missing: Sites that are not asked, with the reason.
        answered: Called with each site whose reply has come.
    """
    study = task.study
    held_out = study.participation.held_out
    is_personalized = study.personalization.method != "none"
    with_personal = [site for site in nodes if is_personalized and site not in held_out]

    def read(site: str, records: RecordDict) -> EvaluateReply:
        return _read(records, task, manifests[site], has_personal=site in with_personal)

    enough = study.participation.min_sites
    replies, unusable = ask_each(
        grid,
        task,
        read,
        contents=downloads.contents,
        on_sent=downloads.note_sent,
        nodes=nodes,
        group=task.split,
        enough=enough,
        answered=answered,
    )
    for site, reply in replies.items():
        downloads.holdings.note(site, reply.held)
    problems = dict(missing) | unusable
    for site, reason in sorted(problems.items()):
        log.warning("evaluation on %s, %s: %s", task.split, site, reason)
    pool = pool_evaluations({site: reply.evaluation for site, reply in replies.items()}, missing=problems, study=study)
    own = {
        site: reply.personal for site, reply in replies.items() if site not in held_out and reply.personal is not None
    }
    without = problems | {site: HELD_OUT for site in replies if site in held_out}
    return EvaluatedState(
        pool,
        pool_evaluations(own, missing=without, study=study) if is_personalized else None,
        {site: reply.choice for site, reply in sorted(replies.items()) if reply.choice is not None},
        {site: choice for site in sorted(own) if (choice := replies[site].personal_choice) is not None},
        {site: reply.damaged for site, reply in sorted(replies.items()) if reply.damaged},
    )


def _read(records: RecordDict, task: EvaluateTask, manifest: SiteManifest, *, has_personal: bool) -> EvaluateReply:
    reply = require_of_study(read_evaluate_reply(records, task), task.study)
    _screen(reply.evaluation, task, manifest)
    if has_personal:
        if reply.personal is None:
            raise ProtocolError("the reply holds no evaluation of the site's own model, which the study asks for")
        _screen(reply.personal, task, manifest)
    return reply


def _screen(evaluation: Evaluation, task: EvaluateTask, manifest: SiteManifest) -> None:
    if evaluation.split != task.split:
        raise ProtocolError(f"evaluated the {evaluation.split} patients, expected {task.split}")
    if evaluation.cohort_digest != manifest.cohort_digests[task.split]:
        raise ProtocolError(f"the {task.split} patients are not those registered before the first round")
    if evaluation.statistics is not None:
        found, registered = evaluation.statistics.num_patients, manifest.num_patients[task.split]
        if found != registered:
            raise ProtocolError(f"counted {found} patients, registered {registered}")
