"""What a reply must fulfil before it may touch the global model; a site that fails is named with the reason."""

from collections.abc import Mapping
from statistics import median

import numpy as np

from common.errors import ProtocolError
from common.model_state import ModelState, blocks, non_finite_entry, require_same_parameters, update_norm
from common.tasks import SiteManifest, TrainReply


def screen_train_reply(
    reply: TrainReply, *, study_digest: str, round: int, manifest: SiteManifest, global_state: ModelState
) -> float:
    """Check one reply on its own.

    Args:
        reply: What the site sent.
        study_digest: The digest of this run's study.
        round: The round that was asked for.
        manifest: What the site registered before the first round.
        global_state: The state the site was sent; empty where sites send no state back.

    Returns:
        The norm of the site's update.

    Raises:
        ProtocolError: Says what was found and what was expected.
    """
    if reply.study_digest != study_digest:
        raise ProtocolError(f"study {reply.study_digest[:12]}, expected {study_digest[:12]}")
    if reply.round != round:
        raise ProtocolError(f"a reply to round {reply.round}, expected round {round}")
    _require_registered_patients(reply.num_patients, manifest.num_patients["train"])
    _require_registered_evaluation(reply, manifest)
    require_same_parameters(reply.state, global_state)
    if (name := non_finite_entry(reply.state)) is not None:
        raise ProtocolError(f"{name} holds NaN or infinite numbers, expected finite ones")
    return update_norm(reply.state, global_state)


def screen_control(control: ModelState | None, server_control: ModelState | None) -> float | None:
    """Check a site's control variate as a state is checked.

    Args:
        control: What the site sent.
        server_control: The server's variate, which the site was sent; None without SCAFFOLD.

    Returns:
        Its norm; None without SCAFFOLD.

    Raises:
        ProtocolError: Says what was found and what was expected.
    """
    if server_control is None:
        return None
    if control is None:
        raise ProtocolError("the reply holds no control variate, the study trains with control_variates")
    try:
        require_same_parameters(control, server_control)
    except ProtocolError as error:
        raise ProtocolError(f"control variate: {error}") from None
    if (name := non_finite_entry(control)) is not None:
        raise ProtocolError(f"control variate: {name} holds NaN or infinite numbers, expected finite ones")
    square = 0.0
    for name in sorted(control):
        values = control[name].reshape(-1)
        for block in blocks(values.size):
            part = values[block].astype(np.float64)
            square += float(np.vdot(part, part))
    return float(np.sqrt(square))


def _require_registered_patients(found: tuple[int, int], registered: tuple[int, int]) -> None:
    if sum(found) <= 0:
        raise ProtocolError(f"trained on {sum(found)} patients, expected {sum(registered)}")
    if any(count > limit for count, limit in zip(found, registered, strict=True)):
        raise ProtocolError(f"trained on {sum(found)} patients {found}, registered {sum(registered)} {registered}")


def _require_registered_evaluation(reply: TrainReply, manifest: SiteManifest) -> None:
    evaluation = reply.evaluation
    if evaluation.split != "validation":
        raise ProtocolError(f"evaluated the {evaluation.split} patients, expected validation")
    if evaluation.cohort_digest != manifest.cohort_digests["validation"]:
        raise ProtocolError("the validation patients are not those registered before the first round")
    if evaluation.statistics is not None:
        found, registered = evaluation.statistics.num_patients, manifest.num_patients["validation"]
        if found != registered:
            raise ProtocolError(f"counted {found} validation patients, registered {registered}")


def outlying_updates(norms: Mapping[str, float], *, max_ratio: float, what: str = "update") -> dict[str, str]:
    """Sites whose update, or control variate, is far larger than the others', with the reason.

    Each norm is compared with the median of the other sites' norms. With fewer than three sites there is no telling
    who is the outlier, and none is named.
    """
    if len(norms) < 3:
        return {}
    outliers = {}
    for site, norm in norms.items():
        others = median(other for name, other in norms.items() if name != site)
        if norm > max_ratio * others > 0:
            outliers[site] = (
                f"its {what} has norm {norm:.3g}, more than {max_ratio:g} times the others' median of {others:.3g}"
            )
    return outliers
