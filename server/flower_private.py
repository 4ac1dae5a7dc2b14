"""The few names of Flower 1.41 that the server uses and that are not part of its public interface.

They are what the gateway reads of fleet calls, what a call to the SuperLink passes through, how a ServerApp is started
without a bundle's code, and how it fetches replies without holding several of them.

Flower may change them in any release, so they stand in this one file, and tests check that each is still there.
"""

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn, TypeVar

from flwr.app import Array, Context, Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflatable_class_registry,
    pull_objects,
)
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from common.errors import ProtocolError
from server.run_folder import RUN_KEY

log = logging.getLogger(__name__)

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


# --- the SuperLink ----------------------------------------------------------------------------------------------------

_PART_OF = {
    "ControlSensitiveResponseMiddleware": "/v1/control/",
    "ControlAuthenticationMiddleware": "/v1/control/",
    "ControlLicenseMiddleware": "/v1/control/",
    "ControlEventLogMiddleware": "/v1/control/",
    "NodeAuthMiddleware": "/v1/fleet/",
    "FleetEventLogMiddleware": "/v1/fleet/",
    "RuntimeTracingMiddleware": "/v1/runtime/",
}
"""Layers of Flower's SuperLink that let all calls pass but those of one part, and the begin of that part's paths."""


def run_superlink(arguments: Sequence[str]) -> None:
    """Run Flower's SuperLink in this process, which should be its own, with fewer layers around each call.

    Flower 1.41 sends every call, and every 64 KiB of its body, through nine layers that each start tasks of their own.
    That takes longer than the bytes. Here a call passes the layers of its part alone, with its body in one piece.

    Args:
        arguments: Those of `flower-superlink`.

    Raises:
        ImportError: If Flower is not made as this takes it for granted; says what is different.
        SystemExit: When it was asked to end, or could not begin.
    """
    from flwr.superlink import main as module
    from flwr.superlink.cli import flower_superlink

    layers: list[Middleware] = getattr(module, "_get_middleware", list)()
    if missing := _PART_OF.keys() - set(map(_name_of, layers)):
        raise ImportError(
            f"the SuperLink of the installed Flower lacks {', '.join(sorted(missing))}; install the version that "
            "gliorn names (flwr>=1.41,<1.42)"
        )
    vars(module)["_get_middleware"] = lambda: [Middleware(_WholeBody), *map(_for_its_part, layers)]
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def _for_its_part(layer: Middleware) -> Middleware:
    begin = _PART_OF.get(_name_of(layer))
    return layer if begin is None else Middleware(_ForPart, layer=layer, begin=begin)


def _name_of(layer: Middleware) -> str:
    return str(getattr(layer.cls, "__name__", ""))


class _ForPart:
    """A layer for the calls whose path begins so; the others pass it by, as they do in it."""

    def __init__(self, app: ASGIApp, layer: Middleware, begin: str) -> None:
        self._begin, self._beyond = begin, app
        self._layer = layer.cls(app, *layer.args, **layer.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_meant = scope["type"] != "http" or scope["path"].startswith(self._begin)
        await (self._layer if is_meant else self._beyond)(scope, receive, send)


class _WholeBody:
    """Puts the body of a call together before it goes on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts = []
        while (message := await receive())["type"] == "http.request":
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                message["body"] = b"".join(parts)
                break
        given = iter([message])

        async def receive_whole() -> ASGIMessage:
            return next(given, None) or await receive()

        await self._app(scope, receive_whole, send)


# --- how a ServerApp is started ---------------------------------------------------------------------------------------


def run_serverapp(
    arguments: Sequence[str],
    *,
    check: Callable[[bytes], None],
    load: Callable[[], ServerApp],
    through: Callable[[Grid], Grid] = lambda grid: grid,
) -> None:
    """Carry one run as `flwr-serverapp` does, with the installed ServerApp and without unpacking the app bundle.

    Args:
        arguments: Those of `flwr-serverapp`.
        check: Given the bundle; raises if it is not to be obeyed, and the run then fails.
        load: Gives the ServerApp that carries the run.
        through: Given Flower's Grid, gives the one that the ServerApp speaks through.

    Raises:
        ImportError: If Flower is not made as this takes it for granted; says what is missing.
        SystemExit: When the run has ended.
    """
    from flwr.superlink.cli import flwr_serverapp

    module = import_module("flwr.superlink.runtime.run_serverapp")  # the package has a function of the same name

    def only_check(content: bytes, *rest: Any, **options: Any) -> None:
        check(content)

    def refuse_installation(*rest: Any, **options: Any) -> NoReturn:
        raise ProtocolError("the coordinator installs nothing at run time")

    def installed_config(project: Any) -> dict[str, Any]:
        return {"tool": {"flwr": {"app": {"components": {"serverapp": "the installed one"}}}}}

    def only_run_name(project: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
        return {RUN_KEY: overrides.get(RUN_KEY, "")}

    run = getattr(module, "run_", None)

    def run_installed(*, grid: Grid, context: Context, **names: Any) -> Any:
        assert run is not None
        return run(grid=through(grid), context=context, server_app_dir="", loaded_server_app=load())

    changed: dict[str, Callable[..., Any]] = {
        "install_from_fab": only_check,
        "install_app_dependencies": refuse_installation,
        "get_project_config": installed_config,
        "get_fused_config_from_dir": only_run_name,
        "run_": run_installed,
    }
    missing = [name for name in changed if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"the installed Flower lacks {', '.join(missing)}, which gliorn relies on; install the version that gliorn "
            "names (flwr>=1.41,<1.42)"
        )
    for name, replacement in changed.items():
        setattr(module, name, replacement)
    sys.argv = ["flwr-serverapp", *arguments]
    flwr_serverapp()


# --- how a ServerApp fetches replies ----------------------------------------------------------------------------------

MAX_OBJECTS = 100_000
"""Objects that a reply may be made of. An array is one, and so is each of its chunks, of 1 MiB at sites of ours."""

MAX_REPLY_BYTES = 2 * 2**30
"""Bytes that a site may upload for one message that it was handed, and that the arrays of a reply may take."""

_FIRST_LOOK_S, _LONGEST_LOOK_S, _SHARE_OF_WAIT = 0.1, 10.0, 0.1
"""Shortest and longest pause after which a part that was not there is looked for again, and between them its share of
the time waited so far. (Flower's own pauses double, so that a reply may lie there for as long as its upload took.)"""

_turn = threading.Semaphore()
_of_this_thread = threading.local()


class UnreadableReplyError(ProtocolError):
    """A site's reply cannot be put together; the text says so, and holds nothing that the site wrote."""

    code = "unreadable-reply"


def fetch_one_reply_at_a_time() -> None:
    """Make Flower's Grid fetch a reply only when all of it is there, and only when no other one is in memory.

    Flower 1.41 keeps what it has of a reply while a site is still uploading the rest, puts it together from two whole
    copies, and makes another one of all that it sends. A thread that has fetched a reply holds the turn until somebody
    calls `end_turn` for it.
    """
    # Imported by whoever has such a Grid; with it come the SuperLink and SQLAlchemy, of no use to a run in one process.
    http_grid = sys.modules.get("flwr.superlink.grid.http_grid")
    if http_grid is None:
        return
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


def fetch_until(is_closed: threading.Event) -> None:
    """Let this thread wait for parts of replies until the event is set, and no longer."""
    _of_this_thread.is_closed = is_closed


def _fetch_in_turn(object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
    """Fetch the objects of one reply. Nobody who waits for a part has the turn meanwhile.

    A site describes its reply before it uploads it, which may take hours or never end, and Flower hands out the
    description once. The message itself is uploaded after its parts: when it is there, one try is made to fetch all.
    If a part is missing nevertheless, each is waited for without the turn, and thrown away, before the next try. So no
    reply has the turn for longer than it takes to fetch it twice.
    """
    if len(object_ids) > MAX_OBJECTS:
        raise UnreadableReplyError("its reply is made of too many parts")
    fetch = _while_open(pull_object_fn)
    message_id = object_ids[-1]
    if getattr(_of_this_thread, "has_turn", False):
        # Another message of the same site is in memory. A site sends one after the other, so all of this one is there.
        contents = _fetch_at_once(object_ids, fetch)
        if contents is None:
            raise ObjectPullError(message_id, "a part is missing")
        return contents
    _wait_for([message_id], fetch)
    while (contents := _try_in_turn(object_ids, fetch)) is None:
        _wait_for(object_ids, fetch)
    return contents


def _while_open(pull_object_fn: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """What fetches an object for as long as somebody waits for it; Flower calls it on threads of its own."""
    is_closed: threading.Event | None = getattr(_of_this_thread, "is_closed", None)

    def fetch(object_id: str) -> bytes:
        if is_closed is not None and is_closed.is_set():
            raise ObjectPullError(object_id, "nobody waits for it any more")
        return pull_object_fn(object_id)

    return fetch


def _wait_for(object_ids: list[str], fetch: Callable[[str], bytes]) -> None:
    """Wait until objects are there, one after the other, without keeping any."""
    started = time.monotonic()
    for each in object_ids:
        while not _is_there(each, fetch):
            waited = time.monotonic() - started
            time.sleep(min(_LONGEST_LOOK_S, max(_FIRST_LOOK_S, _SHARE_OF_WAIT * waited)))


def _is_there(object_id: str, fetch: Callable[[str], bytes]) -> bool:
    try:
        fetch(object_id)
    except ObjectUnavailableError:
        return False
    return True


def _try_in_turn(object_ids: list[str], fetch: Callable[[str], bytes]) -> dict[str, bytes] | None:
    """All objects of a reply, and the turn with them; None, and no turn, if one is not there yet."""
    contents: dict[str, bytes] | None = None
    _turn.acquire()
    try:
        contents = _fetch_at_once(object_ids, fetch)
    finally:
        if contents is None:
            _turn.release()
        else:
            _of_this_thread.has_turn = True
    return contents


def _fetch_at_once(object_ids: list[str], fetch: Callable[[str], bytes]) -> dict[str, bytes] | None:
    """All objects of a reply; None if one is not there yet."""
    contents: dict[str, bytes] = {}
    is_missing = threading.Event()

    def keep(object_id: str) -> bytes:
        try:
            contents[object_id] = fetch(object_id)
        except ObjectUnavailableError:
            is_missing.set()
            raise
        return b""  # what Flower gathers lives on in the traceback of a failure

    try:
        pull_objects(object_ids, keep, max_tries_per_object=1)
    except ObjectPullError:
        contents.clear()
        if not is_missing.is_set():
            raise
        return None
    return contents


def _inflate(object_id: str, contents: dict[str, bytes]) -> Message:
    """Put a reply together from its parts, letting go of each part when its last use is over.

    Raises:
        UnreadableReplyError: If that is not possible.
    """
    message: Message | None = None
    try:
        message = _put_together(object_id, contents)
    except Exception as error:  # noqa: BLE001 - whatever a site's bytes do to Flower's readers, only that site is concerned
        log.warning("a site's reply cannot be put together (%s)", type(error).__name__)
    if message is None:
        contents.clear()
        raise UnreadableReplyError("its reply is not readable")
    return message


def _put_together(object_id: str, contents: dict[str, bytes]) -> Message:
    uses: Counter[str] = Counter()
    for content in contents.values():
        uses.update(set(get_object_head_values_from_object_content(content)[1]))
    shared: dict[str, InflatableObject] = {}
    room = MAX_REPLY_BYTES

    def build(each: str) -> InflatableObject:
        nonlocal room
        uses[each] -= 1
        if each in shared:
            return shared[each] if uses[each] > 0 else shared.pop(each)
        content = contents.pop(each)
        kind, names, _ = get_object_head_values_from_object_content(content)
        children = {child: build(child) for child in dict.fromkeys(names)}
        if kind == Array.__qualname__:
            room -= _num_bytes(content, names, children)
            if room < 0:
                raise ProtocolError("the arrays are larger than a reply may be")
        built = inflatable_class_registry[kind].inflate(content, children=children)
        if uses[each] > 0:
            shared[each] = built
        return built

    message = build(object_id)
    if not isinstance(message, Message):
        raise ProtocolError("not a message")
    if message.has_content() and not isinstance(message.content, RecordDict):
        raise ProtocolError("not a message's content")
    return message


def _num_bytes(array: bytes, names: list[str], chunks: Mapping[str, Any]) -> int:
    """Size of an array, which may name a chunk any number of times."""
    indices = json.loads(get_object_body(array, Array))["arraychunk_ids"]
    return sum(len(chunks[names[index]].data) for index in indices)
