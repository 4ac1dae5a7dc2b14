"""What a call to the SuperLink passes through: all that guards it, and nothing else."""

import asyncio
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from google.protobuf.message import Message as ProtobufMessage
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from server.flower_private import MEDIA_TYPE, _WholeBody
from server.processes import free_ports, stop_group
from server.superlink import SuperLink


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("link")
    (port,) = free_ports(1)
    link = SuperLink(folder / "superlink", port=port, runs=folder, in_memory=True)
    link.prepare(now=datetime.now(UTC))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            link.superlink_command(), env=link.environment(os.environ), stdout=log, stderr=log, start_new_session=True
        )
    try:
        while not link.is_listening():
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.1)
        trust = ssl.create_default_context(cafile=str(link.authority))
        with httpx.Client(base_url=f"https://{link.address}", verify=trust, trust_env=False) as made:
            yield made
    finally:
        stop_group(process, patience_s=0.0)


def answer_to(client: httpx.Client, path: str, request: ProtobufMessage) -> httpx.Response:
    return client.post(path, content=request.SerializeToString(), headers={"content-type": MEDIA_TYPE})


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v1/fleet/pull-messages", PullMessagesRequest(node=Node(node_id=7))),
        ("/v1/fleet/push-object", PushObjectRequest(node=Node(node_id=7), object_content=bytes(2**21))),
        ("/v1/runtime/acquire-task", AcquireTaskRequest()),
    ],
    ids=["a site's", "one of many pieces", "a SuperExec's"],
)
def test_call_without_its_signature_is_refused(client: httpx.Client, path: str, request_: ProtobufMessage) -> None:
    assert answer_to(client, path, request_).status_code == 401


@pytest.mark.parametrize("path", ["//v1/fleet/pull-messages", "/v1//fleet/pull-messages", "/V1/fleet/pull-messages"])
def test_no_other_spelling_of_a_path_leads_past_the_signature(client: httpx.Client, path: str) -> None:
    assert answer_to(client, path, PullMessagesRequest(node=Node(node_id=7))).status_code == 404


def test_command_line_is_answered(client: httpx.Client) -> None:
    assert answer_to(client, "/v1/control/list-runs", ListRunsRequest()).status_code == 200


def received(app: ASGIApp, *messages: ASGIMessage) -> None:
    waiting = list(messages)

    async def receive() -> ASGIMessage:
        return waiting.pop(0)

    async def send(message: ASGIMessage) -> None:
        pass

    async def call() -> None:
        await app({"type": "http"}, receive, send)

    asyncio.run(call())


def test_body_comes_in_one_piece_and_a_broken_connection_as_one() -> None:
    seen: list[ASGIMessage] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive(), await receive()])

    part: ASGIMessage = {"type": "http.request", "body": b"ab", "more_body": True}
    received(_WholeBody(inner), part, part, {"type": "http.request", "body": b"c"}, {"type": "http.disconnect"})
    received(_WholeBody(inner), part, {"type": "http.disconnect"}, {"type": "http.disconnect"})

    assert seen == [{"type": "http.request", "body": b"ababc"}, *[{"type": "http.disconnect"}] * 3]
