"""Sites that restart, repeat themselves, break off or come late, and a SuperLink that is killed, over real Flower.

The sites are reduced to their protocol, so that each can do exactly one thing at exactly one moment. What they answer
does not depend on when they are asked, so a run that survives has the bytes of an undisturbed one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import SITE_CONFIG_KEY
from common.flower_private import take_server_identity
from common.messages import PING_TYPE
from server.federation import Federation
from server.run_folder import Participants, create_run_folder
from simulations.benchmark.coordinator import Coordinator, coordinator
from simulations.benchmark.fleet_site import FleetSite, MadeUpSite
from simulations.engines.in_process import InProcessGrid
from tests.tiny_federation import Run
from tests.tiny_hospitals import study_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SITES = ("a", "b", "c")
Deed = Callable[[FleetSite, Message], None]


def study(*, rounds: int = 3, min_sites: int = 3, **participation: float) -> str:
    waits = {"min_sites": min_sites, "round_timeout_s": 600, "join_timeout_s": 120}
    return study_text(rounds=rounds, participation=waits | participation)


class MadeUpClientApp(ClientApp):
    """The made-up sites by function calls."""

    def __call__(self, message: Message, context: Context) -> Message:
        site = MadeUpSite(str(context.node_config[SITE_CONFIG_KEY]))
        return Message(site.answer(message), reply_to=message)


class Misbehaving(FleetSite):
    """A site that does something else, once, in place of answering its training message of a round.

    Attributes:
        deeds: What it does in which round.
    """

    deeds: dict[str, Deed]

    def handle(self, message: Message) -> None:
        is_training = message.metadata.message_type == "train"
        deed = self.deeds.pop(message.metadata.group_id, None) if is_training else None
        if deed is None:
            super().handle(message)
        else:
            deed(self, message)


class Federated:
    """A coordinator with three registered sites, which carries one run after the other."""

    def __init__(self, made: Coordinator, keys: Mapping[str, bytes]) -> None:
        self.coordinator = made
        self._keys = keys

    def begin(self, name: str, text: str) -> Run:
        participants = Participants(SITES, "registered", "federation")
        folder = create_run_folder(self.coordinator.link.runs / name, study_text=text, participants=participants)
        self.coordinator.link.submit(name)
        return Run(folder)

    def end_of(self, run: Run) -> Run:
        end = time.monotonic() + 500
        while not run.folder.record.is_file():
            assert time.monotonic() < end, run.folder.log.read_text()[-2000:]
            time.sleep(0.2)
        return run

    @contextmanager
    def sites(self, *names: str, deeds: Mapping[int, Deed] | None = None) -> Iterator[dict[str, Misbehaving]]:
        """Let sites take part; the one called b does the deeds, by the round."""
        take_server_identity(run_id=1, node_id=1)
        link, stop = self.coordinator.link, threading.Event()
        fleet = {
            name: Misbehaving(link.address, link.authority.read_bytes(), self._keys[name], MadeUpSite(name).answer)
            for name in names
        }
        for name, site in fleet.items():
            site.deeds = {str(round): deed for round, deed in (deeds or {}).items()} if name == "b" else {}
        threads = [threading.Thread(target=site.run, args=(stop,), daemon=True) for site in fleet.values()]
        for thread in threads:
            thread.start()
        try:
            yield fleet
        finally:
            stop.set()
            for thread, site in zip(threads, fleet.values(), strict=True):
                thread.join(30)
                if site.node is not None:
                    site.deactivate()
                site.close()


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federated]:
    home = tmp_path_factory.mktemp("federated")
    with coordinator(home, runs=home / "runs") as made:
        yield Federated(made, {name: made.register(name) for name in SITES})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digests of the states of a run that nobody disturbs."""
    home = tmp_path_factory.mktemp("undisturbed") / "run"
    folder = create_run_folder(home, study_text=study(), participants=Participants(SITES, "registered", "in-process"))
    grid = InProcessGrid(MadeUpClientApp(), {name: {SITE_CONFIG_KEY: name} for name in SITES}, workers=1)
    Federation(grid, folder, now=lambda: datetime.now(UTC)).run()
    return Run(folder).digests


def restart(site: FleetSite) -> None:
    site.deactivate()
    site.activate()


def restart_without_an_answer(site: FleetSite, message: Message) -> None:
    restart(site)


def answer_twice(site: FleetSite, message: Message) -> None:
    reply = site.reply_to(message)
    site.hand_in(reply)
    site.hand_in(reply)
    site.hand_in(Message(reply.content, reply_to=message))


def break_off_in_the_middle_and_restart(site: FleetSite, message: Message) -> None:
    site.hand_in(site.reply_to(message), objects=5)
    restart(site)


def test_site_that_restarts_between_two_looks_is_sent_its_work_again(
    federated: Federated, undisturbed: list[str]
) -> None:
    with federated.sites(*SITES, deeds={1: restart_without_an_answer}) as fleet:
        run = federated.end_of(federated.begin("restarted", study()))

    assert (run.record["outcome"], run.digests) == ("COMPLETE", undisturbed)
    assert fleet["b"].answered.count("train") == 3
    assert fleet["b"].answered.count(PING_TYPE) == 1
    assert fleet["a"].answered.count(PING_TYPE) == 0


def test_reply_that_is_handed_in_again_and_again_counts_once(federated: Federated, undisturbed: list[str]) -> None:
    with federated.sites(*SITES, deeds={1: answer_twice}):
        run = federated.end_of(federated.begin("repeated", study()))

    assert (run.record["outcome"], run.digests) == ("COMPLETE", undisturbed)


def test_reply_of_an_earlier_round_counts_nowhere(federated: Federated, undisturbed: list[str]) -> None:
    earlier: list[Message] = []

    def keep(site: FleetSite, message: Message) -> None:
        earlier.append(site.reply_to(message))
        site.hand_in(earlier[0])

    def replay(site: FleetSite, message: Message) -> None:
        site.hand_in(earlier[0])
        site.hand_in(Message(earlier[0].content, reply_to=message))  # the content of round 1 as the answer to round 2

    with federated.sites(*SITES, deeds={1: keep, 2: replay}):
        run = federated.end_of(federated.begin("replayed", study(min_sites=2)))

    sites = [each["sites"] for each in run.rounds]
    assert [site["b"]["status"] for site in sites] == ["accepted", "refused", "quarantined"]
    assert sites[1]["b"]["reason"] == "a reply to round 1, expected round 2"


def test_upload_that_breaks_off_is_waited_for_and_asked_for_again(federated: Federated, undisturbed: list[str]) -> None:
    with federated.sites(*SITES, deeds={1: break_off_in_the_middle_and_restart}):  # Flower gives up on it after 180 s
        run = federated.end_of(federated.begin("cut", study()))

    assert (run.record["outcome"], run.digests) == ("COMPLETE", undisturbed)


def test_superlink_that_is_killed_in_the_middle_of_a_round_loses_nothing(
    federated: Federated, undisturbed: list[str]
) -> None:
    def kill(site: FleetSite, message: Message) -> None:
        federated.coordinator.kill("superlink")
        threading.Timer(4.0, federated.coordinator.start).start()
        time.sleep(8.0)
        site.handle(message)

    with federated.sites(*SITES, deeds={1: kill}):
        run = federated.end_of(federated.begin("killed", study()))

    assert (run.record["outcome"], run.digests) == ("COMPLETE", undisturbed)


def test_site_that_comes_late_is_simply_in_the_next_round(federated: Federated) -> None:
    with federated.sites("a", "b"):
        run = federated.begin("late", study(rounds=12, min_sites=2, join_timeout_s=3))
        while not run.folder.rounds.is_file() or len(run.rounds) < 2:
            time.sleep(0.1)
        with federated.sites("c"):
            federated.end_of(run)

    statuses = [each["sites"]["c"]["status"] for each in run.rounds]
    assert statuses[:2] == ["absent", "absent"]
    assert statuses[-1] == "accepted"
    assert run.record["outcome"] == "DEGRADED"


def test_site_that_is_revoked_in_the_middle_of_a_round_does_not_hold_it_up(federated: Federated) -> None:
    def be_revoked(site: FleetSite, message: Message) -> None:
        assert site.node is not None
        federated.coordinator.link.unregister(site.node.node_id)
        site.node = None

    with federated.sites(*SITES, deeds={1: be_revoked}):  # found out after two minutes of silence
        run = federated.end_of(federated.begin("revoked", study(min_sites=2, round_timeout_s=3600)))

    sites = run.rounds[0]["sites"]["b"]
    assert (sites["status"], sites["reason"]) == ("failed", "no longer registered with the federation")
    assert run.record["outcome"] == "DEGRADED"
