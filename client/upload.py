"""How a site sends what it trained: as the study says, in fewer bytes than the state itself."""

from dataclasses import replace

from client.site_memory import SiteMemory
from common.models import build_empty_model, local_names
from common.study import Study
from common.tasks import TrainReply, TrainTask
from common.update_codec import encode_update


def coded_reply(reply: TrainReply, task: TrainTask, memory: SiteMemory) -> TrainReply:
    """The reply as it is sent: the same with upload fp32, and else with a coded update in place of the state.

    What the 8-bit code loses is kept in the site's memory and added to the next round's update. It is read as it was
    before this round and written as it is after it, so that a round that is run again sends the same bytes.

    Raises:
        DataError: If the update holds numbers that cannot be coded.
        ConfigError: If what the code loses cannot be kept.
    """
    scheme = task.study.communication.upload
    if scheme == "fp32":
        return reply
    feeds_back = scheme == "int8_delta"
    carried = memory.latest("residual", round=task.round - 1) if feeds_back else None
    update, lost = encode_update(reply.state, task.state, scheme, trained=_trained_names(task.study), carried=carried)
    if feeds_back:
        memory.keep("residual", lost, round=task.round)
    return replace(reply, state={}, update=update)


def _trained_names(study: Study) -> frozenset[str]:
    """Names of the parameters that are trained and sent; the server finds the same ones by the same means."""
    num_sequences = len(study.sequences)
    model = build_empty_model(study.model, num_sequences=num_sequences)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return frozenset(names) - local_names(study.model, num_sequences=num_sequences)
