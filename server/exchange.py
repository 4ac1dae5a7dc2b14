"""Sends one message to each of several sites and hands on the replies as they come, over Flower's public Grid.

Flower's own `send_and_receive` returns all replies at once and waits on sites that are gone. This loop asks for one
reply at a time, never asks for the reply of a node that is not connected (asking is what makes Flower give up on it),
sends again what a restart of the site or a lost connection swallowed, and stops at the deadline.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

log = logging.getLogger(__name__)

MAX_TRIES = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.5
TRANSPORT_ERRORS = {
    3: "the message expired on its way",
    4: "the reply was lost on its way",
    5: "the site went offline",
    8: "the site's process stopped",
}
"""Flower's error codes after which sending again can help (flwr 1.41, `flwr.common.constant.ErrorCode`)."""


@dataclass
class _Slot:
    site: str
    node: int
    tries: int = 0
    message_id: str | None = None
    done: bool = False
    failure: str = "no reply before the deadline"


def collect(
    grid: Grid,
    content: RecordDict,
    *,
    message_type: str,
    group: str,
    nodes: Mapping[str, int],
    timeout_s: float,
    enough: int,
    on_reply: Callable[[str, RecordDict], None],
) -> dict[str, str]:
    """Send the same content to several sites and collect their replies.

    A site that is connected is waited for until the deadline, also if it then loses its connection. A site that is not
    connected is sent its message as soon as it comes, but once the others are done nobody waits for it, unless fewer
    replies than `enough` are there.

    Args:
        grid: Flower's Grid.
        content: What every site is sent.
        message_type: Flower's type of message.
        group: Flower's label for messages that belong together, such as the round.
        nodes: Flower's node for each site.
        timeout_s: Seconds until the loop gives up on the sites that have not answered.
        enough: Replies without which it goes on waiting for sites that are not connected.
        on_reply: Called with the site and the content of its reply as soon as it is here, at most once for each site.

    Returns:
        The reason for each site that gave no usable reply.
    """
    deadline = time.monotonic() + timeout_s
    slots = [_Slot(site, nodes[site]) for site in sorted(nodes)]
    pause = FIRST_PAUSE_S
    while time.monotonic() < deadline:
        online = {node.node_id for node in grid.get_nodes()}
        unsent = [slot for slot in slots if not slot.done and slot.message_id is None and slot.node in online]
        for slot in unsent:
            left_s = max(deadline - time.monotonic(), 1.0)
            message = Message(content, slot.node, message_type, ttl=left_s, group_id=group)
            slot.message_id = next(iter(grid.push_messages([message])), None)
            slot.tries += 1
        progressed = False
        for slot in slots:
            if slot.done or slot.message_id is None or slot.node not in online:
                continue
            for message in grid.pull_messages([slot.message_id]):
                _take(slot, message, on_reply)
                progressed = True
                break  # one message, one reply: a second one would be handed on twice
        pause = FIRST_PAUSE_S if progressed else min(2 * pause, LONGEST_PAUSE_S)
        if not _worth_waiting(slots, enough):
            break
        time.sleep(min(pause, max(deadline - time.monotonic(), 0.0)))
    for slot in slots:
        if not slot.done and slot.message_id is None:
            slot.failure = "not connected"
    return {slot.site: slot.failure for slot in slots if slot.failure}


def _worth_waiting(slots: list[_Slot], enough: int) -> bool:
    if all(slot.done for slot in slots):
        return False
    num_replies = sum(slot.done and not slot.failure for slot in slots)
    return num_replies < enough or any(slot.tries > 0 and not slot.done for slot in slots)


def _take(slot: _Slot, message: Message, on_reply: Callable[[str, RecordDict], None]) -> None:
    if message.has_content():
        slot.done, slot.failure = True, ""
        on_reply(slot.site, message.content)
        return
    code = message.error.code
    reason = TRANSPORT_ERRORS.get(code)
    if reason is not None and slot.tries < MAX_TRIES:
        log.warning("%s: %s, sending again", slot.site, reason)
        slot.message_id = None
        return
    slot.done = True
    slot.failure = reason or f"the site's program failed (Flower error {code})"
