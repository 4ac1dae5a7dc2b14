"""A federation whose network fails: over real processes, with proxies on loopback between sites and coordinator."""

import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import Error, Message

from common.model_state import state_digest
from server.authority import signing_authority
from server.private_files import write_all_private
from server.provisioning import make_server_certificate
from tests.deployment import Deployment, deployment
from tests.network_faults import HOST, ConnectProxy, Cut, Eavesdropper, Sample, TcpProxy
from tests.tiny_federation import Answer, FaultyClientApp, Run, run_federation
from tests.tiny_hospitals import study_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CUT_S = 150.0
"""Longer than the minute after which Flower declares a site offline."""


def study(*, rounds: int = 2, **participation: int) -> str:
    """The tiny study, with patience for a slow machine."""
    settings = {"min_sites": 2, "round_timeout_s": 900, "join_timeout_s": 300} | participation
    return study_text(rounds=rounds, participation=settings)


@contextmanager
def behind_proxies(
    folder: Path, *names: str, text: str, direct: tuple[str, ...] = ()
) -> Iterator[tuple[Deployment, Mapping[str, TcpProxy]]]:
    """A served federation with sites that have joined, each through a proxy of its own."""
    with ExitStack() as stack:
        proxies = {name: TcpProxy() for name in names if name not in direct}
        ports = {name: proxy.port for name, proxy in proxies.items()}
        made = stack.enter_context(deployment(folder, *names, study=text, reached_at=ports))
        for proxy in proxies.values():
            proxy.target = made.federation.read_config().port
            stack.enter_context(proxy)
        made.start_server()
        made.join()
        yield made, proxies


def end_of(made: Deployment) -> dict[str, Any]:
    """The record of the run, once it is there."""
    made.wait(made.run_folder("first").record.exists, "the run has ended", patience_s=700)
    return made.record("first")


def digest(made: Deployment, name: str = "first") -> str:
    return state_digest(made.final_model(name))


def alone(folder: Path, text: str, made: Deployment) -> Run:
    """The same run on one machine, where nothing fails."""
    return run_federation(folder / "alone", text, made.sites)


def run_log(made: Deployment, name: str = "first") -> str:
    return made.run_folder(name).log.read_text(encoding="utf-8")


def gateway_log(made: Deployment) -> str:
    return (made.federation.logs / "gateway.log").read_text(encoding="utf-8")


def trains(made: Deployment, site: str, round: int) -> Callable[[], bool]:
    """Whether a site has received the task of a round and computes for it."""

    def does() -> bool:
        _, found, told = flower_log(made, site).rpartition(f"ROUND {round}]")
        received = bool(found) and "Received successfully" in told and "Sending" not in told
        return received and made.process_of(site, "flwr-clientapp") is not None

    return does


def flower_log(made: Deployment, site: str) -> str:
    path = made.sites[site].parent / "federation" / "flower.log"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def rounds(made: Deployment, name: str = "first") -> list[dict[str, Any]]:
    return Run(made.run_folder(name)).rounds


@pytest.mark.parametrize("cut_s", [CUT_S])
def test_site_whose_network_is_cut_while_it_trains_loses_nothing(tmp_path: Path, cut_s: float) -> None:
    text = study()
    with behind_proxies(tmp_path / "cut", "a", "b", text=text, direct=("b",)) as (made, proxies):
        made.begin_run("first")
        made.wait(trains(made, "a", 1), "a trains")
        proxies["a"].cut()
        time.sleep(cut_s)
        proxies["a"].mend()
        record = end_of(made)

        assert record["outcome"] == "COMPLETE"
        assert digest(made) == state_digest(alone(tmp_path, text, made).model("final"))
        told = made.log("a")
        assert "the connection to the coordinator is lost (timeout); trying again all the time" in told
        assert re.search(r"connected again after \d+ s", told)
        assert len(re.findall("round 1 of 2: trained", told)) == 1, "its work was not lost"
        assert "Traceback" not in told
        assert re.search(r"a not heard of for \d+ s", gateway_log(made))


def test_certificate_that_ends_during_a_run_and_is_renewed_costs_nothing(tmp_path: Path) -> None:
    text = study()
    with behind_proxies(tmp_path / "expiry", "a", "b", text=text) as (made, proxies):
        made.begin_run("first")
        made.wait(trains(made, "a", 1), "a trains")
        _write_certificate(made, timedelta(seconds=15))
        made.wait(lambda: gateway_log(made).count("certificate valid until") == 2, "the gateway has it")
        made.wait(lambda: "the certificate has ended on" in gateway_log(made), "the gateway says that it has ended")
        for proxy in proxies.values():
            proxy.end_connections()  # those of before would go on for as long as they last
        for site in proxies:
            lost = "the connection to the coordinator is lost (certificate: certificate has expired)"
            made.wait(lambda site=site, lost=lost: lost in made.log(site), f"{site} says why")  # type: ignore[misc]
        assert "expired, no site can connect; `gliorn-server certs renew`" in made.server("status")
        made.server("certs", "renew")
        record = end_of(made)

        assert record["outcome"] == "COMPLETE"
        assert digest(made) == state_digest(alone(tmp_path, text, made).model("final"))
        for site in proxies:
            assert "connected again after" in made.log(site)
            assert made.log(site).count("round 1 of 2: trained") == 1, "its work was not lost"
            assert "Traceback" not in made.log(site)


def _write_certificate(made: Deployment, lifetime: timedelta) -> None:
    folder, now = made.federation, datetime.now(UTC)
    certificate, key = make_server_certificate(
        signing_authority(folder), hosts=list(folder.read_config().hosts), now=now, lifetime=lifetime
    )
    write_all_private({folder.certificate_key: key, folder.certificate: certificate})


@pytest.mark.parametrize("seed", [0])
def test_uploads_that_are_cut_anywhere_arrive_all_the_same(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    text = study()
    with behind_proxies(tmp_path / "uploads", "a", "b", text=text, direct=("b",)) as (made, proxies):
        proxy = proxies["a"]
        made.begin_run("first")
        planned = 0
        for round in (1, 2):
            made.wait(trains(made, "a", round), f"a trains in round {round}")
            kinds: list[Cut] = ["close", "reset", "close", "silence"]
            rng.shuffle(kinds)
            for how in kinds:
                proxy.plan_cut(rng.choice([rng.randint(1, 8_000), rng.randint(8_000, 200_000)]), how)
            planned += len(kinds)
            done = f"round {round} of 2: trained"
            made.wait(lambda done=done: done in made.log("a"), f"a has sent its reply to round {round}")  # type: ignore[misc]
        record = end_of(made)

        assert proxy.cuts == planned
        assert record["outcome"] == "COMPLETE"
        assert digest(made) == state_digest(alone(tmp_path, text, made).model("final"))
        told = made.log("a")
        assert all(len(re.findall(rf"round {round} of 2: trained .*; sent .* [kM]B", told)) == 1 for round in (1, 2))
        assert "Traceback" not in told


def test_site_behind_an_http_proxy_keeps_its_bandwidth(tmp_path: Path) -> None:
    text, name, mbit = study(), "coordinator.invalid", 0.8  # a name that the proxy alone can resolve
    with deployment(tmp_path / "proxied", "a", "b", study=text) as made:
        config, port = made.federation.config, made.federation.read_config().port
        config.write_text(config.read_text().replace('["localhost"]', f'["localhost", "{name}"]'))
        assert made.federation.read_config().hosts[-1] == name
        made.server("certs", "renew")
        site = made.sites["a"]
        there = f'address: "{name}:{port}"\n  max_bandwidth_mbit: {mbit}'
        site.write_text(re.sub(r'address: "localhost:\d+"', there, site.read_text()))
        with ConnectProxy(names={f"{name}:{port}": port}) as proxy:
            named = {"HTTPS_PROXY": f"http://{HOST}:{proxy.port}"}
            made.start_server()
            made.join("a", environment={"NO_PROXY": "", "no_proxy": "", **named})
            made.join("b")
            made.begin_run("first")
            record = end_of(made)

        assert record["outcome"] == "COMPLETE"
        assert digest(made) == state_digest(alone(tmp_path, text, made).model("final"))
        assert set(proxy.asked) == {f"CONNECT {name}:{port}"}
        sent = sum(int(float(kb) * 1000) for kb in re.findall(r"trained .*sent ([\d.]+) kB", made.log("a")))
        assert proxy.num_bytes("up") > sent > 2 * 100_000, "all that the site sent went through the proxy"
        for begin, num_bytes in _windows(proxy.samples, 8.0):
            assert num_bytes <= 1.15 * (mbit * 1e6 / 8 * 8.0) + LARGEST_BLOCKS, f"at {begin:.1f} s"


LARGEST_BLOCKS = 700_000
"""Bytes of the two largest arrays of the tiny model: blocks are let through whole, two at a time."""


def _windows(samples: list[Sample], width_s: float) -> Iterator[tuple[float, int]]:
    """Bytes in both directions in each stretch of time that begins with a sample."""
    for first in samples:
        inside = (each.num_bytes for each in samples if first.at <= each.at < first.at + width_s)
        yield first.at - samples[0].at, sum(inside)


class MissingSite(FaultyClientApp):
    """The real ClientApp, but one site gives no answer in some rounds."""

    def __init__(self, site: str, *rounds: int) -> None:
        super().__init__(site, self._fail)
        self._rounds = {str(round) for round in rounds}

    def _fail(self, message: Message, answer: Answer) -> Message:
        if message.metadata.group_id in self._rounds:
            return Message(Error(code=2, reason="away"), reply_to=message)
        return answer()


def test_site_too_slow_for_a_round_is_named_and_in_the_next_one(tmp_path: Path) -> None:
    text = study(round_timeout_s=150)
    with behind_proxies(tmp_path / "slow", "a", "b", "c", text=text, direct=("b", "c")) as (made, proxies):
        made.begin_run("first")
        made.wait(trains(made, "a", 1), "a trains")
        proxies["a"].throttle(2_000)
        made.wait(lambda: made.run_folder("first").rounds.exists() and len(rounds(made)) == 1, "round 1 has ended")
        proxies["a"].throttle(None)
        record = end_of(made)

        assert record["outcome"] == "DEGRADED"
        first, second = rounds(made)
        assert {name: site["status"] for name, site in first["sites"].items()} == {
            "a": "failed",
            "b": "accepted",
            "c": "accepted",
        }
        assert second["sites"]["a"]["status"] == "accepted"
        assert any(problem.startswith("a was not in round 1: ") for problem in record["problems"])
        assert re.search(r"round 1, a: failed: .*deadline", run_log(made))
        expected = run_federation(tmp_path / "alone", text, made.sites, app=MissingSite("a", 1))
        assert digest(made) == state_digest(expected.model("final"))


def test_site_whose_key_is_revoked_is_out_at_once(tmp_path: Path) -> None:
    text = study()
    with behind_proxies(tmp_path / "revoked", "a", "b", "c", text=text, direct=("a", "b", "c")) as (made, _):
        made.begin_run("first")
        made.wait(trains(made, "a", 1), "a trains")
        made.server("sites", "revoke", "a")
        made.wait(lambda: "has revoked this site's key" in made.log("a"), "a is told why")
        record = end_of(made)

        assert record["outcome"] == "DEGRADED"
        assert any(problem.startswith("a was not in round") for problem in record["problems"]), record["problems"]
        assert [entry["sites"]["a"]["status"] == "accepted" for entry in rounds(made)] == [False, False]
        assert "no longer registered with the federation" in run_log(made)
        assert re.search(r"refused a at \S+: its key is revoked", gateway_log(made))
        assert re.search(r"\na +revoked", made.server("status"))
        assert "Traceback" not in made.log("a")
        expected = run_federation(tmp_path / "alone", text, made.sites, app=MissingSite("a", 1, 2))
        assert digest(made) == state_digest(expected.model("final"))


def test_site_takes_part_once_misses_a_round_and_is_in_the_next(tmp_path: Path) -> None:
    """The rounds wait for a, whose upload is held up while c comes or goes."""
    text = study(rounds=4, join_timeout_s=1)
    with ExitStack() as stack:
        proxy = TcpProxy()
        made = stack.enter_context(
            deployment(tmp_path / "once", "a", "b", "c", study=text, reached_at={"a": proxy.port})
        )
        proxy.target = made.federation.read_config().port
        stack.enter_context(proxy)
        made.start_server()
        made.join("a", "b")
        made.wait(lambda: all("connected to" in made.log(site) for site in "ab"), "a and b are connected")
        made.begin_run("first")

        def during_round(round: int, what: Callable[[], bool], does: str) -> None:
            made.wait(trains(made, "a", round), f"a trains in round {round}")
            proxy.throttle(2_000)
            made.wait(what, does)
            proxy.throttle(None)

        made.wait(trains(made, "a", 1), "a trains in round 1")
        made.join("c", arguments=("--once",))
        during_round(1, lambda: "connected to" in made.log("c"), "c has come")
        during_round(2, lambda: made.processes["c"].poll() is not None, "c has left")
        made.wait(lambda: len(rounds(made)) >= 3, "round 3 has ended")
        made.join("c")
        during_round(4, lambda: made.log("c").count("connected to") == 2, "c has come again")
        record = end_of(made)

        assert "round 2 of 4: trained" in made.log("c")
        assert "left the federation" in made.log("c")
        assert [entry["sites"]["c"]["status"] for entry in rounds(made)] == ["absent", "accepted", "failed", "accepted"]
        assert record["outcome"] == "DEGRADED"
        assert "c was not in round 1: absent: never connected" in record["problems"]
        assert "c was not in round 3: failed: not connected" in record["problems"]
        expected = run_federation(tmp_path / "alone", text, made.sites, app=MissingSite("c", 1, 3))
        assert digest(made) == state_digest(expected.model("final"))


def test_outsiders_and_replayed_replies_change_nothing(tmp_path: Path) -> None:
    text = study()
    with ExitStack() as stack:
        tap = Eavesdropper()
        made = stack.enter_context(deployment(tmp_path / "outside", "a", "b", study=text, reached_at={"a": tap.port}))
        folder = made.federation
        tap.target = folder.read_config().port
        tap.key, tap.certificate, tap.authority = folder.certificate_key, folder.certificate, folder.authorities
        stack.enter_context(tap)
        made.start_server()
        made.join()
        made.begin_run("first")
        made.wait(trains(made, "a", 1), "a trains")
        _come_from_outside(tap.target, random.Random(5))
        done = "round 1 of 2: trained"
        made.wait(lambda: done in made.log("a"), "a has replied")
        said = [(path, request) for path, request in tap.requests if path in PUSHES]
        answers = [(path, tap.say_again(request)) for path, request in said * 2]
        record = end_of(made)

        assert sum(path.endswith("push-messages") for path, _ in said) >= 2
        assert {status for _, status in answers} <= {200, 403, 503}, answers
        assert record["outcome"] == "COMPLETE"
        assert digest(made) == state_digest(alone(tmp_path, text, made).model("final"))
        assert len(rounds(made)) == 2
        assert made.run_folder("first").log.read_text().count("a: accepted") == 2
        assert "no site's signature" in gateway_log(made)


PUSHES = {"/v1/fleet/push-messages", "/v1/fleet/push-object"}


def _come_from_outside(port: int, rng: random.Random) -> None:
    """A port scan, plain HTTP, a client of another authority, and one without a key."""
    idle = [socket.create_connection((HOST, port), timeout=10) for _ in range(20)]
    for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01" + rng.randbytes(200), rng.randbytes(5_000), b"\n" * 99):
        with socket.create_connection((HOST, port), timeout=10) as scan, suppress(OSError):
            scan.sendall(garbage)
            scan.recv(1000)
    foreign = ssl.create_default_context()
    with socket.create_connection((HOST, port), timeout=10) as plain, pytest.raises(ssl.SSLCertVerificationError):
        foreign.wrap_socket(plain, server_hostname="localhost")
    with httpx.Client(base_url=f"https://localhost:{port}", verify=False, trust_env=False) as client:
        for path in (*PUSHES, "/v1/fleet/pull-messages"):
            assert client.post(path, content=rng.randbytes(900)).status_code == 401
        assert client.post("/v1/control/start-run").status_code == 404
    for connection in idle:
        connection.close()
