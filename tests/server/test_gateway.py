"""The gateway as a process, before a SuperLink that answers what the test says."""

import asyncio
import json
import random
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.bundle import bundle_digest, installed_bundle
from common.hello import HELLO_PATH, HelloRefusal, HelloReply
from server.federation_folder import FederationFolder
from server.gateway.limits import FLEET, HELLOS_BURST, MAX_BODY, MAX_CALLS_PER_SITE
from server.provisioning import CertificateAuthority
from server.sightings import read_sightings
from tests.gateway_federation import (
    FEDERATION_ID,
    HOST,
    RunningGateway,
    SiteKey,
    free_port,
    make_federation,
    make_site_key,
    renew_certificate,
    running_gateway,
    wait_until,
    write_register,
)
from tests.tiny_hospitals import study_text

CALLS = sorted(path for path in MAX_BODY if path.startswith(FLEET))
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass
class FakeSuperLink:
    """Answers each call with what the test set, and remembers the last one."""

    port: int
    status: int = 200
    content: bytes = b""
    may_answer: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.calls.append((request.url.path, dict(request.headers), await request.body()))
        while not self.may_answer.is_set():
            await asyncio.sleep(0.01)
        answer = Response(self.content, self.status, headers={"server": "uvicorn", "x-inner": "secret"})
        await answer(scope, receive, send)


@dataclass
class Stage:
    gateway: RunningGateway
    superlink: FakeSuperLink
    folder: FederationFolder
    authority: CertificateAuthority
    a: SiteKey
    b: SiteKey
    revoked: SiteKey

    def call(self, name: str, body: bytes = b"", *, key: SiteKey | None = None) -> httpx.Response:
        with self.gateway.client() as client:
            return client.post(FLEET + name, content=body, headers=(key or self.a).headers())

    def hello(self, key: SiteKey | None, *, content: str | None = None, **changes: object) -> httpx.Response:
        values = {"site": "site-a", "federation_id": FEDERATION_ID, "version": "0.9", "bundle_digest": "0f" * 32}
        text = json.dumps(values | {"authorities": ["ab" * 32]} | changes) if content is None else content
        with self.gateway.client() as client:
            return client.post(HELLO_PATH, content=text, headers={} if key is None else key.headers())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("gateway")
    folder, authority = make_federation(home / "federation")
    a, b, revoked = (make_site_key(home, name) for name in ("site-a", "site-b", "site-r"))
    write_register(folder, [a, b, revoked], revoked=["site-r"])
    with _fake_superlink(folder) as superlink, running_gateway(folder, superlink_port=superlink.port) as gateway:
        yield Stage(gateway, superlink, folder, authority, a, b, revoked)


@pytest.fixture(autouse=True)
def _fresh(stage: Stage) -> Iterator[None]:
    stage.superlink.status, stage.superlink.content = 200, b""
    stage.superlink.calls.clear()
    stage.superlink.may_answer.set()
    yield
    write_register(stage.folder, [stage.a, stage.b, stage.revoked], revoked=["site-r"])


class _fake_superlink:  # noqa: N801
    def __init__(self, folder: FederationFolder, port: int | None = None) -> None:
        tls = folder.superlink / "tls"
        self.app = FakeSuperLink(free_port() if port is None else port)
        self.app.may_answer.set()
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                host=HOST,
                port=self.app.port,
                lifespan="off",
                log_config=None,
                ssl_certfile=tls / "server.crt",
                ssl_keyfile=tls / "server.key",
            )
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> FakeSuperLink:
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self.app

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


# --- what is not there ------------------------------------------------------------------------------------------------

HEAD = b"host: x\r\ncontent-length: 0\r\n"
DISGUISES = {
    "other call": b"POST /v1/fleet/register-node HTTP/1.1",
    "other call of the fleet": b"POST /v1/fleet/unregister-node HTTP/1.1",
    "control": b"POST /v1/control/list-nodes HTTP/1.1",
    "control starts a run": b"POST /v1/control/start-run HTTP/1.1",
    "runtime": b"POST /v1/runtime/acquire-task HTTP/1.1",
    "documentation": b"GET /docs HTTP/1.1",
    "interface": b"GET /openapi.json HTTP/1.1",
    "health": b"GET /health HTTP/1.1",
    "root": b"GET / HTTP/1.1",
    "slash at the end": b"POST /v1/fleet/pull-messages/ HTTP/1.1",
    "query": b"POST /v1/fleet/pull-messages?a=b HTTP/1.1",
    "double slash": b"POST //v1/fleet/pull-messages HTTP/1.1",
    "double slash within": b"POST /v1//fleet/pull-messages HTTP/1.1",
    "dots": b"POST /v1/fleet/../control/list-nodes HTTP/1.1",
    "dots to an allowed call": b"POST /v1/control/../fleet/pull-messages HTTP/1.1",
    "encoded dots": b"POST /v1/fleet/%2e%2e/control/list-nodes HTTP/1.1",
    "encoded slash": b"POST /v1/fleet%2fpull-messages HTTP/1.1",
    "encoded letter": b"POST /v1/fleet/%70ull-messages HTTP/1.1",
    "encoded twice": b"POST /v1/fleet/%252e%252e/control/list-nodes HTTP/1.1",
    "capitals": b"POST /V1/FLEET/pull-messages HTTP/1.1",
    "null": b"POST /v1/fleet/pull-messages%00 HTTP/1.1",
    "semicolon": b"POST /v1/fleet/pull-messages;a HTTP/1.1",
    "fragment": b"POST /v1/fleet/pull-messages#a HTTP/1.1",
    "backslash": b"POST /v1/fleet\\pull-messages HTTP/1.1",
    "whole address": b"POST https://127.0.0.1/v1/fleet/pull-messages HTTP/1.1",
    "get": b"GET /v1/fleet/pull-messages HTTP/1.1",
    "head": b"HEAD /v1/fleet/pull-messages HTTP/1.1",
    "options": b"OPTIONS /v1/fleet/pull-messages HTTP/1.1",
    "options of all": b"OPTIONS * HTTP/1.1",
    "trace": b"TRACE /v1/fleet/pull-messages HTTP/1.1",
    "put": b"PUT /v1/fleet/pull-messages HTTP/1.1",
    "connect": b"CONNECT 127.0.0.1:9093 HTTP/1.1",
    "small post": b"post /v1/fleet/pull-messages HTTP/1.1",
    "hello by get": b"GET /v1/gliorn/hello HTTP/1.1",
    "no http": b"\x16\x03\x01 nothing of the kind",
    "other protocol": b"SSH-2.0-OpenSSH_9.6",
    "http 9": b"POST /v1/fleet/pull-messages HTTP/9.9",
    "other letters": "POST /v1/flëet/pull-messages HTTP/1.1".encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("line", DISGUISES.values(), ids=DISGUISES.keys())
def test_what_is_no_call_is_not_there(stage: Stage, line: bytes) -> None:
    signed = b"".join(f"{name}: {value}\r\n".encode() for name, value in stage.a.headers().items())

    assert stage.gateway.raw(line + b"\r\n" + HEAD + signed + b"\r\n") == NOT_FOUND
    assert stage.superlink.calls == []


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.0"])
def test_connection_never_becomes_another_protocol(stage: Stage, upgrade: bytes) -> None:
    head = b"host: x\r\nconnection: upgrade\r\nupgrade: " + upgrade + b"\r\nsec-websocket-key: YQ==\r\n\r\n"

    assert stage.gateway.raw(b"GET /v1/fleet/pull-messages HTTP/1.1\r\n" + head) == NOT_FOUND
    assert stage.gateway.raw(b"POST /v1/fleet/pull-messages HTTP/1.1\r\ncontent-length: 0\r\n" + head) == NOT_FOUND


_PIECES = [
    "v1",
    "fleet",
    "pull-messages",
    "get-run",
    "control",
    "runtime",
    "..",
    ".",
    "",
    "%2e%2e",
    "%2F",
    "docs",
    "a?b",
]
_PATHS = st.one_of(
    st.lists(st.sampled_from(_PIECES), max_size=6).map(lambda parts: "/" + "/".join(parts)),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60).map(lambda text: "/" + text),
)
_METHODS = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "X"])


@settings(max_examples=150, deadline=None)
@given(method=_METHODS, path=_PATHS)
def test_every_other_path_and_method_is_not_there(stage: Stage, method: str, path: str) -> None:
    if method == "POST" and path.removesuffix("?") in MAX_BODY:
        return

    assert stage.gateway.raw(f"{method} {path} HTTP/1.1\r\n".encode() + HEAD + b"\r\n") == NOT_FOUND
    assert stage.superlink.calls == []


def test_headers_larger_than_a_site_s_are_not_read(stage: Stage) -> None:
    head = b"host: x\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"
    try:
        answer = stage.gateway.raw(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n" + head)
    except (ConnectionError, ssl.SSLError):
        answer = NOT_FOUND  # it was hung up on before all was sent

    assert answer in (NOT_FOUND, b"")


# --- what becomes of a site's call ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CALLS)
def test_call_of_an_admitted_site_reaches_the_superlink(stage: Stage, path: str) -> None:
    bodies = {
        "activate-node": ActivateNodeRequest(public_key=stage.a.pem).SerializeToString(),
        "push-messages": _reply().SerializeToString(),
        "push-object": PushObjectRequest(session_id="s", object_content=b"x" * 100_000).SerializeToString(),
    }
    name = path.removeprefix(FLEET)
    if name in ("pull-object", "confirm-message-received"):
        bodies[name] = _hand_over(stage, "e" * 64)[name]
    stage.superlink.content = b"" if name == "pull-messages" else b"\x08\x01"
    body = bodies.get(name, b"")

    answer = stage.call(name, body)

    assert (answer.status_code, answer.content) == (200, stage.superlink.content)
    called, headers, received = stage.superlink.calls[-1]
    assert (called, received) == (path, body)
    assert headers["content-type"] == "application/protobuf"
    assert "x-inner" not in answer.headers
    assert "server" not in answer.headers


def test_superlink_gets_the_signature_and_no_other_header_of_the_site(stage: Stage) -> None:
    headers = stage.a.headers() | {
        "cookie": "a=b",
        "authorization": "x",
        "flwr-task-token": "t",
        "x-forwarded-for": "1.2.3.4",
        "flwr-package-version": "1.41.0",
    }
    with stage.gateway.client() as client:
        client.post(FLEET + "pull-messages", headers=headers)

    received = stage.superlink.calls[-1][1]
    assert {name for name in received if name.startswith(("flwr", "x-", "cook", "auth"))} == {
        *("flwr-public-key", "flwr-timestamp", "flwr-signature", "flwr-package-version")
    }


STATUSES = {
    ("pull-messages", 500): 503,
    ("pull-messages", 404): 503,
    ("pull-messages", 429): 503,
    ("pull-messages", 400): 503,
    ("pull-messages", 413): 503,
    ("pull-messages", 302): 503,
    ("pull-messages", 502): 503,
    ("pull-messages", 503): 503,
    ("pull-messages", 401): 401,
    ("pull-messages", 403): 403,
    ("send-node-heartbeat", 403): 503,
    ("send-node-heartbeat", 500): 503,
    ("send-node-heartbeat", 401): 401,
    ("deactivate-node", 412): 503,
    ("get-run", 403): 403,
    ("get-run", 500): 503,
    ("activate-node", 412): 412,
    ("activate-node", 500): 503,
}


@pytest.mark.parametrize(("call", "status"), STATUSES.keys())
def test_no_status_that_leaves_a_supernode_deaf_comes_out(stage: Stage, call: str, status: int) -> None:
    stage.superlink.status = status
    body = ActivateNodeRequest(public_key=stage.a.pem).SerializeToString() if call == "activate-node" else b""

    assert stage.call(call, body).status_code == STATUSES[call, status]


def test_site_is_told_to_try_again_until_the_superlink_is_back(tmp_path: Path) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    a = make_site_key(tmp_path, "site-a")
    write_register(folder, [a])
    port = free_port()
    with running_gateway(folder, superlink_port=port) as gateway, gateway.client() as client:
        answer = client.post(FLEET + "pull-messages", headers=a.headers())

        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        gateway.wait_for_log("the SuperLink does not answer")

        with _fake_superlink(folder, port):
            assert client.post(FLEET + "pull-messages", headers=a.headers()).status_code == 200
        gateway.wait_for_log("the SuperLink answers again")


def test_site_with_more_calls_than_it_may_have_at_one_time_is_told_to_try_again(stage: Stage) -> None:
    stage.superlink.may_answer.clear()
    with ThreadPoolExecutor(MAX_CALLS_PER_SITE) as pool:
        waiting = [pool.submit(stage.call, "pull-messages") for _ in range(MAX_CALLS_PER_SITE)]
        wait_until(lambda: len(stage.superlink.calls) == MAX_CALLS_PER_SITE)

        assert stage.call("pull-messages").status_code == 503
        stage.superlink.may_answer.set()
        assert {each.result().status_code for each in waiting} == {200}
    assert stage.call("pull-messages").status_code == 200


def test_chunk_as_flower_makes_it_passes_and_a_larger_body_is_dropped_with_the_reason_in_the_log(stage: Stage) -> None:
    chunk = PushObjectRequest(session_id="s", object_content=random.Random(1).randbytes(5 * 2**20)).SerializeToString()
    assert stage.call("push-object", chunk, key=stage.b).status_code == 200
    assert stage.superlink.calls[-1][2] == chunk

    assert stage.call("push-object", b"a" * (17 * 2**20), key=stage.b).status_code == 403
    assert len(stage.superlink.calls) == 1
    stage.gateway.wait_for_log("push-object brought more than")


def test_description_of_thousands_of_arrays_passes(stage: Stage) -> None:
    request = _reply()
    for number in range(20_000):
        array = request.message_object_trees[0].children.add(object_id=f"{number:064x}")
        array.children.add(object_id=f"{number + 10**6:064x}")

    assert stage.call("push-messages", request.SerializeToString()).status_code == 200


def test_body_in_chunks_without_a_length_passes_as_one(stage: Stage) -> None:
    with stage.gateway.client() as client:
        pieces = iter([b"\x0a", b"\x00"])
        assert client.post(FLEET + "pull-messages", content=pieces, headers=stage.a.headers()).status_code == 200

    assert stage.superlink.calls[-1][2] == b"\x0a\x00"
    assert stage.superlink.calls[-1][1]["content-length"] == "2"


# --- whose call it is -------------------------------------------------------------------------------------------------


def _faults(stage: Stage) -> dict[str, tuple[dict[str, str], str]]:
    good = stage.a.headers()
    other = stage.b.headers()
    return {
        "nothing": ({}, "unsigned"),
        "no signature": ({k: v for k, v in good.items() if k != "flwr-signature"}, "unsigned"),
        "no key": (good | {"flwr-public-key": "%%%"}, "malformed"),
        "other key": (good | {"flwr-public-key": other["flwr-public-key"]}, "forged"),
        "other signature": (good | {"flwr-signature": other["flwr-signature"]}, "forged"),
        "recorded": (stage.a.headers(datetime.now(UTC) - timedelta(seconds=400)), "clock"),
        "from the future": (stage.a.headers(datetime.now(UTC) + timedelta(seconds=60)), "clock"),
        "unknown": (make_site_key(stage.folder.path, "unknown").headers(), "unknown-key"),
        "revoked": (stage.revoked.headers(), "revoked"),
    }


FAULTS = [
    *("nothing", "no signature", "no key", "other key", "other signature", "recorded", "from the future"),
    *("unknown", "revoked"),
]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage of its own: refusals use up what an address may ask."""
    home = tmp_path_factory.mktemp("strangers")
    folder, authority = make_federation(home / "federation")
    a, b, revoked = (make_site_key(home, name) for name in ("site-a", "site-b", "site-r"))
    write_register(folder, [a, b, revoked], revoked=["site-r"])
    with _fake_superlink(folder) as superlink, running_gateway(folder, superlink_port=superlink.port) as gateway:
        yield Stage(gateway, superlink, folder, authority, a, b, revoked)


@pytest.mark.parametrize("fault", FAULTS)
def test_request_of_nobody_who_is_admitted_is_refused_with_the_fault(strangers: Stage, fault: str) -> None:
    headers, expected = _faults(strangers)[fault]
    with strangers.gateway.client() as client:
        call = client.post(FLEET + "pull-messages", headers=headers)
        hello = client.post(HELLO_PATH, content="{}", headers=headers)

    assert (call.status_code, call.content) == (401, b"")
    assert hello.status_code == 401
    assert HelloRefusal.model_validate_json(hello.content).fault == expected
    assert strangers.superlink.calls == []


def test_signature_given_twice_is_refused(strangers: Stage) -> None:
    headers = [*strangers.a.headers().items(), ("flwr-public-key", strangers.b.headers()["flwr-public-key"])]
    with strangers.gateway.client() as client:
        assert client.post(FLEET + "pull-messages", headers=headers).status_code == 401

    assert strangers.superlink.calls == []


def test_flood_fills_no_log_and_keeps_no_site_out(strangers: Stage) -> None:
    with strangers.gateway.client() as client:
        statuses = [client.post(FLEET + "pull-messages").status_code for _ in range(200)]

        assert set(statuses) == {401, 404}
        assert statuses[-1] == 404
        assert client.post(FLEET + "pull-messages", headers=strangers.a.headers()).status_code == 200
    assert strangers.gateway.log.count("refused") < 30


def test_register_counts_as_it_is_now(stage: Stage) -> None:
    new = make_site_key(stage.folder.path, "site-n")
    assert stage.hello(new).status_code == 401

    write_register(stage.folder, [stage.a, new])
    assert stage.call("pull-messages", key=new).status_code == 200
    assert stage.call("pull-messages", key=stage.b).status_code == 401

    write_register(stage.folder, [stage.a, new], revoked=["site-n"])
    assert stage.call("pull-messages", key=new).status_code == 401


def test_nobody_is_let_in_on_a_damaged_register(stage: Stage) -> None:
    stage.folder.register.write_text("[{")

    assert stage.call("pull-messages").status_code == 503
    assert stage.hello(stage.a).status_code == 503
    stage.gateway.wait_for_log("restore it from a copy")


# --- what a site may say of itself and of others ----------------------------------------------------------------------


def _reply(
    *, message_id: str = "m" * 64, src_node_id: int = 7, dst_node_id: int = 1, reply_to_message_id: str = "i" * 64
) -> PushMessagesRequest:
    metadata = Metadata(
        run_id=1,
        message_id=message_id,
        src_node_id=src_node_id,
        dst_node_id=dst_node_id,
        reply_to_message_id=reply_to_message_id,
    )
    return PushMessagesRequest(
        node=Node(node_id=7),
        messages_list=[Message(metadata=metadata)],
        message_object_trees=[ObjectTree(object_id="m" * 64)],
    )


def _two_messages() -> PushMessagesRequest:
    request = _reply()
    request.messages_list.append(_reply(src_node_id=8).messages_list[0])
    return request


FORGERIES = {
    "in another node's name": _reply(src_node_id=8),
    "in the SuperLink's name": _reply(src_node_id=1, dst_node_id=8, reply_to_message_id=""),
    "to another node": _reply(dst_node_id=8),
    "an order, no reply": _reply(reply_to_message_id=""),
    "of another message's objects": _reply(message_id="n" * 64),
    "two messages": _two_messages(),
    "no message": PushMessagesRequest(node=Node(node_id=7)),
}


@pytest.mark.parametrize("request_", FORGERIES.values(), ids=FORGERIES.keys())
def test_message_that_is_not_the_site_s_own_reply_is_dropped(stage: Stage, request_: PushMessagesRequest) -> None:
    assert stage.call("push-messages", request_.SerializeToString()).status_code == 403
    assert stage.superlink.calls == []


def test_body_that_is_no_call_is_dropped(stage: Stage) -> None:
    for call in ("push-messages", "push-object", "pull-object", "confirm-message-received", "activate-node"):
        assert stage.call(call, b"\xff\xff\xff").status_code == 403
    assert stage.superlink.calls == []


def test_site_activates_no_key_but_its_own(stage: Stage) -> None:
    assert (
        stage.call("activate-node", ActivateNodeRequest(public_key=stage.b.pem).SerializeToString()).status_code == 403
    )
    assert stage.superlink.calls == []


def test_object_without_a_session_is_dropped(stage: Stage) -> None:
    assert stage.call("push-object", PushObjectRequest(object_id="o" * 64).SerializeToString()).status_code == 403
    assert stage.superlink.calls == []


def _hand_over(stage: Stage, message: str, *, key: SiteKey | None = None) -> dict[str, bytes]:
    """Let the SuperLink hand a message to a site; the calls with which the site takes it."""
    response = PullMessagesResponse(
        messages_list=[Message(metadata=Metadata(message_id=message))],
        message_object_trees=[ObjectTree(object_id=message, children=[ObjectTree(object_id=message[::-1] + "c")])],
    )
    stage.superlink.content = response.SerializeToString()
    assert stage.call("pull-messages", key=key).content == stage.superlink.content
    stage.superlink.content = b""
    return {
        "pull-object": PullObjectRequest(object_id=message[::-1] + "c").SerializeToString(),
        "confirm-message-received": ConfirmMessageReceivedRequest(message_object_id=message).SerializeToString(),
    }


def test_site_gets_and_lets_go_of_what_it_was_handed_alone(stage: Stage) -> None:
    of_a = _hand_over(stage, "a" * 64)
    of_b = _hand_over(stage, "b" * 64, key=stage.b)

    assert [stage.call(name, body).status_code for name, body in of_a.items()] == [200, 200]
    assert [stage.call(name, body).status_code for name, body in of_b.items()] == [403, 403]
    assert [stage.call(name, body, key=stage.b).status_code for name, body in of_b.items()] == [200, 200]


def test_site_goes_on_with_what_it_was_handed_after_a_restart_of_the_gateway(stage: Stage) -> None:
    calls = _hand_over(stage, "d" * 64)
    with running_gateway(stage.folder, superlink_port=stage.superlink.port) as again, again.client() as client:
        for name, body in calls.items():
            assert client.post(FLEET + name, content=body, headers=stage.a.headers()).status_code == 200
    stage.call("confirm-message-received", calls["confirm-message-received"])


def test_message_whose_delivery_was_cut_off_is_handed_over_again(stage: Stage) -> None:
    calls = _hand_over(stage, "f" * 64)
    asked = len(stage.superlink.calls)

    again = PullMessagesResponse.FromString(stage.call("pull-messages").content)
    assert again.messages_list[0].metadata.message_id == "f" * 64
    assert len(stage.superlink.calls) == asked

    stage.call("pull-object", calls["pull-object"])
    assert stage.call("pull-messages").content == b""


# --- hello ------------------------------------------------------------------------------------------------------------


RUNS = (
    ("one", study_text(name="first"), False),
    ("two", study_text(name="second"), False),
    ("three", study_text(name="third"), True),
    ("four", "nothing", False),
)
"""Name, study and whether it has ended."""


def test_site_learns_by_hello_where_it_is_and_what_is_studied(stage: Stage) -> None:
    text = study_text(name="first")
    stage.folder.study.write_text(text)
    for name, run_text, ended in RUNS:
        run = stage.folder.runs / name
        run.mkdir(exist_ok=True)
        (run / "study.yaml").write_text(run_text)
        if ended:
            (run / "record.json").write_text("{}")

    reply = HelloReply.model_validate_json(stage.hello(stage.a).content)

    assert (reply.federation, reply.federation_id, reply.site) == ("glioma", FEDERATION_ID, "site-a")
    assert reply.bundle_digest == bundle_digest(installed_bundle())
    assert reply.authorities == stage.folder.authorities.read_text()
    assert [offer.name for offer in reply.studies] == ["first", "second"]
    assert reply.studies[0].text == text
    assert datetime.fromisoformat(reply.time).tzinfo is not None


def test_hello_to_another_federation_is_refused(stage: Stage) -> None:
    answer = stage.hello(stage.a, federation_id="f" * 32)

    assert answer.status_code == 401
    assert HelloRefusal.model_validate_json(answer.content).fault == "other-federation"


def test_hello_that_is_none_is_refused(stage: Stage) -> None:
    for content in ("", "{", "[]", json.dumps({"site": "site-a"})):
        answer = stage.hello(stage.a, content=content)
        assert HelloRefusal.model_validate_json(answer.content).fault == "malformed"


def test_site_cannot_forge_a_line_of_the_status_with_its_version(stage: Stage) -> None:
    forged = "0.2\nsite-b  connected\x1b[2K"
    answer = stage.hello(stage.a, version=forged)

    assert HelloRefusal.model_validate_json(answer.content).fault == "malformed"
    wait_until(lambda: "site-a" in read_sightings(stage.folder.sightings))
    assert _sighting(stage, "site-a", "version") != forged


def test_site_that_calls_itself_otherwise_is_told_its_name(stage: Stage) -> None:
    assert HelloReply.model_validate_json(stage.hello(stage.b, site="site-x").content).site == "site-b"


def test_newer_site_says_more_and_is_answered(stage: Stage) -> None:
    assert stage.hello(stage.a, something_new=1).status_code == 200


def test_site_that_says_hello_too_often_is_told_to_try_again_and_works_on(strangers: Stage) -> None:
    strangers.superlink.may_answer.set()
    answers = [strangers.hello(strangers.b) for _ in range(int(HELLOS_BURST) + 20)]

    statuses = [answer.status_code for answer in answers]
    assert statuses[: int(HELLOS_BURST)] == [200] * int(HELLOS_BURST)
    assert 503 in statuses
    assert set(statuses) == {200, 503}
    assert strangers.hello(strangers.a).status_code == 200
    assert strangers.call("pull-messages", key=strangers.b).status_code == 200


# --- what the coordinator sees ----------------------------------------------------------------------------------------


def test_sightings_say_when_and_how_fast_and_with_what_version_a_site_was_seen(stage: Stage) -> None:
    chunk = PushObjectRequest(session_id="s", object_content=b"a" * 2**20).SerializeToString()
    stage.call("push-object", chunk, key=stage.b)
    stage.hello(stage.b)

    wait_until(lambda: _sighting(stage, "site-b", "version") == "0.9")
    seen = read_sightings(stage.folder.sightings)["site-b"]
    assert abs(datetime.fromisoformat(seen.last_seen) - datetime.now(UTC)) < timedelta(minutes=1)
    assert seen.received_bytes > 2**20
    assert seen.upload_mbit is not None and seen.upload_mbit > 0  # noqa: PT018
    assert (seen.version, seen.authorities) == ("0.9", ("ab" * 32,))


def _sighting(stage: Stage, site: str, name: str) -> object:
    return getattr(read_sightings(stage.folder.sightings).get(site), name, None)


def test_log_says_that_a_site_came_and_went_and_nothing_of_each_call(stage: Stage) -> None:
    stage.call("pull-messages")
    stage.call("pull-messages")
    stage.call("deactivate-node")

    stage.gateway.wait_for_log("site-a left")
    assert "site-a connected from 127.0.0.1" in stage.gateway.log
    assert "pull-messages\n" not in stage.gateway.log


# --- certificate ------------------------------------------------------------------------------------------------------


def _presented(gateway: RunningGateway) -> x509.Certificate:
    with gateway.connect() as connection:
        found = connection.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found)


def test_renewed_certificate_is_presented_and_a_broken_one_is_not(stage: Stage) -> None:
    with stage.gateway.client() as open_before:
        open_before.post(FLEET + "pull-messages", headers=stage.a.headers())
        renewed = x509.load_pem_x509_certificate(renew_certificate(stage.folder, stage.authority))
        wait_until(lambda: _presented(stage.gateway) == renewed)

        stage.folder.certificate.write_text("nothing")
        stage.gateway.wait_for_log("cannot be used")
        assert _presented(stage.gateway) == renewed
        assert open_before.post(FLEET + "pull-messages", headers=stage.a.headers()).status_code == 200

    again = x509.load_pem_x509_certificate(renew_certificate(stage.folder, stage.authority))
    wait_until(lambda: _presented(stage.gateway) == again)


def test_gateway_without_a_usable_certificate_does_not_begin(tmp_path: Path) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    folder.certificate_key.write_text("nothing")

    with (
        pytest.raises(AssertionError, match=r"cannot be used with server\.key"),
        running_gateway(folder, superlink_port=9),
    ):
        pass


# --- garbage ----------------------------------------------------------------------------------------------------------

GARBAGE = {
    "plain http": b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n\r\n",
    "random": random.Random(3).randbytes(4096),
    "half a handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "ssh": b"SSH-2.0-x\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_on_the_port_disturbs_nobody(stage: Stage, garbage: bytes) -> None:
    before = stage.gateway.log
    for _ in range(20):
        with socket.create_connection((HOST, stage.gateway.port)) as scan:
            scan.sendall(garbage)

    assert stage.call("pull-messages").status_code == 200
    assert "Traceback" not in stage.gateway.log
    assert len(stage.gateway.log) - len(before) < 200


def test_gateway_ends_well_when_told_to_while_connections_are_open(tmp_path: Path) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    a = make_site_key(tmp_path, "site-a")
    write_register(folder, [a])
    with running_gateway(folder, superlink_port=9) as gateway, gateway.connect(), gateway.connect() as uploading:
        headers = "".join(f"{name}: {value}\r\n" for name, value in a.headers().items())
        uploading.sendall(
            f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n{headers}\r\n".encode()
        )

        gateway.process.send_signal(signal.SIGTERM)

        assert gateway.process.wait(timeout=30) == 0
        assert "Traceback" not in gateway.log
