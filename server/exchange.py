"""Sends one message to each of several sites and hands on the replies as they come, over Flower's public Grid.

Flower's own `send_and_receive` returns all replies at once and waits on sites that are gone. This loop asks for one
site's reply at a time, never asks for the reply of a node that is not connected (asking is what makes Flower give up
on it), sends again what a restart of the site or a lost connection swallowed, and stops at the deadline.

What a restart swallowed, Flower does not say: a message counts as delivered as soon as a SuperNode has fetched it. So a
site that was away, or that has been silent for long, is sent a ping. A SuperNode does one thing after the other: a site
that answers the ping while its reply is missing has lost its work.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.bundle import read_refusal
from common.flower_private import NodeInfo
from common.messages import PING_TYPE, ping_records
from common.record_values import content_bytes
from server.flower_private import UnreadableReplyError
from server.patient_grid import PatientGrid, Pull

log = logging.getLogger(__name__)

MAX_TRIES = 3
PING_AFTER_S, LONGEST_SILENCE_S = 120.0, 1000.0
"""Silence after which a site is asked whether it still works; doubled each time, up to a limit."""

PING_TTL_S = 120.0
"""Time for a ping to be answered. A site that is at work does not fetch it, and is spared it afterwards."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.5
PULL_PATIENCE_S = 10.0
"""How long the loop stands by an upload before it looks after the other sites meanwhile."""

TRANSPORT_ERRORS = {
    3: "the message expired on its way",
    4: "the reply was lost on its way",
    5: "the site went offline",
    8: "the site's process stopped",
}
"""Flower's error codes after which sending again can help (flwr 1.41, `flwr.common.constant.ErrorCode`)."""

LOST_PINGS = {3, 4, 5}
"""Error codes of a ping that tell nothing: it was lost, or not fetched in its time because the site is at work."""

NO_REPLY = "no reply before the deadline"


@dataclass(frozen=True)
class Contents:
    """What sites are sent.

    Attributes:
        make: Makes the content of a kind. Asked for whenever there is somebody to send it to, so that a large content
            need not wait in memory for the replies.
        kind_for: The kind that a site is sent; sites of one kind are sent the same.
        asks_for_other: Whether a site's reply says that it can do nothing with its content and needs another kind,
            which `kind_for` gives from then on. A site may do that once, and is not sent the less often for it.
    """

    make: Callable[[str], RecordDict]
    kind_for: Callable[[str], str] = lambda site: ""
    asks_for_other: Callable[[str, RecordDict], bool] = lambda site, reply: False

    @classmethod
    def alike(cls, make: Callable[[], RecordDict]) -> "Contents":
        """The same for every site."""
        return cls(lambda kind: make())


def collect(
    grid: Grid,
    contents: Contents,
    *,
    message_type: str,
    group: str,
    nodes: Mapping[str, int],
    timeout_s: float,
    enough: int,
    on_reply: Callable[[str, RecordDict], None],
    on_sent: Callable[[str, int], None] = lambda site, num_bytes: None,
) -> dict[str, str]:
    """Send several sites their content and collect their replies.

    A site that is connected is waited for until the deadline, also if it then loses its connection. A site that is not
    connected is sent its message as soon as it comes, but once the others are done nobody waits for it, unless fewer
    replies than `enough` are there. Time in which Flower's SuperLink was down puts off the deadline.

    Args:
        grid: Flower's Grid.
        contents: What the sites are sent.
        message_type: Flower's type of message.
        group: Flower's label for messages that belong together, such as the round.
        nodes: Flower's node for each site.
        timeout_s: Seconds until the loop gives up on the sites that have not answered.
        enough: Replies without which it goes on waiting for sites that are not connected.
        on_reply: Called with the site and the content of its reply as soon as it is here, at most once for each site.
        on_sent: Called with the site and the bytes of the content whenever it has been sent that.

    Returns:
        The reason for each site that gave no usable reply.
    """
    slots = [_Slot(site, nodes[site]) for site in sorted(nodes)]
    exchange = _Exchange(PatientGrid(grid), slots, contents, message_type, group, timeout_s, on_reply, on_sent)
    try:
        exchange.run(enough)
    finally:
        for slot in slots:
            if slot.pull is not None:
                slot.pull.close()
    return {slot.site: slot.failure or slot.state() for slot in slots if slot.failure or not slot.done}


@dataclass
class _Exchange:
    """One task on its way to several sites."""

    link: PatientGrid
    slots: list["_Slot"]
    contents: Contents
    message_type: str
    group: str
    timeout_s: float
    on_reply: Callable[[str, RecordDict], None]
    on_sent: Callable[[str, int], None]
    started: float = field(default_factory=time.monotonic)

    def run(self, enough: int) -> None:
        """Go on until all have answered, or it is not worth waiting for the others."""
        pause = FIRST_PAUSE_S
        while self._left_s() > 0:
            online = self.link.nodes()
            self._send_unsent(online)
            for slot in self.slots:
                if not slot.done and slot.tries > 0:
                    self._look_after(slot, online.get(slot.node))
            pause = FIRST_PAUSE_S if self._take_what_came() else min(2 * pause, LONGEST_PAUSE_S)
            if not self._worth_waiting(enough):
                return
            time.sleep(min(pause, max(self._left_s(), 0.0)))

    def _left_s(self) -> float:
        return self.started + self.timeout_s + self.link.lost_s - time.monotonic()

    def _message(self, slot: "_Slot", message_type: str, content: RecordDict, *, ttl: float = float("inf")) -> Message:
        ttl = min(max(self._left_s(), 1.0), ttl)
        return Message(content, slot.node, message_type, ttl=ttl, group_id=self.group)

    def _send_unsent(self, online: Mapping[int, NodeInfo]) -> None:
        for slot in self.slots:
            slot.is_connected = slot.node in online
        unsent = [slot for slot in self.slots if not slot.done and slot.message_id is None and slot.is_connected]
        kinds = {slot.site: self.contents.kind_for(slot.site) for slot in unsent}
        for kind in sorted(set(kinds.values())):
            self._send(self.contents.make(kind), [slot for slot in unsent if kinds[slot.site] == kind], online)

    def _send(self, content: RecordDict, slots: Sequence["_Slot"], online: Mapping[int, NodeInfo]) -> None:
        num_bytes = content_bytes(content)
        numbers = self.link.send([self._message(slot, self.message_type, content) for slot in slots])
        for slot, number in zip(slots, numbers, strict=True):
            slot.sent(number, online[slot.node])
            if number is not None:
                self.on_sent(slot.site, num_bytes)

    def _look_after(self, slot: "_Slot", info: NodeInfo | None) -> None:
        if slot.should_ping(info):
            ping = self._message(slot, PING_TYPE, ping_records(), ttl=PING_TTL_S)
            (number,) = self.link.send([ping])
            slot.pinged(number, info)
        if slot.pull is None and slot.message_id is not None and not slot.done and info is not None:
            is_news = any(other.pull is not None and other.pull.is_done for other in self.slots)
            patience_s = 0.0 if is_news else min(PULL_PATIENCE_S, max(self._left_s(), 0.0))
            slot.pull = self.link.pull(slot.waits_for(), patience_s=patience_s)
            self._take_what_came()

    def _take_what_came(self) -> bool:
        """Take what requests have brought that are done; True if it was news of any site."""
        is_news = False
        for slot in self.slots:
            if slot.pull is not None and slot.pull.is_done:
                pull, slot.pull = slot.pull, None
                try:
                    is_news |= not slot.done and slot.take(pull, self._take_reply)
                finally:
                    pull.close()
        return is_news

    def _take_reply(self, slot: "_Slot", reply: RecordDict) -> None:
        if not slot.asked_for_other and self.contents.asks_for_other(slot.site, reply):
            slot.asks_for_other()
            return
        slot.done = True
        self.on_reply(slot.site, reply)

    def _worth_waiting(self, enough: int) -> bool:
        if all(slot.done for slot in self.slots):
            return False
        num_replies = sum(slot.done and not slot.failure for slot in self.slots)
        return num_replies < enough or any(slot.tries > 0 and not slot.done for slot in self.slots)


@dataclass
class _Slot:
    """How far one site is.

    Attributes:
        tries: How often it was sent the message.
        asked_for_other: Whether it has asked for another content.
        message_id: The message it is to answer; None if it is to be sent one.
        ping_id: The ping it has not answered; None if there is none.
        activated: When Flower last saw its SuperNode connect, as told when the message or the ping was sent. Empty
            where nodes are no SuperNodes: those may do several things at a time, and are not pinged.
        ping_at: When silence has been long enough for a ping.
        pull: The request for its reply that is under way.
        failure: Why there is no usable reply; empty if there is one or nothing is known yet.
    """

    site: str
    node: int
    tries: int = 0
    asked_for_other: bool = False
    message_id: str | None = None
    ping_id: str | None = None
    activated: str = ""
    is_connected: bool = False
    ping_at: float = 0.0
    ping_pause_s: float = field(default_factory=lambda: PING_AFTER_S)
    pull: Pull | None = None
    done: bool = False
    failure: str = ""

    def sent(self, message_id: str | None, info: NodeInfo) -> None:
        """Note that the message was sent; without a number, Flower does not know the node any more."""
        if message_id is None:
            return
        self.message_id, self.ping_id = message_id, None
        self.tries += 1
        self.activated = info.last_activated_at if info.name else ""
        self._expect_ping()

    def should_ping(self, info: NodeInfo | None) -> bool:
        """Whether to ask the site if it still works."""
        if not self.activated:
            return False
        was_away = info is not None and info.last_activated_at != self.activated
        return was_away or time.monotonic() > self.ping_at

    def pinged(self, ping_id: str | None, info: NodeInfo | None) -> None:
        """Note that a ping was sent."""
        if ping_id is None:
            self._fail("no longer registered with the federation")
            return
        self.ping_id = ping_id
        if info is not None:
            self.activated = info.last_activated_at
        self._expect_ping()

    def _expect_ping(self) -> None:
        self.ping_at = time.monotonic() + self.ping_pause_s
        self.ping_pause_s = min(2 * self.ping_pause_s, LONGEST_SILENCE_S)

    def waits_for(self) -> list[str]:
        """The messages it has not answered, to be asked for at once: then a reply never comes after its ping's."""
        return [number for number in (self.message_id, self.ping_id) if number is not None]

    def take(self, pull: Pull, on_reply: Callable[["_Slot", RecordDict], None]) -> bool:
        """Take what a request that is done has brought; True if that is news."""
        try:
            replies = pull.replies()
        except UnreadableReplyError as error:
            self._fail(str(error))
            return True
        if replies is None:
            self.ping_at = 0.0  # what the failed request had fetched is gone
            return False
        reply = replies.get(self.message_id or "")
        if reply is not None:
            self._take_reply(reply, on_reply)
            return True
        answer = replies.get(self.ping_id or "")
        if answer is None:
            return False
        self.ping_id = None
        if answer.has_content() or answer.error.code not in LOST_PINGS:
            self._send_again("the work was lost when the site was restarted or cut off")
        return True

    def _take_reply(self, reply: Message, on_reply: Callable[["_Slot", RecordDict], None]) -> None:
        if reply.has_content():
            if reply.metadata.src_node_id != self.node:  # Flower 1.41 refuses such a reply as well
                self._fail("the reply came from another node")
                return
            on_reply(self, reply.content)
            return
        reason = TRANSPORT_ERRORS.get(reply.error.code)
        if reason is not None:
            self._send_again(reason)
            return
        refusal = read_refusal(reply.error.reason or "")
        if refusal is not None:
            self._fail(
                f"runs another version: its bundle is {refusal.installed[:12]}, the coordinator's "
                f"{refusal.offered[:12]}; both sides need the same version"
            )
        else:
            self._fail(f"the site's program failed (Flower error {reply.error.code})")

    def _send_again(self, reason: str) -> None:
        if self.tries >= MAX_TRIES + self.asked_for_other:
            self._fail(reason)
            return
        log.warning("%s: %s, sending again", self.site, reason)
        self.message_id, self.ping_id = None, None

    def asks_for_other(self) -> None:
        """Note that it is to be sent another content, which is no fault of anybody."""
        self.asked_for_other = True
        self.message_id, self.ping_id = None, None

    def _fail(self, reason: str) -> None:
        self.done, self.failure = True, reason

    def state(self) -> str:
        """Why there is no reply at the deadline."""
        if self.tries == 0:
            return "not connected"
        if self.pull is not None:
            return "its reply was still on its way at the deadline"
        if self.activated and not self.is_connected:
            return "lost its connection and did not come back before the deadline"
        return NO_REPLY
