import asyncio
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvicorn
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from starlette.responses import Response
from starlette.types import Message as AsgiMessage

from common.errors import ConfigError, ProtocolError
from common.hello import MAX_STUDY_TEXT
from common.study import Study, parse_study
from server import flower_private
from server.federation_folder import AdmittedSite
from server.gateway import limits, listener
from server.gateway.access_log import AccessLog
from server.gateway.admission import Admission, FloodError, RefusedError, Register
from server.gateway.attendance import Attendance
from server.gateway.certificate import GatewayCertificate
from server.gateway.deliveries import Deliveries
from server.gateway.hello import StudiesOnOffer
from server.gateway.limits import (
    BodyTooLargeError,
    BodyTooSlowError,
    Memory,
    NoMemoryError,
    Places,
    TokenBuckets,
    network_of,
    read_body,
)
from server.gateway.listener import GatewayProtocol, listen
from server.provisioning import make_server_certificate
from server.sightings import Sighting, read_sightings, write_sightings
from tests.gateway_federation import HOST, make_federation, wait_until
from tests.tiny_hospitals import study_text

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def __call__(self) -> float:
        return self.elapsed_s


# --- limits -----------------------------------------------------------------------------------------------------------


def test_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    clock = Clock()
    buckets = TokenBuckets(per_s=0.5, burst=3.0, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b")

    clock.elapsed_s = 2.0
    assert [buckets.take("a") for _ in range(2)] == [True, False]

    clock.elapsed_s = 1000.0
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]


def test_buckets_of_many_names_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MOST_BUCKETS", 10)
    buckets = TokenBuckets(per_s=0.0, burst=1.0, clock=Clock())
    for number in range(100):
        assert buckets.take(str(number))

    assert len(buckets._buckets) == 10
    assert not buckets.take("99")


def test_places_are_counted_in_all_and_by_name() -> None:
    places = Places(most=3, most_per_name=2)
    assert [places.take(name) for name in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]

    places.give_back("a")
    assert places.take("c")


def test_strangers_get_no_reserved_place_and_known_names_do() -> None:
    places = Places(most=4, most_per_name=3, reserved=2, known=lambda name: name == "site")
    assert [places.take(name) for name in ("a", "b", "c", "site", "site", "site")] == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]

    places.give_back("site")
    assert not places.take("c")
    places.give_back("a")
    assert not places.take("c")
    places.give_back("b")
    assert places.take("c")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_all_addresses_of_one_machine_count_as_one(address: str, network: str) -> None:
    assert network_of(address) == network


def test_stranger_with_many_ipv6_addresses_is_told_no_more_reasons_than_one(tmp_path: Path) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    folder.write_register([])
    admission = Admission(Register(folder), TokenBuckets(per_s=0.0, burst=2.0, clock=Clock()).take)
    refusals = []
    for number in range(4):
        with pytest.raises((RefusedError, FloodError)) as refusal:
            admission.site_of([], address=f"2001:db8::{number}", now=NOW)
        refusals.append(refusal.type)

    assert refusals == [RefusedError, RefusedError, FloodError, FloodError]


def test_memory_is_given_back() -> None:
    memory = Memory(most=10)
    with memory.lease() as take:
        assert take(10)
        assert not take(1)

    assert memory.taken == 0


def _body(pieces: list[bytes], *, most: int = 10, memory: int = 100) -> bytes:
    messages: list[AsgiMessage] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> AsgiMessage:
        return messages.pop(0)

    with Memory(most=memory).lease() as take:
        return asyncio.run(read_body(receive, most=most, take=take))


def test_body_is_read_to_its_end() -> None:
    assert _body([b"ab", b"", b"c"]) == b"abc"
    assert _body([b"0123456789"]) == b"0123456789"


def test_body_larger_than_allowed_is_refused() -> None:
    with pytest.raises(BodyTooLargeError, match="more than 10 bytes"):
        _body([b"0123456789", b"x"])
    with pytest.raises(BodyTooLargeError):
        _body([b"0123456789"] * 1000)


def test_body_is_refused_where_there_is_no_memory_for_it() -> None:
    with pytest.raises(NoMemoryError):
        _body([b"abc", b"def"], memory=5)


def test_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_PAUSE_S", 0.01)

    async def silence() -> AsgiMessage:
        await asyncio.sleep(60)
        raise AssertionError

    with pytest.raises(BodyTooSlowError):
        asyncio.run(read_body(silence, most=10, take=lambda _: True))


def test_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_TIMEOUT_S", 0.05)

    async def trickle() -> AsgiMessage:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"", "more_body": True}

    with pytest.raises(BodyTooSlowError):
        asyncio.run(read_body(trickle, most=10, take=lambda _: True))


def test_body_whose_sender_went_away_is_no_body() -> None:
    async def gone() -> AsgiMessage:
        return {"type": "http.disconnect"}

    with pytest.raises(BodyTooSlowError, match="went away"):
        asyncio.run(read_body(gone, most=10, take=lambda _: True))


# --- connections ------------------------------------------------------------------------------------------------------


@contextmanager
def _listening(*, most_per_address: int = 10) -> Iterator[int]:
    """The gateway's listener and protocol, without TLS, before an application that always says yes."""

    async def app(scope: object, receive: object, send: object) -> None:
        await Response(b"yes")(scope, receive, send)  # type: ignore[arg-type]

    listening = listen(HOST, 0, known=lambda _: False)
    listening.places = Places(100, most_per_address)
    server = uvicorn.Server(uvicorn.Config(app, http=GatewayProtocol, ws="none", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def _ask(connection: socket.socket) -> bytes:
    connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    return connection.recv(1000)


def _connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=60)


def _is_hung_up_on(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except ConnectionError:
        return True


def test_address_gets_no_more_than_its_connections() -> None:
    with _listening(most_per_address=2) as port, _connect(port) as first, _connect(port) as second:
        assert b"yes" in _ask(first)
        assert b"yes" in _ask(second)
        with _connect(port) as third:
            assert _is_hung_up_on(third)
        first.close()

        def has_room() -> bool:
            with _connect(port) as fourth:
                try:
                    return b"yes" in _ask(fourth)
                except ConnectionError:
                    return False

        wait_until(has_room)


def test_connection_on_which_no_request_comes_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEADER_TIMEOUT_S", 0.1)
    with _listening() as port, _connect(port) as silent, _connect(port) as slow, _connect(port) as again:
        slow.sendall(b"POST /v1/fl")
        assert b"yes" in _ask(again)
        again.sendall(b"POST /v1/fl")

        assert all(_is_hung_up_on(connection) for connection in (silent, slow, again))


def test_port_in_use_is_said_to_be(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1 port .*take another `port`"):
            listen(HOST, taken.getsockname()[1], known=lambda _: False)


def test_address_of_another_machine_is_said_to_be_none_of_this_one() -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("192.0.2.1", 0, known=lambda _: False)
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("no such name.invalid", 0, known=lambda _: False)


# --- certificate ------------------------------------------------------------------------------------------------------


def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    context = GatewayCertificate(folder.certificate, folder.certificate_key).context

    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_key_that_is_written_before_its_certificate_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = make_federation(tmp_path / "one")
    other, _ = make_federation(tmp_path / "two")
    certificate = GatewayCertificate(folder.certificate, folder.certificate_key)

    folder.certificate_key.write_bytes(other.certificate_key.read_bytes())
    certificate.refresh()
    folder.certificate.write_bytes(other.certificate.read_bytes())
    with caplog.at_level(logging.INFO):
        certificate.refresh()
        certificate.refresh()

    assert "cannot be used" not in caplog.text
    assert "certificate valid until" in caplog.text


def test_end_of_the_certificate_is_told_when_it_comes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, authority = make_federation(tmp_path / "federation")
    certificate, key = make_server_certificate(
        authority, hosts=["localhost"], now=datetime.now(UTC), lifetime=timedelta(seconds=1)
    )
    folder.certificate_key.write_bytes(key)
    folder.certificate.write_bytes(certificate)
    serving = GatewayCertificate(folder.certificate, folder.certificate_key)
    assert "has ended" not in caplog.text

    time.sleep(1.1)
    serving.refresh()
    serving.refresh()

    assert caplog.text.count("the certificate has ended on") == 1


# --- log and sightings ------------------------------------------------------------------------------------------------


def test_flood_of_refusals_is_counted_in_the_log_and_not_listed(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = AccessLog(clock)
    with caplog.at_level(logging.INFO, logger="server.gateway"):
        for _ in range(1000):
            log.refused("no site's signature", address="192.0.2.7")
        assert len(caplog.records) == 10
        clock.elapsed_s = 60.0
        log.refused("its key is revoked", address="192.0.2.8", site="site-a", fingerprint="SHA256:x")

    expected = "refused site-a at 192.0.2.8: its key is revoked, key SHA256:x (990 more refusals went unsaid)"
    assert caplog.records[-1].getMessage() == expected


def test_site_that_falls_silent_is_missed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    attendance = Attendance(tmp_path / "s.json", AccessLog(clock), clock=clock, now=lambda: NOW)
    with caplog.at_level(logging.INFO, logger="server.gateway"):
        attendance.heard("site-a", address="192.0.2.7")
        clock.elapsed_s = 75.0
        attendance.look_around()
        clock.elapsed_s = 76.0
        attendance.look_around()
        attendance.look_around()
        attendance.heard("site-a", address="192.0.2.9")

    assert [record.getMessage() for record in caplog.records] == [
        "site-a connected from 192.0.2.7",
        "site-a not heard of for 76 s",
        "site-a connected from 192.0.2.9",
    ]


def test_speed_is_that_of_the_last_large_upload(tmp_path: Path) -> None:
    clock = Clock()
    attendance = Attendance(tmp_path / "s.json", AccessLog(clock), clock=clock, now=lambda: NOW)
    attendance.heard("site-a", address="192.0.2.7")
    attendance.transferred("site-a", received_bytes=1_000_000, received_in_s=4.0, sent_bytes=5)
    attendance.transferred("site-a", received_bytes=100, received_in_s=0.001, sent_bytes=5)
    attendance.write()

    expected = Sighting(
        last_seen=NOW.isoformat(timespec="milliseconds"),
        received_bytes=1_000_100,
        sent_bytes=10,
        upload_mbit=2.0,
        networks=("192.0.2.7",),
    )
    assert read_sightings(tmp_path / "s.json") == {"site-a": expected}


def test_what_was_seen_before_a_restart_is_kept_but_for_the_bytes(tmp_path: Path) -> None:
    before = Sighting(last_seen=(NOW - timedelta(days=1)).isoformat(), received_bytes=7, version="0.1")
    write_sightings(tmp_path / "s.json", {"site-a": before, "site-b": before})
    attendance = Attendance(tmp_path / "s.json", AccessLog(Clock()), clock=Clock(), now=lambda: NOW)
    attendance.greeted("site-a", address="192.0.2.7", version="0.2", authorities=("ab",))
    attendance.write()

    seen = read_sightings(tmp_path / "s.json")
    assert (seen["site-a"].version, seen["site-a"].received_bytes, seen["site-a"].authorities) == ("0.2", 0, ("ab",))
    assert (seen["site-b"].last_seen, seen["site-b"].version) == (before.last_seen, "0.1")


def test_address_of_a_site_is_known_for_a_day_and_over_a_restart(tmp_path: Path) -> None:
    now = NOW
    attendance = Attendance(tmp_path / "s.json", AccessLog(Clock()), clock=Clock(), now=lambda: NOW)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8:1:2::3", "192.0.2.4", "192.0.2.2", "192.0.2.5"):
        attendance.heard("site-a", address=address)
    attendance.write()
    again = Attendance(tmp_path / "s.json", AccessLog(Clock()), clock=Clock(), now=lambda: now)

    kept = ("192.0.2.5", "192.0.2.2", "192.0.2.4", "2001:db8:1:2::/64")
    assert read_sightings(tmp_path / "s.json")["site-a"].networks == kept
    assert all(again.knows(network) for network in kept)
    assert not again.knows("192.0.2.1")
    now = NOW + timedelta(days=1, seconds=1)
    assert not again.knows("192.0.2.5")


def test_study_is_read_again_only_when_its_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    for name in ("one", "two"):
        (folder.runs / name).mkdir()
        (folder.runs / name / "study.yaml").write_text(study_text(name=name))
    parsed: list[str] = []

    def counted(text: str, *, origin: str) -> Study:
        parsed.append(text)
        return parse_study(text, origin=origin)

    monkeypatch.setattr("server.gateway.hello.parse_study", counted)
    studies = StudiesOnOffer(folder)
    assert [[offer.name for offer in studies.now()] for _ in range(3)] == [["one", "two"]] * 3
    assert len(parsed) == 2

    (folder.runs / "two" / "study.yaml").write_text(study_text(name="second"))
    (folder.runs / "one" / "record.json").write_text("{}")
    assert [offer.name for offer in studies.now()] == ["second"]
    assert len(parsed) == 3


def test_study_too_long_to_offer_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    folder.study.write_text(study_text(name="one") + "#" * MAX_STUDY_TEXT)
    studies = StudiesOnOffer(folder)

    assert [studies.now(), studies.now()] == [[], []]
    assert caplog.text.count("no site is offered it") == 1


def test_sightings_with_a_forged_line_are_none(tmp_path: Path) -> None:
    write_sightings(tmp_path / "s.json", {"site-a": Sighting(last_seen=NOW.isoformat(), version="1\nsite-b connected")})

    assert read_sightings(tmp_path / "s.json") == {}


def test_damaged_sightings_are_none(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"site-a": {"last')

    assert read_sightings(tmp_path / "s.json") == {}


# --- deliveries -------------------------------------------------------------------------------------------------------

SITE = AdmittedSite(name="site-a", public_key="k", fingerprint="SHA256:a", admitted_at="")


def _answer(message: str) -> bytes:
    tree = ObjectTree(object_id=message, children=[ObjectTree(object_id=f"{message} child")])
    response = PullMessagesResponse(
        messages_list=[Message(metadata=Metadata(message_id=message))], message_object_trees=[tree]
    )
    return bytes(response.SerializeToString())


def test_message_is_handed_over_again_a_few_times_and_then_given_up(tmp_path: Path) -> None:
    deliveries = Deliveries(tmp_path / "deliveries")
    deliveries.add(SITE, _answer("m"))

    assert [deliveries.not_taken(SITE) for _ in range(4)] == [_answer("m")] * 3 + [None]


def test_last_messages_are_remembered_over_a_restart_and_older_ones_are_not(tmp_path: Path) -> None:
    deliveries = Deliveries(tmp_path / "deliveries")
    for number in range(10):
        deliveries.add(SITE, _answer(f"m{number}"))
    again = Deliveries(tmp_path / "deliveries")

    assert [again.include_message(SITE, f"m{number}") for number in (1, 2, 9)] == [False, True, True]
    assert again.include_object(SITE, "m9 child")
    assert not again.include_message(SITE, "m9 child")
    assert again.not_taken(SITE) is None


def test_answer_without_a_message_is_no_delivery(tmp_path: Path) -> None:
    deliveries = Deliveries(tmp_path / "deliveries")
    deliveries.add(SITE, b"")

    assert deliveries.not_taken(SITE) is None
    assert list((tmp_path / "deliveries").iterdir()) == []


def test_disk_that_is_full_keeps_no_message_from_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, payload: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.gateway.deliveries.write_atomically", full)
    deliveries = Deliveries(tmp_path / "deliveries")
    deliveries.add(SITE, _answer("m"))

    assert deliveries.include_message(SITE, "m")
    assert "No space left" in caplog.text


def test_private_names_of_flower_are_still_what_the_gateway_takes_them_for() -> None:
    delivery = flower_private.read_delivery(_answer("m"))

    assert delivery is not None
    assert delivery == flower_private.Delivery(frozenset({"m"}), frozenset({"m", "m child"}))
    with pytest.raises(ProtocolError, match=r"not a call of Flower 1\.41"):
        flower_private.read_delivery(b"\xff")
