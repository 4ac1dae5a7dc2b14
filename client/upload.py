"""How a site sends what it trained: as the study says, in fewer bytes than the state itself."""

from dataclasses import replace

from client.site_memory import SiteMemory
from client.trained_names import trained_names
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
    update, lost = encode_update(reply.state, task.state, scheme, trained=trained_names(task.study), carried=carried)
    if feeds_back:
        memory.keep("residual", lost, round=task.round)
    return replace(reply, state={}, update=update)
