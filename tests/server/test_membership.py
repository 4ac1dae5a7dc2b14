"""Which node is which site: what the coordinator registered counts, and not what a reply claims."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import SITE_CONFIG_KEY
from common.bundle import BundleRefusal
from common.flower_private import NodeInfo, assign_message_id
from common.messages import read_manifest, reply_records
from common.study import Study, parse_study
from common.tasks import Failure, SiteManifest
from server.membership import MAX_DESCRIBE_TRIES, Membership
from server.run_folder import Participants
from simulations.engines.in_process import InProcessGrid
from tests.tiny_hospitals import study_text

STUDY = parse_study(study_text(), origin="study")
Describe = Callable[[str], SiteManifest | Failure | RecordDict]


def manifest(site: str, *, cohort: str = "c", study: Study = STUDY) -> SiteManifest:
    return SiteManifest(
        site=site,
        study_digest=study.digest,
        num_patients={"train": (3, 3), "validation": (1, 1), "test": (1, 1)},
        num_exams={"train": 6, "validation": 2, "test": 2},
        cohort_digests=dict.fromkeys(("train", "validation", "test"), cohort * 64),
        missing_sequences={},
        crop_centers={},
        device="cpu",
        torch_threads=1,
        versions={},
    )


class DescribingClientApp(ClientApp):
    """Sites that answer with a manifest and count how often they are asked."""

    def __init__(self, describe: Describe) -> None:
        super().__init__()
        self._describe = describe
        self.asked: list[str] = []

    def __call__(self, message: Message, context: Context) -> Message:
        node = str(context.node_config[SITE_CONFIG_KEY])
        self.asked.append(node)
        reply = self._describe(node)
        return Message(reply if isinstance(reply, RecordDict) else reply_records(reply), reply_to=message)


def membership(
    app: ClientApp,
    nodes: tuple[str, ...],
    *,
    expected: tuple[str, ...] = ("a", "b"),
    identity: Literal["registered", "claimed"] = "registered",
) -> Membership:
    grid = InProcessGrid(app, {name: {SITE_CONFIG_KEY: name} for name in nodes}, workers=1)
    return Membership(grid, STUDY, Participants(expected, identity, "in-process"))


def joined(members: Membership) -> list[str]:
    names: list[str] = []
    members.wait_and_join(timeout_s=0.3, on_join=names.append)
    assert sorted(names) == sorted(members.manifests) == sorted(members.nodes)
    return sorted(names)


def test_sites_join_under_the_names_they_are_registered_with() -> None:
    members = membership(DescribingClientApp(manifest), ("a", "b"))

    assert joined(members) == ["a", "b"]
    assert members.problems == {}
    assert members.manifests["b"] == manifest("b")


def test_site_that_claims_another_name_is_refused_under_its_own() -> None:
    members = membership(DescribingClientApp(lambda node: manifest("a")), ("a", "b"))

    assert joined(members) == ["a"]
    assert members.problems == {
        "b": "registered as 'b', but its configuration says name: 'a'; make them equal",
    }


def test_node_that_is_not_expected_is_not_even_asked() -> None:
    app = DescribingClientApp(manifest)
    members = membership(app, ("a", "stranger"))

    assert joined(members) == ["a"]
    assert app.asked == ["a"]
    assert members.problems == {"b": "never connected"}


def test_names_are_claimed_where_nodes_have_none() -> None:
    members = membership(
        DescribingClientApp(lambda node: manifest({"1": "a", "2": "b"}[node])), ("1", "2"), identity="claimed"
    )

    assert joined(members) == ["a", "b"]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        pytest.param("a", "a site that has not joined yet: 'a' has joined already from another node", id="twice"),
        pytest.param("z", "a site that has not joined yet: 'z' is not among the sites of this run: a, b", id="unknown"),
    ],
)
def test_claimed_name_that_is_taken_or_unknown_is_refused(claim: str, reason: str) -> None:
    members = membership(
        DescribingClientApp(lambda node: manifest({"1": "a", "2": claim}[node])), ("1", "2"), identity="claimed"
    )

    assert joined(members) == ["a"]
    assert members.problems["b"].startswith(reason)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(Failure("disclosure"), "cannot take part: disclosure", id="failure"),
        pytest.param(RecordDict(), "the message has no 'reply' part; both sides need", id="nothing"),
        pytest.param(RecordDict({"reply": ConfigRecord({"protocol": 9})}), "the message is of protocol 9", id="newer"),
        pytest.param(
            manifest("b", study=parse_study(study_text(seed=9), origin="study")), "works on study", id="another study"
        ),
    ],
)
def test_site_that_cannot_join_is_named_with_the_reason(
    reply: SiteManifest | Failure | RecordDict, reason: str
) -> None:
    members = membership(DescribingClientApp(lambda node: reply if node == "b" else manifest(node)), ("a", "b"))

    assert joined(members) == ["a"]
    assert members.problems["b"].startswith(reason)


def test_site_that_cannot_join_is_asked_again_before_later_rounds_but_not_for_ever() -> None:
    app = DescribingClientApp(lambda node: Failure("data"))
    members = membership(app, ("a",), expected=("a",))

    for _ in range(5):
        members.join(timeout_s=5, on_join=lambda name: None)

    assert len(app.asked) == MAX_DESCRIBE_TRIES


def test_site_that_was_mended_joins_later() -> None:
    tries: list[str] = []

    def describe(node: str) -> SiteManifest | Failure:
        tries.append(node)
        return Failure("data") if len(tries) == 1 else manifest(node)

    members = membership(DescribingClientApp(describe), ("a",), expected=("a",))
    assert joined(members) == []

    late: list[str] = []
    members.join(timeout_s=5, on_join=late.append)

    assert late == ["a"]
    assert members.problems == {}


def test_site_with_other_patients_than_before_is_let_go() -> None:
    members = membership(DescribingClientApp(lambda node: manifest(node, cohort="d")), ("a", "b"))
    joined(members)
    before = {"a": dict(manifest("a", cohort="d").cohort_digests), "b": dict(manifest("b", cohort="c").cohort_digests)}

    members.require_unchanged_cohorts({site: {str(k): v for k, v in d.items()} for site, d in before.items()})

    assert sorted(members.nodes) == ["a"]
    assert members.problems == {"b": "its patients are not those it began the run with"}


def test_manifest_of_a_real_site_is_the_one_that_is_read(hospitals: dict[str, Path]) -> None:
    from client.app import app

    grid = InProcessGrid(app, {name: {SITE_CONFIG_KEY: str(path)} for name, path in hospitals.items()}, workers=1)
    members = Membership(grid, STUDY, Participants(("a", "b", "c"), "registered", "in-process"))

    assert joined(members) == ["a", "b", "c"]
    assert members.manifests["c"].num_patients == {"train": (4, 4), "validation": (3, 3), "test": (3, 3)}
    assert read_manifest(reply_records(members.manifests["c"])) == members.manifests["c"]


# --- nodes that go, come, and come anew -------------------------------------------------------------------------------


class RegisteredNodes(InProcessGrid):
    """Nodes that the test connects and disconnects; a node's number does not change."""

    def __init__(self, app: ClientApp, nodes: dict[str, str]) -> None:
        super().__init__(app, {key: {SITE_CONFIG_KEY: key} for key in nodes}, workers=1)
        self._registered = nodes
        self.connected: set[str] = set()
        self.activation = 0

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=info.node_id, name=self._registered[info.name], last_activated_at=str(self.activation))
            for info in super().get_nodes()
            if info.name in self.connected
        ]


def rejoin(members: Membership) -> list[str]:
    names: list[str] = []
    members.join(timeout_s=5, on_join=names.append)
    return names


def test_site_that_was_away_at_the_beginning_is_in_the_next_round() -> None:
    grid = RegisteredNodes(DescribingClientApp(manifest), {"a": "a", "b": "b"})
    members = Membership(grid, STUDY, Participants(("a", "b"), "registered", "network"))
    grid.connected = {"a"}
    members.wait_and_join(timeout_s=0.1, on_join=lambda name: None)
    assert members.problems == {"b": "never connected"}

    grid.connected = {"a", "b"}

    assert rejoin(members) == ["b"]
    assert sorted(members.nodes) == ["a", "b"]


def test_site_that_missed_rounds_is_not_asked_again_what_it_brings() -> None:
    app = DescribingClientApp(manifest)
    grid = RegisteredNodes(app, {"a": "a", "b": "b"})
    members = Membership(grid, STUDY, Participants(("a", "b"), "registered", "network"))
    grid.connected = {"a", "b"}
    rejoin(members)

    grid.connected = {"a"}
    rejoin(members)
    grid.connected = {"a", "b"}
    rejoin(members)

    assert sorted(app.asked) == ["a", "b"]
    assert sorted(members.nodes) == ["a", "b"]


def test_site_that_was_enrolled_anew_takes_the_place_of_its_old_node() -> None:
    app = DescribingClientApp(lambda key: manifest("a"))
    grid = RegisteredNodes(app, {"old": "a", "new": "a"})
    members = Membership(grid, STUDY, Participants(("a",), "registered", "network"))
    grid.connected = {"old"}
    rejoin(members)
    old = members.nodes["a"]

    grid.connected = {"old", "new"}
    assert rejoin(members) == []  # both are there: nothing changes
    grid.connected = {"new"}
    assert rejoin(members) == ["a"]

    assert members.nodes["a"] != old
    assert app.asked == ["old", "new"]


def test_site_that_was_enrolled_anew_must_bring_the_same_patients() -> None:
    app = DescribingClientApp(lambda key: manifest("a", cohort={"old": "c", "new": "d"}[key]))
    grid = RegisteredNodes(app, {"old": "a", "new": "a"})
    members = Membership(grid, STUDY, Participants(("a",), "registered", "network"))
    grid.connected = {"old"}
    rejoin(members)
    before = {"a": {str(split): digest for split, digest in members.manifests["a"].cohort_digests.items()}}

    grid.connected = {"new"}
    rejoin(members)
    members.require_unchanged_cohorts(before)

    assert members.nodes == {}
    assert members.problems == {"a": "its patients are not those it began the run with"}


def test_site_that_has_not_consented_is_asked_until_it_does() -> None:
    consented = False
    app = DescribingClientApp(lambda node: manifest(node) if consented else Failure("consent"))
    members = membership(app, ("a",), expected=("a",))
    for _ in range(MAX_DESCRIBE_TRIES + 2):
        assert rejoin(members) == []
    assert members.problems == {"a": f"has not consented to this study ({STUDY.digest[:12]})"}

    consented = True

    assert rejoin(members) == ["a"]
    assert members.problems == {}


def test_site_that_was_mended_and_started_again_is_asked_however_often_it_failed() -> None:
    mended = False
    app = DescribingClientApp(lambda node: manifest(node) if mended else Failure("data"))
    grid = RegisteredNodes(app, {"a": "a"})
    members = Membership(grid, STUDY, Participants(("a",), "registered", "network"))
    grid.connected = {"a"}
    for _ in range(MAX_DESCRIBE_TRIES + 1):
        rejoin(members)
    mended = True
    assert rejoin(members) == []

    grid.activation += 1

    assert rejoin(members) == ["a"]


def test_site_of_another_version_is_named_with_both_digests() -> None:
    class Guarded(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            text = f"refused: {BundleRefusal('ab' * 32, 'cd' * 32).to_text()}"
            return [self._refusal(number, text) for number in message_ids]

        def _refusal(self, number: str, text: str) -> Message:
            message = Message(RecordDict(), 2, "query.describe")
            assign_message_id(message, number)
            return Message(Error(2, text), reply_to=message)

    grid = Guarded(DescribingClientApp(manifest), {"a": {SITE_CONFIG_KEY: "a"}}, workers=1)
    members = Membership(grid, STUDY, Participants(("a",), "registered", "network"))

    assert rejoin(members) == []
    assert members.problems == {
        "a": "runs another version: its bundle is abababababab, the coordinator's cdcdcdcdcdcd; "
        "both sides need the same version"
    }
