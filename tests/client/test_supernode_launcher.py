"""The process of the SuperNode: real ones, against a coordinator over real TLS that answers as each test wants."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeResponse, DeactivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

from client.bandwidth import BandwidthLimit
from client.coordinator import site_key
from client.events import EXIT_DEAF, EXIT_HEARTBEAT, Event, EventReader, EventWriter
from client.flower_private import (
    HEARTBEAT,
    PULL_MESSAGES,
    PULL_OBJECT,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    deactivate_node,
)
from client.kit import Kit
from client.processes import ProcessLock
from client.supernode import Watch, follow_tasks, reason_of
from server.provisioning import make_certificate_authority, make_server_certificate, make_site_key_pair

NOW = datetime.now(UTC)
AUTHORITY = make_certificate_authority("one", now=NOW - timedelta(days=2), lifetime=timedelta(days=9))
GOOD = {
    "activate-node": ActivateNodeResponse(node_id=7).SerializeToString(),
    "deactivate-node": DeactivateNodeResponse().SerializeToString(),
    "pull-messages": PullMessagesResponse().SerializeToString(),
    "send-node-heartbeat": SendNodeHeartbeatResponse(success=True).SerializeToString(),
}


@dataclass
class Coordinator:
    """Answers the calls of a SuperNode; `statuses` are answered in place of the good answer."""

    port: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


@contextmanager
def coordinator(folder: Path, *, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Iterator[Coordinator]:
    state = Coordinator()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            call = self.path.rpartition("/")[2]
            state.calls.append(call)
            status = state.statuses.get(call, 200)
            body = GOOD[call] if status == 200 else b""
            self.send_response(status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    certificate, key = make_server_certificate(AUTHORITY, hosts=list(hosts), now=NOW, lifetime=timedelta(days=5))
    (folder / "server.crt").write_bytes(certificate)
    (folder / "server.key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # refused handshakes
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_kit(folder: Path, port: int) -> Kit:
    pair = make_site_key_pair()
    (folder / "site.key").write_bytes(pair.private_key)
    (folder / "ca.crt").write_bytes(AUTHORITY.certificate)
    return Kit(f"127.0.0.1:{port}", folder / "ca.crt", folder / "site.key", None, None)


@dataclass
class Launched:
    """A launcher that runs, and what it told."""

    process: "subprocess.Popen[bytes]"
    reader: EventReader
    events: list[Event] = field(default_factory=list)

    def wait_for(self, name: str) -> Event:
        """The first event of that name; one that came before counts."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            self.events += self.reader.new_events()
            found = [event for event in self.events if event.name == name]
            if found:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no event {name!r} but {self.events}")

    def ended(self) -> int:
        """The exit status of a launcher that ends by itself."""
        status = self.process.wait(timeout=60)
        self.events += self.reader.new_events()
        return status


@contextmanager
def launched(kit: Kit, folder: Path, *options: str) -> Iterator[Launched]:
    reading, writing = os.pipe()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ) | {
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [
        *(sys.executable, "-P", "-m", "client.supernode", "--parent", str(os.getpid()), "--events", str(writing)),
        *options,
        *("--", "--superlink", kit.address, "--root-certificates", str(kit.ca_certificate)),
        *("--auth-supernode-private-key", str(kit.private_key), "--port", str(port), "--isolation", "process"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, pass_fds=(writing,), stdout=log, stderr=log)
    os.close(writing)
    reader = EventReader(reading)
    try:
        yield Launched(process, reader)
    finally:
        process.kill()
        process.wait()
        reader.close()


def test_connection_is_told_and_leave_is_taken_when_idle(tmp_path: Path) -> None:
    with coordinator(tmp_path) as state, launched(make_kit(tmp_path, state.port), tmp_path) as node:
        connected = node.wait_for("connected")
        node.process.send_signal(signal.SIGUSR1)
        status = node.ended()

    assert (connected.node, status) == (7, 0)
    assert state.calls[-1] == "deactivate-node"


@pytest.mark.parametrize(
    ("call", "status", "expected"),
    [
        pytest.param("pull-messages", 500, EXIT_DEAF, id="500 to a pull"),
        pytest.param("pull-messages", 404, EXIT_DEAF, id="404 to a pull"),
        pytest.param("send-node-heartbeat", 500, EXIT_HEARTBEAT, id="500 to a heartbeat"),
        pytest.param("pull-messages", 401, 0, id="401, after which Flower ends as if all were well"),
    ],
)
def test_supernode_that_no_longer_listens_ends(tmp_path: Path, call: str, status: int, expected: int) -> None:
    with coordinator(tmp_path) as state:
        state.statuses[call] = status
        with launched(make_kit(tmp_path, state.port), tmp_path) as node:
            ended = node.ended()

    refused = [event for event in node.events if event.name == "refused"]
    assert ended == expected
    assert refused[0].status == status


def test_loss_and_return_of_the_coordinator_are_told(tmp_path: Path) -> None:
    with coordinator(tmp_path) as state:
        state.statuses["pull-messages"] = 503
        with launched(make_kit(tmp_path, state.port), tmp_path) as node:
            lost = node.wait_for("lost")
            state.statuses.clear()
            node.wait_for("regained")

    assert lost.reason == "status 503"


def test_node_of_a_process_that_was_killed_can_be_freed(tmp_path: Path) -> None:
    with coordinator(tmp_path) as state:
        kit = make_kit(tmp_path, state.port)

        deactivate_node(kit.address, kit.ca_certificate, site_key(kit), 7)

    assert state.calls == ["deactivate-node"]


def failure_of(act: Callable[[], object]) -> httpx.TransportError:
    with pytest.raises(httpx.TransportError) as caught:
        act()
    return caught.value


def test_reasons_of_real_failures_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with coordinator(tmp_path) as state:
        foreign = failure_of(lambda: httpx.get(f"https://127.0.0.1:{state.port}", trust_env=False))
    refused = failure_of(lambda: httpx.get(f"https://127.0.0.1:{port}", trust_env=False))
    unknown = failure_of(lambda: httpx.get("https://no-such-host.invalid", trust_env=False))

    assert reason_of(foreign).startswith("certificate: ")
    assert (reason_of(refused), reason_of(unknown)) == ("refused", "dns")
    assert reason_of(httpx.ReadTimeout("late")) == "timeout"
    assert reason_of(httpx.RemoteProtocolError("cut")) == "broken"
    assert reason_of(httpx.ProxyError("407")) == "proxy"


class Waits(BandwidthLimit):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.sent: list[int] = []
        self.received: list[int] = []

    def wait_for(self, num_bytes: int) -> None:
        self.sent.append(num_bytes)

    def account(self, num_bytes: int) -> None:
        self.received.append(num_bytes)


def watched(limit: BandwidthLimit | None = None) -> tuple[Watch, EventReader]:
    reading, writing = os.pipe()
    return Watch(EventWriter(writing), limit), EventReader(reading)


def test_each_reason_of_an_outage_is_told_once() -> None:
    watch, reader = watched()

    for error in (httpx.ReadError("cut"), httpx.ConnectTimeout("late"), httpx.ReadError("cut")):
        watch.failed(PULL_MESSAGES, error)
    watch.answered(HEARTBEAT, 200, b"")
    watch.failed(PULL_MESSAGES, httpx.ReadError("cut"))

    told = [(event.name, event.reason) for event in reader.new_events()]
    assert told == [("lost", "broken"), ("lost", "timeout"), ("regained", ""), ("lost", "broken")]
    reader.close()


def test_bandwidth_counts_all_calls_but_heartbeats() -> None:
    limit = Waits()
    watch, reader = watched(limit)

    for call in (HEARTBEAT, PULL_MESSAGES, PUSH_OBJECT):
        watch.before(call, 10)
        watch.answered(call, 200, b"xyz" if call != PULL_MESSAGES else b"")

    assert (limit.sent, limit.received) == ([10, 10], [0, 3])
    reader.close()


@pytest.mark.parametrize(("status", "complete"), [(200, True), (413, False), (403, False)])
def test_answer_counts_as_sent_once_the_next_task_is_asked_for(status: int, complete: bool) -> None:
    watch, reader = watched()
    for call, num_bytes, answer in ((PUSH_MESSAGES, 100, 200), (PUSH_OBJECT, 5000, status), (PUSH_OBJECT, 7, 200)):
        watch.before(call, num_bytes)
        watch.answered(call, answer, b"")
    early = [event for event in reader.new_events() if event.name == "sent"]
    watch.before(PULL_MESSAGES, 0)
    late = [event for event in reader.new_events() if event.name == "sent"]

    assert early == []
    assert late == [Event("sent", num_bytes=5107, complete=complete)]
    reader.close()


class Tasks:
    """Tasks of a SuperNode, each with whether it was begun."""

    def __init__(self, tasks: dict[int, bool]) -> None:
        self.tasks = tasks
        self.given_up: list[int] = []

    def running(self) -> dict[int, bool]:
        return dict(self.tasks)

    def give_up(self, task_id: int) -> None:
        self.given_up.append(task_id)
        del self.tasks[task_id]


def test_task_of_a_clientapp_that_was_killed_is_given_up_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    text = f"""
from pathlib import Path
from client.processes import ProcessLock
lock = ProcessLock(Path({str(path)!r})); print(lock.take(), flush=True); input()"""
    tasks = Tasks({1: True, 2: False})
    reading, writing = os.pipe()
    reader, told = EventReader(reading), []
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as app:
        assert app.stdout is not None
        app.stdout.readline()
        follow = threading.Thread(
            target=follow_tasks,
            args=(tasks, ProcessLock(path), EventWriter(writing)),
            kwargs={"look_s": 0.02},
            daemon=True,
        )
        del tasks.tasks[2]
        follow.start()
        time.sleep(0.5)
        alive = list(tasks.given_up)
        app.kill()
        app.wait()
        end = time.monotonic() + 20
        while not tasks.given_up and time.monotonic() < end:
            time.sleep(0.02)
    told = list(reader.new_events())
    tasks.tasks[3] = False  # handed out, and its ClientApp has not begun
    time.sleep(0.2)

    assert alive == []
    assert tasks.given_up == [1]
    assert told == [Event("crashed")]
    reader.close()


@pytest.mark.parametrize(("call", "leaves"), [(PULL_OBJECT, True), (PUSH_OBJECT, False)])
def test_run_that_ends_while_its_message_arrives_has_the_supernode_begin_anew(
    call: str, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[signal.Signals] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    watch, reader = watched()

    watch.answered(call, 403, b"")

    assert raised == ([signal.SIGTERM] if leaves else [])
    assert list(reader.new_events()) == []
    reader.close()
