"""The few names of Flower 1.41 that the server uses and that are not part of its public interface.

They are what the gateway reads of fleet calls, and how a ServerApp fetches replies without holding several of them.

Flower may change them in any release, so they stand in this one file, and tests check that each is still there.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry, pull_objects
from flwr.superlink.grid import http_grid
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from common.errors import ProtocolError

MEDIA_TYPE = "application/protobuf"
VERSION_HEADERS = ("flwr-package-name", "flwr-package-version", "flwr-component-name")
"""Headers in which a SuperNode says its version of Flower."""

SUPERLINK_NODE_ID = 1
"""Number of the SuperLink where a message names its sender and receiver."""


def activating_key(body: bytes) -> bytes:
    """The public key (PEM) that an activate-node call is about.

    Raises:
        ProtocolError: If the body is no such call.
    """
    return bytes(_decoded(ActivateNodeRequest(), body).public_key)


def require_own_reply(body: bytes) -> None:
    """Refuse a push-messages call that is not one reply of the node that makes the call, addressed to the SuperLink.

    Flower 1.41 authenticates `node.node_id` of the call, but takes sender, receiver and kind from the message inside
    (`superlink/servicer/fleet/fleet_handlers.py`).

    Raises:
        ProtocolError: If it is anything else; the text names no content.
    """
    request = _decoded(PushMessagesRequest(), body)
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise ProtocolError("expected one message and its one object tree")
    metadata = request.messages_list[0].metadata
    if metadata.src_node_id != request.node.node_id:
        raise ProtocolError("the message is in another node's name")
    if metadata.dst_node_id != SUPERLINK_NODE_ID or not metadata.reply_to_message_id:
        raise ProtocolError("the message is no reply to the SuperLink")
    if request.message_object_trees[0].object_id != metadata.message_id:
        raise ProtocolError("the object tree is not that of the message")


def require_session(body: bytes) -> None:
    """Refuse a push-object call without a session: Flower 1.41 would find any node's session for it.

    Raises:
        ProtocolError: If the body is no such call, or names no session.
    """
    if not _decoded(PushObjectRequest(), body).session_id:
        raise ProtocolError("the object belongs to no session")


def pulled_object(body: bytes) -> str:
    """The object that a pull-object call asks for; raises ProtocolError if the body is no such call."""
    return str(_decoded(PullObjectRequest(), body).object_id)


def confirmed_message(body: bytes) -> str:
    """The message whose objects a confirm-message-received call lets go of; raises ProtocolError."""
    return str(_decoded(ConfirmMessageReceivedRequest(), body).message_object_id)


@dataclass(frozen=True)
class Delivery:
    """Messages that the SuperLink hands to a site, and the objects they are made of, by their digests."""

    messages: frozenset[str]
    objects: frozenset[str]


def read_delivery(answer: bytes) -> Delivery | None:
    """What an answer to pull-messages hands over; None if it holds no message.

    Raises:
        ProtocolError: If the SuperLink's answer is not what Flower 1.41 answers.
    """
    response = _decoded(PullMessagesResponse(), answer)
    if not response.messages_list:
        return None
    objects: set[str] = set()
    waiting: list[ObjectTree] = list(response.message_object_trees)
    while waiting:
        tree = waiting.pop()
        objects.add(tree.object_id)
        waiting.extend(tree.children)
    return Delivery(frozenset(message.metadata.message_id for message in response.messages_list), frozenset(objects))


_Call = TypeVar("_Call", bound=ProtobufMessage)


def _decoded(message: _Call, body: bytes) -> _Call:
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ProtocolError("the body is not a call of Flower 1.41") from None
    return message


# --- how a ServerApp fetches replies ----------------------------------------------------------------------------------

_turn = threading.Semaphore()
_of_this_thread = threading.local()


def fetch_one_reply_at_a_time() -> None:
    """Make Flower's Grid fetch a reply only when all of it is there, and only when no other one is in memory.

    Flower 1.41 keeps what it has of a reply while a site is still uploading the rest, puts it together from two whole
    copies, and makes another one of all that it sends. A thread that has fetched a reply holds the turn until somebody
    calls `end_turn` for it.
    """
    vars(http_grid)["push_objects"] = _push_one_by_one
    vars(http_grid)["pull_objects"] = _fetch_in_turn
    vars(http_grid)["inflate_object_from_contents"] = _inflate


def has_turn() -> bool:
    """Whether this thread has fetched a reply since it was last asked; from now on the turn is the caller's to end."""
    has: bool = getattr(_of_this_thread, "has_turn", False)
    _of_this_thread.has_turn = False
    return has


def end_turn() -> None:
    """Let the next reply be fetched."""
    _turn.release()


def _push_one_by_one(
    objects: dict[str, InflatableObject], push_object_fn: Callable[[str, bytes], None], *, object_ids_to_push: set[str]
) -> None:
    for each in list(objects):
        sent = objects.pop(each)
        if each in object_ids_to_push:
            push_object_fn(each, sent.deflate())


def _fetch_in_turn(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
    # A SuperNode sends the message itself after all its parts.
    message_id = object_ids[-1]
    contents = pull_objects([message_id], pull_object_fn)
    if not getattr(_of_this_thread, "has_turn", False):
        _turn.acquire()
        _of_this_thread.has_turn = True
    return contents | pull_objects([each for each in object_ids if each != message_id], pull_object_fn)


def _inflate(object_id: str, contents: dict[str, bytes]) -> InflatableObject:
    """Put an object together from its parts, letting go of each part when its last use is over."""
    uses: Counter[str] = Counter()
    for content in contents.values():
        uses.update(set(get_object_head_values_from_object_content(content)[1]))
    shared: dict[str, InflatableObject] = {}

    def build(each: str) -> InflatableObject:
        uses[each] -= 1
        if each in shared:
            return shared[each] if uses[each] > 0 else shared.pop(each)
        content = contents.pop(each)
        kind, children, _ = get_object_head_values_from_object_content(content)
        built = inflatable_class_registry[kind].inflate(
            content, children={child: build(child) for child in dict.fromkeys(children)}
        )
        if uses[each] > 0:
            shared[each] = built
        return built

    return build(object_id)
