"""Sending and collecting over a Grid that is scripted tick by tick; a tick passes whenever it is asked who is there."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from common.flower_private import NodeInfo, Run, assign_message_id, take_server_identity
from server.exchange import MAX_TRIES, TRANSPORT_ERRORS, collect

CONTENT = RecordDict({"task": ConfigRecord({"x": 1})})
OK = RecordDict({"reply": ConfigRecord({"x": 2})})
Outcome = RecordDict | int | None
"""What comes of a try: a content, one of Flower's error codes, or nothing ever."""


class ScriptedGrid(Grid):
    """Nodes that are there and answer as a script says.

    Args:
        online: Nodes that are there at a tick.
        outcomes: What comes of each node's tries, one after the other; the last one repeats.
        delay: Ticks from a message to its answer.
        copies: How often each answer is handed out at once.
    """

    def __init__(
        self,
        online: Callable[[int], set[int]],
        outcomes: Mapping[int, Sequence[Outcome]],
        *,
        delay: int = 2,
        copies: int = 1,
    ) -> None:
        take_server_identity(run_id=1, node_id=1)
        self.tick = 0
        self.sent: list[Message] = []
        self.asked: list[tuple[int, int]] = []
        self._online = online
        self._outcomes = outcomes
        self._delay = delay
        self._copies = copies
        self._due: dict[str, tuple[int, Message, Outcome]] = {}

    def get_nodes(self) -> list[NodeInfo]:
        self.tick += 1
        return [NodeInfo(node_id=node) for node in sorted(self._online(self.tick))]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            tries = sum(earlier.metadata.dst_node_id == node for earlier in self.sent)
            outcomes = self._outcomes[node]
            message_id = f"{node}/{tries}"
            assign_message_id(message, message_id)
            self.sent.append(message)
            self._due[message_id] = (self.tick + self._delay, message, outcomes[min(tries, len(outcomes) - 1)])
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies: list[Message] = []
        for message_id in message_ids:
            due, message, outcome = self._due[message_id]
            self.asked.append((self.tick, message.metadata.dst_node_id))
            if self.tick < due or outcome is None:
                continue
            for _ in range(self._copies):
                if isinstance(outcome, int):
                    replies.append(Message(Error(outcome, "/data/Miller"), reply_to=message))
                else:
                    replies.append(Message(outcome, reply_to=message))
        return replies

    def num_tries(self, node: int) -> int:
        return sum(message.metadata.dst_node_id == node for message in self.sent)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError


def always(*nodes: int) -> Callable[[int], set[int]]:
    return lambda tick: set(nodes)


def exchange(
    grid: Grid, nodes: Mapping[str, int], *, timeout_s: float = 60, enough: int = 1
) -> tuple[list[str], dict[str, str]]:
    """The sites whose replies were handed on, in their order, and the reasons for the others."""
    replied: list[str] = []

    def take(site: str, content: RecordDict) -> None:
        assert content is not CONTENT
        replied.append(site)

    failures = collect(
        grid,
        CONTENT,
        message_type="train",
        group="7",
        nodes=nodes,
        timeout_s=timeout_s,
        enough=enough,
        on_reply=take,
    )
    return replied, failures


def test_every_site_is_sent_one_message_and_its_reply_is_handed_on_once() -> None:
    grid = ScriptedGrid(always(1, 2), {1: [OK], 2: [OK]})

    replied, failures = exchange(grid, {"a": 1, "b": 2})

    assert sorted(replied) == ["a", "b"]
    assert failures == {}
    assert [message.metadata.dst_node_id for message in grid.sent] == [1, 2]
    assert {(m.metadata.message_type, m.metadata.group_id) for m in grid.sent} == {("train", "7")}
    assert all(0 < message.metadata.ttl <= 60 for message in grid.sent)


def test_reply_that_comes_twice_is_handed_on_once() -> None:
    replied, failures = exchange(ScriptedGrid(always(1), {1: [OK]}, copies=2), {"a": 1})

    assert replied == ["a"]
    assert failures == {}


def test_site_that_never_answers_is_left_at_the_deadline() -> None:
    replied, failures = exchange(ScriptedGrid(always(1, 2), {1: [OK], 2: [None]}), {"a": 1, "b": 2}, timeout_s=0.2)

    assert replied == ["a"]
    assert failures == {"b": "no reply before the deadline"}


def test_site_that_comes_later_is_sent_its_message_then() -> None:
    grid = ScriptedGrid(lambda tick: {1, 2} if tick >= 3 else {1}, {1: [OK], 2: [OK]}, delay=4)

    replied, failures = exchange(grid, {"a": 1, "b": 2})

    assert replied == ["a", "b"]
    assert failures == {}


def test_nobody_waits_for_a_site_that_is_not_there_once_enough_have_answered() -> None:
    replied, failures = exchange(ScriptedGrid(always(1), {1: [OK]}), {"a": 1, "b": 2}, timeout_s=3600)

    assert replied == ["a"]
    assert failures == {"b": "not connected"}


def test_site_that_is_not_there_is_waited_for_while_replies_are_too_few() -> None:
    grid = ScriptedGrid(lambda tick: {1, 2} if tick >= 6 else {1}, {1: [OK], 2: [OK]})

    replied, failures = exchange(grid, {"a": 1, "b": 2}, enough=2)

    assert replied == ["a", "b"]
    assert failures == {}


def test_site_that_goes_offline_while_it_works_is_waited_for_and_not_asked_meanwhile() -> None:
    away = range(2, 7)
    grid = ScriptedGrid(lambda tick: {1} if tick in away else {1, 2}, {1: [OK], 2: [OK]}, delay=3)

    replied, failures = exchange(grid, {"a": 1, "b": 2})

    assert replied == ["a", "b"]
    assert failures == {}
    assert grid.num_tries(2) == 1
    assert not any(node == 2 and tick in away for tick, node in grid.asked)


@pytest.mark.parametrize("code", sorted(TRANSPORT_ERRORS))
def test_message_that_was_lost_on_the_way_is_sent_again(code: int) -> None:
    grid = ScriptedGrid(always(1), {1: [code, code, OK]})

    replied, failures = exchange(grid, {"a": 1})

    assert replied == ["a"]
    assert failures == {}
    assert grid.num_tries(1) == 3


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3, "the message expired on its way"),
        (4, "the reply was lost on its way"),
        (5, "the site went offline"),
        (8, "the site's process stopped"),
    ],
)
def test_message_that_is_lost_again_and_again_is_sent_three_times(code: int, reason: str) -> None:
    grid = ScriptedGrid(always(1), {1: [code]})

    replied, failures = exchange(grid, {"a": 1})

    assert replied == []
    assert failures == {"a": reason}
    assert grid.num_tries(1) == MAX_TRIES == 3


@pytest.mark.parametrize("code", [0, 1, 2, 6, 7, 99])
def test_failure_of_the_site_s_program_is_not_tried_again_and_its_text_is_not_repeated(code: int) -> None:
    grid = ScriptedGrid(always(1, 2), {1: [code], 2: [OK]})

    replied, failures = exchange(grid, {"a": 1, "b": 2})

    assert replied == ["b"]
    assert failures == {"a": f"the site's program failed (Flower error {code})"}
    assert grid.num_tries(1) == 1


def test_time_is_over_before_it_began() -> None:
    grid = ScriptedGrid(always(1), {1: [OK]})

    replied, failures = exchange(grid, {"a": 1}, timeout_s=0.0)

    assert replied == []
    assert failures == {"a": "not connected"}
    assert grid.sent == []


def test_no_site_is_no_work() -> None:
    assert exchange(ScriptedGrid(always(), {}), {}, enough=0) == ([], {})
