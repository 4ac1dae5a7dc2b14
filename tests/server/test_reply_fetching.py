"""How a ServerApp fetches replies: whole ones, one at a time, put together without a second copy."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import (
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.superlink.grid import http_grid

from common.flower_private import NodeInfo, Run, assign_message_id, copy_of_message, take_server_identity
from common.messages import read_train_task, task_records
from common.model_state import Array
from common.study import parse_study
from common.tasks import TrainTask
from server import exchange, flower_private
from server.exchange import Contents, collect
from server.flower_private import end_turn, fetch_one_reply_at_a_time, has_turn
from tests.tiny_hospitals import study_text

STUDY = parse_study(study_text(), origin="study")


@pytest.fixture
def pull() -> Iterator[Any]:
    """What Flower's Grid calls to fetch the objects of a message."""
    fetch_one_reply_at_a_time()
    yield vars(http_grid)["pull_objects"]
    if has_turn():
        end_turn()


def message_in_parts() -> tuple[str, list[str], dict[str, bytes]]:
    """A message's number, its objects' numbers in the order in which they are sent, and the objects."""
    take_server_identity(run_id=1, node_id=1)
    same = np.arange(600, dtype=np.float32).reshape(20, 30)
    state: dict[str, Array] = {"a": same, "b": same.copy(), "c": np.zeros(3, np.int64), "d": np.array(1.5, np.float32)}
    message = Message(
        task_records(TrainTask(STUDY, "run", 1, (1.0, 1.0), 0.0, state, class_counts=(3, 2))), 7, "train", ttl=60.0
    )
    objects = {number: each.deflate() for number, each in get_all_nested_objects(message).items()}
    return message.object_id, [tree.object_id for tree in iterate_object_tree(get_object_tree(message))], objects


@pytest.mark.usefixtures("pull")
def test_message_put_together_from_its_parts_is_the_message() -> None:
    message_id, _, objects = message_in_parts()

    message = vars(http_grid)["inflate_object_from_contents"](message_id, objects)

    state = read_train_task(message.content).state
    assert {name: array.shape for name, array in state.items()} == {"a": (20, 30), "b": (20, 30), "c": (3,), "d": ()}
    np.testing.assert_array_equal(state["a"], state["b"])
    assert objects == {}
    assert message.object_id == message_id


def test_nothing_is_fetched_before_the_message_itself_is_there_which_is_sent_last(pull: Any) -> None:
    message_id, order, objects = message_in_parts()
    fetched: list[str] = []

    def fetch(number: str) -> bytes:
        fetched.append(number)
        return objects[number]

    contents = pull(object_ids=order, pull_object_fn=fetch)

    assert order[-1] == fetched[0] == message_id
    assert contents == objects


@pytest.mark.usefixtures("pull")
def test_what_is_sent_goes_part_by_part_in_its_order() -> None:
    take_server_identity(run_id=1, node_id=1)
    message = Message(RecordDict({"x": ConfigRecord({"n": 1}), "y": ConfigRecord({"n": 2})}), 7, "train", ttl=60.0)
    parts = get_all_nested_objects(message)
    wanted = list(parts)[1:]
    sent: list[str] = []

    vars(http_grid)["push_objects"](
        dict(parts), push_object_fn=lambda number, content: sent.append(number), object_ids_to_push=set(wanted)
    )

    assert sent == wanted
    assert sent[-1] == message.object_id


def test_one_reply_at_a_time_is_in_memory(pull: Any) -> None:
    _, order, objects = message_in_parts()
    pull(object_ids=order, pull_object_fn=objects.__getitem__)
    second = threading.Thread(target=lambda: pull(object_ids=order, pull_object_fn=objects.__getitem__), daemon=True)

    second.start()
    second.join(0.3)
    assert second.is_alive()

    assert has_turn()
    end_turn()
    second.join(10)
    assert not second.is_alive()
    end_turn()


def test_message_and_its_ping_fetched_together_take_one_turn(pull: Any) -> None:
    _, order, objects = message_in_parts()

    pull(object_ids=order, pull_object_fn=objects.__getitem__)
    pull(object_ids=order, pull_object_fn=objects.__getitem__)

    assert has_turn()
    assert not has_turn()
    end_turn()
    assert flower_private._turn.acquire(blocking=False)
    flower_private._turn.release()


# --- sites whose replies are broken, or never end ---------------------------------------------------------------------


@dataclass
class Reply:
    """A site's reply as the SuperLink has it.

    Attributes:
        message: What Flower has checked of it.
        tree: The objects that it is said to be made of.
        objects: Those that are there.
    """

    message: Message
    tree: ObjectTree
    objects: dict[str, bytes]


def honest(task: Message) -> Reply:
    reply = Message(RecordDict({"reply": ConfigRecord({"node": task.metadata.dst_node_id})}), reply_to=task)
    assign_message_id(reply, reply.object_id)
    objects = {number: each.deflate() for number, each in get_all_nested_objects(reply).items()}
    return Reply(reply, get_object_tree(reply), objects)


@dataclass
class SuperLink:
    """The calls of a ServerApp, answered from memory.

    Attributes:
        answers: Makes each node's reply.
    """

    answers: Mapping[int, Callable[[Message], Reply]]
    replies: dict[str, Reply] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def GetNodes(self, request: object) -> GetNodesResponse:  # noqa: N802
        return GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in self.answers])

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:  # noqa: N802
        numbers = []
        for sent in request.messages_list:
            metadata = sent.metadata
            task = Message(RecordDict(), metadata.dst_node_id, metadata.message_type, ttl=metadata.ttl)
            assign_message_id(task, metadata.message_id)
            reply = self.answers[metadata.dst_node_id](task)
            self.replies[metadata.message_id] = reply
            self.objects |= reply.objects
            numbers.append(metadata.message_id)
        return PushAppMessagesResponse(message_ids=numbers)

    def PushObject(self, request: object) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(stored=True)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        found = [self.replies.pop(number) for number in request.message_ids if number in self.replies]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(copy_of_message(each.message)) for each in found],
            message_object_trees=[each.tree for each in found],
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        self.fetched.append(request.object_id)
        content = self.objects.get(request.object_id, b"")
        return PullObjectResponse(object_found=True, object_available=content != b"", object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> SimpleNamespace:  # noqa: N802
        self.confirmed.append(request.message_object_id)
        return SimpleNamespace()


def grid_of(superlink: SuperLink) -> http_grid.HttpGrid:
    take_server_identity(run_id=1, node_id=1)
    grid = http_grid.HttpGrid(token="token")
    grid.set_run(Run.create_empty(1))
    vars(grid)["_client"] = superlink
    return grid


def replies_and_failures(
    superlink: SuperLink, *, timeout_s: float = 60.0, on_reply: Callable[[str], None] = lambda site: None
) -> tuple[list[str], dict[str, str]]:
    """What comes of a round with site 1 on node 1, and so on."""
    replied: list[str] = []

    def take(site: str, content: RecordDict) -> None:
        assert content["reply"]["node"] == int(site.removeprefix("site "))
        replied.append(site)
        on_reply(site)

    failures = collect(
        grid_of(superlink),
        Contents.alike(lambda: RecordDict({"task": ConfigRecord({"x": 1})})),
        message_type="train",
        group="1",
        nodes={f"site {node}": node for node in superlink.answers},
        timeout_s=timeout_s,
        enough=len(superlink.answers),
        on_reply=take,
    )
    assert flower_private._turn.acquire(timeout=10)
    flower_private._turn.release()
    return replied, failures


def made(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    """An object's number and bytes, which the SuperLink lets pass."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    validate_object_content(content)
    return get_object_id(content), content


def with_objects(task: Message, last: tuple[str, bytes], *others: tuple[str, bytes]) -> Reply:
    """A reply of objects made by hand; Flower does not compare their heads with the tree that it was told."""
    reply = honest(task).message
    assign_message_id(reply, last[0])
    tree = ObjectTree(object_id=last[0], children=[ObjectTree(object_id=number) for number, _ in others])
    return Reply(reply, tree, dict([*others, last]))


def message_with(task: Message, *content: str) -> tuple[str, bytes]:
    return made("Message", list(content), message_to_proto(honest(task).message).SerializeToString())


def array_of(chunk: str, times: int) -> tuple[str, bytes]:
    values = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * times}
    return made("Array", [chunk], json.dumps(values).encode())


def _deep_chain(task: Message) -> Reply:
    chain = [made("RecordDict", [], b"{}")]
    for _ in range(3000):
        chain.append(made("RecordDict", [chain[-1][0]], b"{}"))
    return with_objects(task, message_with(task, chain[-1][0]), *chain)


def _unfolding_array(task: Message) -> Reply:
    chunk = made("ArrayChunk", [], bytes(2**20))
    array = array_of(chunk[0], 2**12)
    record = made("ArrayRecord", [array[0]], json.dumps({"w": array[0]}).encode())
    content = made("RecordDict", [record[0]], json.dumps({"model": record[0]}).encode())
    return with_objects(task, message_with(task, content[0]), chunk, array, record, content)


def _content_of_another_kind(task: Message) -> Reply:
    config = made("ConfigRecord", [], b"")
    return with_objects(task, message_with(task, config[0]), config)


def _reply_to_another_message(task: Message) -> Reply:
    other = Message(RecordDict(), task.metadata.dst_node_id, "train", ttl=60.0)
    assign_message_id(other, "f" * 64)
    reply = honest(other)
    reply.message = honest(task).message
    assign_message_id(reply.message, reply.tree.object_id)
    return reply


BROKEN: dict[str, Callable[[Message], Reply]] = {
    "an unknown kind": lambda task: with_objects(task, made("CustomDataClass", [], b"")),
    "a child that is not there": lambda task: with_objects(task, message_with(task, "0" * 64)),
    "a body that is not protobuf": lambda task: with_objects(task, made("Message", [], b"\xff" * 9)),
    "a body that is not JSON": lambda task: with_objects(task, made("RecordDict", [], b"{")),
    "a body of deep JSON": lambda task: with_objects(task, made("RecordDict", [], b"[" * 100_000)),
    "no content": lambda task: with_objects(task, message_with(task)),
    "no message": lambda task: with_objects(task, made("RecordDict", [], b"{}")),
    "content of another kind": _content_of_another_kind,
    "a deep chain": _deep_chain,
    "a chunk that is named again and again": _unfolding_array,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_reply_that_cannot_be_put_together_concerns_its_site_alone(broken: Callable[[Message], Reply]) -> None:
    superlink = SuperLink({1: broken, 2: honest})

    assert replies_and_failures(superlink) == (["site 2"], {"site 1": "its reply is not readable"})
    assert len(superlink.confirmed) == 2


def test_reply_that_says_it_answers_another_message_is_none() -> None:
    superlink = SuperLink({1: _reply_to_another_message, 2: honest})

    assert replies_and_failures(superlink) == (["site 2"], {"site 1": "its reply is not one to what it was asked"})


def test_reply_of_too_many_parts_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_private, "MAX_OBJECTS", 10)
    many = [made("ArrayChunk", [], bytes([number])) for number in range(10)]
    superlink = SuperLink({1: lambda task: with_objects(task, message_with(task), *many), 2: honest})

    assert replies_and_failures(superlink) == (["site 2"], {"site 1": "its reply is made of too many parts"})
    assert not {number for number, _ in many} & set(superlink.fetched)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again soon for what is missing."""
    monkeypatch.setattr(flower_private, "_FIRST_LOOK_S", 0.05)
    monkeypatch.setattr(flower_private, "_LONGEST_LOOK_S", 0.05)
    monkeypatch.setattr(exchange, "PULL_PATIENCE_S", 0.2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("which", [0, -1], ids=["a part", "the message"])
def test_reply_that_waits_for_a_part_holds_up_no_other_and_is_taken_when_the_part_comes(which: int) -> None:
    late: dict[str, bytes] = {}

    def without_a_part(task: Message) -> Reply:
        reply = honest(task)
        number = list(reply.objects)[which]
        late[number] = reply.objects.pop(number)
        return reply

    superlink = SuperLink({1: without_a_part, 2: honest, 3: without_a_part, 4: honest})
    replied: list[str] = []

    def deliver_the_rest(site: str) -> None:
        replied.append(site)
        if replied == ["site 2", "site 4"]:
            superlink.objects |= late

    taken, failures = replies_and_failures(superlink, on_reply=deliver_the_rest)

    assert (taken[:2], sorted(taken[2:]), failures) == (["site 2", "site 4"], ["site 1", "site 3"], {})
    assert len(superlink.confirmed) == 4


@pytest.mark.usefixtures("quick")
def test_reply_whose_part_never_comes_is_left_at_the_deadline_and_not_asked_for_any_more() -> None:
    def without_a_part(task: Message) -> Reply:
        reply = honest(task)
        del reply.objects[next(iter(reply.objects))]
        return reply

    before = set(threading.enumerate())
    superlink = SuperLink({1: without_a_part, 2: honest})

    taken, failures = replies_and_failures(superlink, timeout_s=2.0)

    assert taken == ["site 2"]
    assert failures == {"site 1": "its reply was still on its way at the deadline"}
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before
