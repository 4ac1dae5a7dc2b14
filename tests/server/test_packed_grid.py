"""A Grid whose messages travel in few pieces."""

from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from client.guard import with_packed_arrays
from server.flower_private import UnreadableReplyError
from server.packed_grid import PackedGrid
from tests.server.test_exchange import ScriptedGrid, numbered

STATE = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(3.0, np.float32), "large": np.ones(2**18)}


def content(**arrays: FlowerArray) -> RecordDict:
    return RecordDict({"task": ConfigRecord({"protocol": 3}), "state": ArrayRecord(arrays)})


WHOLE = content(**{name: FlowerArray(array) for name, array in STATE.items()})
SPOILT = content(**{"(packed)": FlowerArray("uint8", (3,), "gliorn.packed", b"xyz")})


class Wire(ScriptedGrid):
    """Hands each message to a ClientApp, and its answer back."""

    def __init__(self, answer: RecordDict | None = None) -> None:
        super().__init__(lambda tick: {7}, {7: [1]})
        self.on_the_wire: list[RecordDict] = []
        self.arrived: list[RecordDict] = []
        self._answer = answer

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        def app(message: Message, context: object) -> Message:
            self.arrived.append(message.content)
            return Message(WHOLE, reply_to=message)

        (sent,) = self.sent
        self.on_the_wire.append(sent.content)
        if self._answer is not None:
            return [Message(self._answer, reply_to=sent), Message(Error(5, ""), reply_to=sent)]
        reply = with_packed_arrays(app)(sent, None)  # type: ignore[arg-type]
        self.on_the_wire.append(reply.content)
        return [reply]


def test_site_and_coordinator_see_whole_states_and_the_wire_sees_packed_ones() -> None:
    wire = Wire()
    grid = PackedGrid(wire)
    message = Message(WHOLE, 7, "train", ttl=60.0)

    (number,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([number])

    assert wire.arrived == [WHOLE]
    assert reply.content == WHOLE
    assert [set(each.array_records["state"]) for each in wire.on_the_wire] == [{"(packed)", "large"}] * 2
    assert message.content == WHOLE
    assert [node.node_id for node in grid.get_nodes()] == [7]


def test_reply_that_cannot_be_unpacked_is_refused_without_its_content() -> None:
    grid = PackedGrid(Wire(SPOILT))
    grid.push_messages([Message(WHOLE, 7, "train", ttl=60.0)])

    with pytest.raises(UnreadableReplyError, match=r"^its reply is not readable$"):
        list(grid.pull_messages(["7/0"]))


def test_error_that_a_site_answers_is_handed_on() -> None:
    grid = PackedGrid(Wire(RecordDict()))
    grid.push_messages([Message(WHOLE, 7, "train", ttl=60.0)])

    empty, error = grid.pull_messages(["7/0"])

    assert empty.content == RecordDict()
    assert error.error.code == 5


def test_answer_without_content_is_not_packed() -> None:
    sent = numbered("7/0")

    reply = with_packed_arrays(lambda message, context: Message(Error(9, "why"), reply_to=message))(sent, None)  # type: ignore[arg-type]

    assert reply.error.code == 9


def test_messages_that_share_their_content_share_it_packed() -> None:
    wire = Wire()

    PackedGrid(wire).push_messages([Message(each, 7, "train", ttl=60.0) for each in (WHOLE, WHOLE, content())])

    first, second, other = (message.content for message in wire.sent)
    assert first is second
    assert set(first.array_records["state"]) == {"(packed)", "large"}
    assert set(other.array_records["state"]) == set()
