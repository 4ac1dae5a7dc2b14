"""Sending and collecting over a Grid that is scripted tick by tick; a tick passes whenever it is asked who is there."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from common.bundle import BundleRefusal
from common.flower_private import NodeInfo, Run, assign_message_id, take_server_identity
from common.messages import PING_TYPE, ping_records
from server import exchange as module
from server import patient_grid
from server.exchange import MAX_TRIES, TRANSPORT_ERRORS, Contents, collect

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


def numbered(number: str) -> Message:
    message = Message(CONTENT, 1, "train", ttl=60.0)
    assign_message_id(message, number)
    return message


def always(*nodes: int) -> Callable[[int], set[int]]:
    return lambda tick: set(nodes)


def exchange(
    grid: Grid,
    nodes: Mapping[str, int],
    *,
    timeout_s: float = 60,
    enough: int = 1,
    contents: Contents | None = None,
) -> tuple[list[str], dict[str, str]]:
    """The sites whose replies were handed on, in their order, and the reasons for the others."""
    replied: list[str] = []

    def take(site: str, content: RecordDict) -> None:
        assert content is not CONTENT
        replied.append(site)

    failures = collect(
        grid,
        Contents.alike(lambda: CONTENT) if contents is None else contents,
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


# --- sites that are restarted, cut off, or gone -----------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks that pass quickly."""
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.01)


@dataclass
class SuperNode:
    """A site behind a real SuperNode: it fetches one message at a time, and what it has fetched is not sent again.

    Attributes:
        work_ticks: How long it works on a message that is no ping.
        restarts: Ticks before which it is killed and started again; what it works on is lost.
        away: Ticks at which it is cut off from the SuperLink, but works on.
        unregistered_at: Tick from which on the SuperLink does not know it any more.
    """

    work_ticks: int = 4
    restarts: tuple[int, ...] = ()
    away: range = range(0)
    unregistered_at: int = 10**9
    activation: int = 0
    waiting: list[Message] = field(default_factory=list)
    work: Message | None = None
    work_left: int = 0
    finished: list[Message] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class SuperLinkGrid(ScriptedGrid):
    """What Flower 1.41 does with messages to SuperNodes, as far as it matters for what is lost."""

    def __init__(self, nodes: Mapping[int, SuperNode]) -> None:
        super().__init__(always(), {})
        self.nodes = nodes
        self.replies: dict[str, Message] = {}

    def get_nodes(self) -> list[NodeInfo]:
        self.tick += 1
        for node in self.nodes.values():
            self._live(node)
        return [
            NodeInfo(node_id=number, name=f"site {number}", last_activated_at=f"time {node.activation}")
            for number, node in self.nodes.items()
            if self.tick not in node.away and self.tick < node.unregistered_at
        ]

    def _live(self, node: SuperNode) -> None:
        if self.tick in node.restarts:
            node.work = None
            node.activation += 1
        if node.away and self.tick == node.away.stop:
            node.activation += 1
        if node.work is not None:
            node.work_left -= 1
            if node.work_left <= 0:
                content = ping_records() if node.work.metadata.message_type == PING_TYPE else OK
                node.finished.append(Message(content, reply_to=node.work))
                node.work = None
        if self.tick in node.away:
            return
        for reply in node.finished:
            self.replies[reply.metadata.reply_to_message_id] = reply
        node.finished.clear()
        if node.work is None and node.waiting:
            node.work = node.waiting.pop(0)
            node.work_left = 1 if node.work.metadata.message_type == PING_TYPE else node.work_ticks

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            node = self.nodes[message.metadata.dst_node_id]
            if self.tick >= node.unregistered_at:
                ids.append("")
                continue
            assign_message_id(message, f"message {len(self.sent)}")
            self.sent.append(message)
            node.waiting.append(message)
            node.asked.append(message.metadata.message_type)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.replies.pop(number) for number in message_ids if number in self.replies]


@pytest.mark.usefixtures("quick")
def test_site_that_is_restarted_between_two_looks_is_noticed_and_sent_its_work_again() -> None:
    grid = SuperLinkGrid({1: SuperNode(), 2: SuperNode(restarts=(4,))})

    replied, failures = exchange(grid, {"a": 1, "b": 2}, timeout_s=20)

    assert sorted(replied) == ["a", "b"]
    assert failures == {}
    assert grid.nodes[1].asked == ["train"]
    assert grid.nodes[2].asked == ["train", PING_TYPE, "train"]


@pytest.mark.usefixtures("quick")
def test_site_that_is_restarted_before_it_fetched_its_work_is_not_sent_it_twice() -> None:
    grid = SuperLinkGrid({1: SuperNode(restarts=(2,))})

    replied, failures = exchange(grid, {"a": 1}, timeout_s=20)

    assert (replied, failures) == (["a"], {})
    assert grid.nodes[1].asked == ["train", PING_TYPE]


@pytest.mark.usefixtures("quick")
def test_site_that_is_restarted_again_while_it_is_asked_is_asked_again() -> None:
    grid = SuperLinkGrid({1: SuperNode(restarts=(4, 6))})  # the second restart swallows the ping

    replied, failures = exchange(grid, {"a": 1}, timeout_s=20)

    assert (replied, failures) == (["a"], {})
    assert grid.nodes[1].asked == ["train", PING_TYPE, PING_TYPE, "train"]


@pytest.mark.usefixtures("quick")
def test_site_that_was_cut_off_but_worked_on_is_not_sent_its_work_again() -> None:
    grid = SuperLinkGrid({1: SuperNode(work_ticks=12, away=range(4, 9))})

    replied, failures = exchange(grid, {"a": 1}, timeout_s=20)

    assert (replied, failures) == (["a"], {})
    assert grid.nodes[1].asked == ["train", PING_TYPE]


@pytest.mark.usefixtures("quick")
def test_site_that_finished_while_it_was_cut_off_hands_in_its_reply() -> None:
    grid = SuperLinkGrid({1: SuperNode(work_ticks=3, away=range(3, 12))})

    replied, failures = exchange(grid, {"a": 1}, timeout_s=20)

    assert (replied, failures) == (["a"], {})
    assert grid.nodes[1].asked.count("train") == 1


def test_work_that_was_lost_without_a_sign_is_found_out_by_the_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_AFTER_S", 0.1)
    grid = SuperLinkGrid({1: SuperNode()})
    grid.nodes[1].work_ticks = 2

    def lose_what_was_fetched_first(messages: Iterable[Message]) -> list[str]:
        ids = SuperLinkGrid.push_messages(grid, messages)
        if len(grid.sent) == 1:
            grid.nodes[1].waiting.clear()
        return ids

    monkeypatch.setattr(grid, "push_messages", lose_what_was_fetched_first)

    replied, failures = exchange(grid, {"a": 1}, timeout_s=20)

    assert (replied, failures) == (["a"], {})
    assert grid.nodes[1].asked.count("train") == 2


def test_site_that_is_too_busy_for_pings_is_not_taken_for_one_that_lost_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PING_AFTER_S", 0.05)
    grid = SuperLinkGrid({1: SuperNode(work_ticks=12)})

    def expire(message_ids: Iterable[str]) -> list[Message]:
        expired = [each for each in grid.nodes[1].waiting if each.metadata.message_type == PING_TYPE]
        grid.nodes[1].waiting = [each for each in grid.nodes[1].waiting if each not in expired]
        return [Message(Error(3, ""), reply_to=each) for each in expired] + SuperLinkGrid.pull_messages(
            grid, message_ids
        )

    monkeypatch.setattr(grid, "pull_messages", expire)

    replied, failures = exchange(grid, {"a": 1}, timeout_s=20)

    assert (replied, failures) == (["a"], {})
    assert grid.nodes[1].asked.count("train") == 1
    assert grid.nodes[1].asked.count(PING_TYPE) > 1


@pytest.mark.usefixtures("quick")
def test_site_that_loses_its_work_again_and_again_is_given_up() -> None:
    grid = SuperLinkGrid({1: SuperNode(restarts=tuple(range(4, 1000, 5)))})

    replied, failures = exchange(grid, {"a": 1}, timeout_s=60)

    assert replied == []
    assert failures == {"a": "the work was lost when the site was restarted or cut off"}
    assert grid.nodes[1].asked.count("train") == MAX_TRIES


def test_site_that_stays_away_is_named_as_such() -> None:
    grid = SuperLinkGrid({1: SuperNode(), 2: SuperNode(away=range(3, 10**9))})

    replied, failures = exchange(grid, {"a": 1, "b": 2}, timeout_s=0.5)

    assert replied == ["a"]
    assert failures == {"b": "lost its connection and did not come back before the deadline"}


def test_nobody_waits_until_the_deadline_for_a_site_that_was_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_AFTER_S", 0.1)
    grid = SuperLinkGrid({1: SuperNode(), 2: SuperNode(unregistered_at=3)})

    replied, failures = exchange(grid, {"a": 1, "b": 2}, timeout_s=3600)

    assert replied == ["a"]
    assert failures == {"b": "no longer registered with the federation"}


def test_nobody_waits_for_a_site_that_was_revoked_and_counts_as_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_AFTER_S", 0.1)
    grid = SuperLinkGrid({1: SuperNode(), 2: SuperNode(unregistered_at=3)})
    grid.replies["message 1"] = Message(Error(5, ""), reply_to=numbered("message 1"))

    replied, failures = exchange(grid, {"a": 1, "b": 2}, timeout_s=3600)

    assert replied == ["a"]
    assert failures == {"b": "no longer registered with the federation"}


def test_site_of_another_version_is_named_by_the_digests_of_both_bundles_alone() -> None:
    refusal = BundleRefusal(installed="ab" * 32, offered="cd" * 32)

    class Refusing(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            text = f"ClientApp raised: {refusal.to_text()} in /data/Miller"
            return [
                Message(Error(2, text), reply_to=message)
                for message in self.sent
                if any(reply.metadata.reply_to_message_id == message.metadata.message_id for reply in replies)
            ]

    replied, failures = exchange(Refusing(always(1), {1: [2]}), {"a": 1})

    assert replied == []
    assert failures == {
        "a": "runs another version: its bundle is abababababab, the coordinator's cdcdcdcdcdcd; "
        "both sides need the same version"
    }


# --- replies that are not what they seem ------------------------------------------------------------------------------


def test_reply_to_another_message_is_not_handed_on() -> None:
    class Replaying(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            return [Message(OK, reply_to=numbered("round 6")), *replies]

    replied, failures = exchange(Replaying(always(1), {1: [None]}), {"a": 1}, timeout_s=0.2)

    assert replied == []
    assert failures == {"a": "its reply is not one to what it was asked"}


def test_reply_from_another_node_than_the_one_asked_is_refused() -> None:
    class Impersonating(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            replies = super().pull_messages(message_ids)
            for reply in replies:
                reply.metadata.__dict__["_src_node_id"] = 99
            return replies

    replied, failures = exchange(Impersonating(always(1), {1: [OK]}), {"a": 1})

    assert replied == []
    assert failures == {"a": "the reply came from another node"}


# --- a SuperLink that is away or fails, uploads that stall ------------------------------------------------------------


def http_error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://127.0.0.1/v1/runtime/pull-messages")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


class FailingGrid(ScriptedGrid):
    """Fails at the first call of each kind."""

    def __init__(self, error: Exception, nodes: tuple[int, ...]) -> None:
        super().__init__(always(*nodes), {node: [OK] for node in nodes})
        self._error = error
        self._failed: set[str] = set()

    def _fail_once(self, call: str) -> None:
        if call not in self._failed:
            self._failed.add(call)
            raise self._error

    def get_nodes(self) -> list[NodeInfo]:
        self._fail_once("get")
        return super().get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._fail_once("push")
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._fail_once("pull")
        return super().pull_messages(message_ids)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(http_error(500), id="the SuperLink's database is locked or its disk full"),
        pytest.param(http_error(429), id="too many requests"),
        pytest.param(httpx.ConnectError("[SSL] record layer failure"), id="cut within TLS"),
    ],
)
def test_failures_of_the_superlink_that_pass_do_not_end_a_round(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient_grid, "FIRST_PAUSE_S", 0.01)

    replied, failures = exchange(FailingGrid(error, (1, 2)), {"a": 1, "b": 2})

    assert sorted(replied) == ["a", "b"]
    assert failures == {}


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(http_error(404), id="not what we take it for"),
        pytest.param(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), id="another SuperLink"),
    ],
)
def test_lasting_failures_of_the_superlink_end_the_run(error: Exception) -> None:
    with pytest.raises(type(error)):
        exchange(FailingGrid(error, (1,)), {"a": 1})


def test_time_in_which_the_superlink_was_down_puts_off_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_grid, "OUTAGE_S", 0.1)
    monkeypatch.setattr(patient_grid, "FIRST_PAUSE_S", 0.6)

    replied, failures = exchange(FailingGrid(http_error(500), (1,)), {"a": 1}, timeout_s=0.5)

    assert (replied, failures) == (["a"], {})


class StallingGrid(ScriptedGrid):
    """The upload of one node's reply hangs until it is let go."""

    def __init__(self, stalls: int, nodes: tuple[int, ...]) -> None:
        super().__init__(always(*nodes), {node: [OK] for node in nodes})
        self._stalls = stalls
        self.let_go = threading.Event()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        numbers = list(message_ids)
        if numbers[0].startswith(f"{self._stalls}/"):
            self.let_go.wait(60)
        return super().pull_messages(numbers)


def test_upload_that_hangs_holds_up_neither_the_others_nor_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PULL_PATIENCE_S", 0.05)
    grid = StallingGrid(1, (1, 2, 3))

    replied, failures = exchange(grid, {"a": 1, "b": 2, "c": 3}, timeout_s=1.0)
    grid.let_go.set()

    assert sorted(replied) == ["b", "c"]
    assert failures == {"a": "its reply was still on its way at the deadline"}


def test_upload_that_is_slow_is_taken_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PULL_PATIENCE_S", 0.05)
    grid = StallingGrid(1, (1, 2))
    threading.Timer(0.5, grid.let_go.set).start()

    replied, failures = exchange(grid, {"a": 1, "b": 2})

    assert replied == ["b", "a"]
    assert failures == {}


# --- sites that are sent something else -------------------------------------------------------------------------------


def short_where_held(asks: Sequence[str]) -> tuple[Contents, list[str]]:
    """Contents that are short until a site has asked for the long one; the sites in `asks` always do."""
    made: list[str] = []
    lacking: set[str] = set()

    def make(kind: str) -> RecordDict:
        made.append(kind)
        return CONTENT

    def asks_for_other(site: str, reply: RecordDict) -> bool:
        if site in asks:
            lacking.add(site)
        return site in asks

    return Contents(make, lambda site: "long" if site in lacking else "short", asks_for_other), made


def test_sites_of_one_kind_share_their_content_and_one_that_asks_is_sent_the_other() -> None:
    grid = ScriptedGrid(always(1, 2), {1: [OK], 2: [OK]})
    contents, made = short_where_held(["a"])

    replied, failures = exchange(grid, {"a": 1, "b": 2}, contents=contents)

    assert (sorted(replied), failures) == (["a", "b"], {})
    assert made == ["short", "long"]
    assert (grid.num_tries(1), grid.num_tries(2)) == (2, 1)


def test_site_that_asks_for_another_content_may_still_lose_its_work_as_often_as_others() -> None:
    contents, made = short_where_held(["a"])
    grid = ScriptedGrid(always(1), {1: [OK, 5, 5, OK]})

    replied, failures = exchange(grid, {"a": 1}, contents=contents)

    assert (replied, failures) == (["a"], {})
    assert grid.num_tries(1) == MAX_TRIES + 1
    assert made == ["short", "long", "long", "long"]
