"""What somebody can do who should not: against a real SuperLink behind the gateway, with all that he could have."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.linkstate_factory import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from google.protobuf.message import Message as ProtobufMessage

from common.flower_environment import flower_environment
from common.flower_private import assign_message_id, take_server_identity
from server.federation_folder import FederationFolder
from server.gateway.limits import FLEET
from tests.gateway_federation import (
    HOST,
    RunningGateway,
    SiteKey,
    flower_cli,
    free_port,
    make_federation,
    make_site_key,
    running_gateway,
    running_superlink,
    wait_until,
    write_register,
)

PROGRAMS = Path(sys.executable).parent


@dataclass
class Order:
    """A message that the server app has sent to a site, and the objects it is made of."""

    message: Message
    tree: ObjectTree


@dataclass
class Scene:
    """A federation with a run in progress.

    Attributes:
        a: A site that is admitted and takes part; the attacker has its key in some tests.
        b: Another one.
        revoked: One that took part and is revoked at the gateway; the SuperLink still knows its key.
        nodes: Numbers of the nodes of a and b.
        order_to_b: Not fetched yet.
    """

    folder: FederationFolder
    gateway: RunningGateway
    superlink_port: int
    a: SiteKey
    b: SiteKey
    revoked: SiteKey
    nodes: dict[str, int]
    run_id: int
    order_to_b: Order

    def call(self, name: str, request: ProtobufMessage, key: SiteKey | None) -> httpx.Response:
        headers = {"content-type": "application/protobuf"} | ({} if key is None else key.headers())
        with self.gateway.client() as client:
            return client.post(FLEET + name, content=request.SerializeToString(), headers=headers)

    def count(self, table: str, condition: str = "1") -> int:
        with sqlite3.connect(self.folder.superlink / "state.db") as database:
            found: int = database.execute(f"SELECT COUNT(*) FROM {table} WHERE {condition}").fetchone()[0]
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("outsider")
    folder, _ = make_federation(home / "federation")
    a, b, revoked = (make_site_key(home, name) for name in ("site-a", "site-b", "site-r"))
    write_register(folder, [a, b, revoked], revoked=["site-r"])
    port = free_port()
    with running_superlink(folder, port=port), running_gateway(folder, superlink_port=port) as gateway:
        for key in (a, b, revoked):
            public_key = str(key.private_file.with_suffix(".pub"))
            flower_cli(folder, port, "supernode", "register", public_key, "lab", "--name", key.name)
        nodes = {key.name: _activate(gateway, key) for key in (a, b)}
        run_id, order = _begin_run(folder, nodes["site-b"])
        yield Scene(folder, gateway, port, a, b, revoked, nodes, run_id, order)


def _activate(gateway: RunningGateway, key: SiteKey) -> int:
    request = ActivateNodeRequest(public_key=key.pem, heartbeat_interval=1000)
    headers = key.headers() | {"content-type": "application/protobuf"}
    with gateway.client() as client:
        answer = client.post(FLEET + "activate-node", content=request.SerializeToString(), headers=headers)
    assert answer.status_code == 200, answer.text
    return int(ActivateNodeResponse.FromString(answer.content).node_id)


def _begin_run(folder: FederationFolder, node_id: int) -> tuple[int, Order]:
    """Put into the SuperLink's state what a ServerApp would: a run in progress, and an order to a node."""
    database = str(folder.superlink / "state.db")
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
    run_id = state.create_run(None, None, "f" * 64, {}, NOOP_FEDERATION_ID, None, "", TaskType.SERVER_APP)
    task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    assert task_id is not None
    assert state.claim_task(task_id)
    assert state.activate_task(task_id)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE task SET active_until = '2099-01-01 00:00:00'")
    take_server_identity(run_id=run_id, node_id=1)
    content = RecordDict({"task": ConfigRecord({"secret": "of site-b"}), "state": ArrayRecord()})
    message = Message(content, node_id, "train", ttl=3600.0)
    assign_message_id(message, message.object_id)
    session = state.start_session(run_id)
    tree = get_object_tree(message)
    stored, missing = state.store_message_and_object_tree(message, tree, session)
    assert stored
    for object_id, each in get_all_nested_objects(message).items():
        assert object_id not in missing or state.store_object(run_id, session, object_id, each.deflate())
    return run_id, Order(message, tree)


# --- who has the authority's certificate, and perhaps a key of his own ------------------------------------------------


def _stranger(scene: Scene, kind: str) -> dict[str, str]:
    match kind:
        case "certificate alone":
            return {}
        case "a key of his own":
            return make_site_key(scene.folder.path, "stranger").headers()
        case "a revoked key":
            return scene.revoked.headers()
        case "a recorded signature":
            return scene.a.headers(datetime.now(UTC) - timedelta(minutes=6))
        case _:
            return scene.a.headers() | {"flwr-public-key": scene.b.headers()["flwr-public-key"]}


STRANGERS = ["certificate alone", "a key of his own", "a revoked key", "a recorded signature", "a wrong signature"]


@pytest.mark.parametrize("kind", STRANGERS)
def test_stranger_is_answered_by_nothing_but_a_refusal(scene: Scene, kind: str) -> None:
    headers = _stranger(scene, kind) | {"content-type": "application/protobuf"}
    node = Node(node_id=scene.nodes["site-b"])
    requests: dict[str, ProtobufMessage] = {
        "activate-node": ActivateNodeRequest(public_key=scene.b.pem, heartbeat_interval=30),
        "deactivate-node": DeactivateNodeRequest(node_id=scene.nodes["site-b"]),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "pull-messages": PullMessagesRequest(node=node),
        "pull-object": PullObjectRequest(node=node, run_id=scene.run_id, object_id=scene.order_to_b.tree.object_id),
        "push-messages": _reply(scene, as_node="site-b"),
        "confirm-message-received": ConfirmMessageReceivedRequest(
            node=node, run_id=scene.run_id, message_object_id=scene.order_to_b.tree.object_id
        ),
    }
    before = _state(scene)
    with scene.gateway.client() as client:
        answers = [
            client.post(FLEET + name, content=request.SerializeToString(), headers=headers)
            for name, request in requests.items()
        ]

    assert {answer.status_code for answer in answers} <= {401, 404}
    assert {answer.content for answer in answers} == {b""}
    assert _state(scene) == before


OPEN_AT_THE_SUPERLINK = [
    *("/v1/fleet/register-node", "/v1/fleet/unregister-node"),
    *("/v1/control/list-runs", "/v1/control/list-nodes", "/v1/control/start-run", "/v1/control/stop-run"),
    *("/v1/control/register-node", "/v1/control/unregister-node", "/v1/control/stream-logs"),
    *("/v1/runtime/acquire-task", "/v1/runtime/pull-object", "/v1/runtime/push-object", "/v1/runtime/push-messages"),
    *("/docs", "/openapi.json", "/redoc", "/health"),
]


@pytest.mark.parametrize("who", ["nobody", "an admitted site"])
def test_nothing_of_the_superlink_but_the_fleet_s_calls_is_there(scene: Scene, who: str) -> None:
    headers = {"content-type": "application/protobuf"} | (scene.a.headers() if who == "an admitted site" else {})
    before = _state(scene)
    with scene.gateway.client() as client:
        for path in OPEN_AT_THE_SUPERLINK:
            for method in ("GET", "POST"):
                answer = client.request(method, path, headers=headers)
                assert (answer.status_code, answer.content) == (404, b""), path

    own = make_site_key(scene.folder.path, "own")
    for request in (RegisterNodeFleetRequest(public_key=own.pem), UnregisterNodeFleetRequest(node_id=1)):
        name = "register-node" if isinstance(request, RegisterNodeFleetRequest) else "unregister-node"
        assert scene.call(name, request, scene.a).status_code == 404
    assert _state(scene) == before


COMMANDS = {
    "list runs": ("list", "lab"),
    "register": ("supernode", "register", "{key}", "lab"),
    "submit": ("run", "{app}", "lab"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_flower_s_own_command_line_gets_nowhere(scene: Scene, command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{HOST}:{scene.gateway.port}"\n'
        f"root-certificates = {json.dumps(str(scene.folder.authorities))}\n"
    )
    key = make_site_key(tmp_path, "mine").private_file.with_suffix(".pub")
    app = Path("common/flower_app").resolve()
    arguments = [part.format(key=key, app=app) for part in command]
    before = _state(scene)

    done = subprocess.run(
        [str(PROGRAMS / "flwr"), *arguments, "--format", "json"],
        env=flower_environment(os.environ, home=str(tmp_path), programs=str(PROGRAMS)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode != 0 or json.loads(done.stdout)["success"] is False
    assert _state(scene) == before


# --- who has the key of an admitted site ------------------------------------------------------------------------------


def _reply(scene: Scene, *, as_node: str, caller: str | None = None) -> PushMessagesRequest:
    """A reply to the order that site-b has got."""
    reply = Message(RecordDict({"reply": ConfigRecord({"n": 1})}), reply_to=scene.order_to_b.message)
    reply.metadata.__dict__["_src_node_id"] = scene.nodes[as_node]
    assign_message_id(reply, reply.object_id)
    return PushMessagesRequest(
        node=Node(node_id=scene.nodes[caller or as_node]),
        messages_list=[message_to_proto(reply)],
        message_object_trees=[get_object_tree(reply)],
    )


def _state(scene: Scene) -> dict[str, int]:
    """What an attacker could change."""
    counts = {table: scene.count(table) for table in ("node", "run", "message_ins", "message_res", "objects")}
    return counts | {
        "online": scene.count("node", "status = 'online'"),
        "fetched": scene.count("message_ins", "delivered_at != ''"),
    }


def test_site_cannot_call_in_another_s_name(scene: Scene) -> None:
    node = Node(node_id=scene.nodes["site-b"])
    before = _state(scene)

    for name, request in {
        "pull-messages": PullMessagesRequest(node=node),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "deactivate-node": DeactivateNodeRequest(node_id=node.node_id),
    }.items():
        assert scene.call(name, request, scene.a).status_code == 401
    assert _state(scene) == before


def test_site_cannot_reply_in_another_s_name_nor_to_another_s_order(scene: Scene) -> None:
    before = _state(scene)

    assert scene.call("push-messages", _reply(scene, as_node="site-b", caller="site-a"), scene.a).status_code == 403
    own = scene.call("push-messages", _reply(scene, as_node="site-a"), scene.a)

    # Flower takes no notice of the second, and asks for none of its objects.
    assert own.status_code == 403 or not PushMessagesResponse.FromString(own.content).objects_to_push
    assert _state(scene) == before


def test_site_cannot_give_orders(scene: Scene) -> None:
    before = _state(scene)
    take_server_identity(run_id=scene.run_id, node_id=1)
    order = Message(RecordDict({"task": ConfigRecord({"n": 1})}), scene.nodes["site-b"], "train", ttl=3600.0)
    assign_message_id(order, order.object_id)
    request = PushMessagesRequest(
        node=Node(node_id=scene.nodes["site-a"]),
        messages_list=[message_to_proto(order)],
        message_object_trees=[get_object_tree(order)],
    )

    assert scene.call("push-messages", request, scene.a).status_code == 403
    assert _state(scene) == before


def test_superlink_alone_would_take_orders_from_a_site_and_hand_out_another_s_objects(scene: Scene) -> None:
    """Why the gateway looks into calls: without it, each of these succeeds. If one fails, Flower has mended it."""
    tls = str(scene.folder.superlink / "tls" / "ca.crt")
    node = Node(node_id=scene.nodes["site-a"])
    wanted = scene.order_to_b.tree.children[0].object_id
    headers = scene.a.headers() | {"content-type": "application/protobuf"}
    with httpx.Client(base_url=f"https://{HOST}:{scene.superlink_port}", verify=tls, trust_env=False) as direct:
        pull = PullObjectRequest(node=node, run_id=scene.run_id, object_id=wanted).SerializeToString()
        pulled = direct.post(FLEET + "pull-object", content=pull, headers=headers)

    assert PullObjectResponse.FromString(pulled.content).object_available


def test_site_gets_no_object_of_another_and_lets_go_of_none(scene: Scene) -> None:
    node = Node(node_id=scene.nodes["site-a"])
    before = _state(scene)
    for object_id in (scene.order_to_b.tree.object_id, scene.order_to_b.tree.children[0].object_id):
        pull = PullObjectRequest(node=node, run_id=scene.run_id, object_id=object_id)
        confirm = ConfirmMessageReceivedRequest(node=node, run_id=scene.run_id, message_object_id=object_id)
        assert scene.call("pull-object", pull, scene.a).status_code == 403
        assert scene.call("confirm-message-received", confirm, scene.a).status_code == 403

    assert _state(scene) == before


def test_order_reaches_the_site_it_is_for_and_no_other_site_can_push_into_its_reply(scene: Scene) -> None:
    node = Node(node_id=scene.nodes["site-b"])
    pulled = scene.call("pull-messages", PullMessagesRequest(node=node), scene.b)
    assert len(PullMessagesResponse.FromString(pulled.content).messages_list) == 1
    pull = PullObjectRequest(node=node, run_id=scene.run_id, object_id=scene.order_to_b.tree.object_id)
    assert PullObjectResponse.FromString(scene.call("pull-object", pull, scene.b).content).object_available

    request = _reply(scene, as_node="site-b")
    pushed = PushMessagesResponse.FromString(scene.call("push-messages", request, scene.b).content)
    assert pushed.objects_to_push
    wanted = pushed.objects_to_push[0]
    for session in ("", "0" * 32):
        intruder = PushObjectRequest(
            node=Node(node_id=scene.nodes["site-a"]),
            run_id=scene.run_id,
            session_id=session,
            object_id=wanted,
            object_content=b"x",
        )
        answer = scene.call("push-object", intruder, scene.a)
        assert answer.status_code == 403 or not PushObjectResponse.FromString(answer.content).stored


# --- a SuperNode ------------------------------------------------------------------------------------------------------


def test_supernode_joins_through_the_gateway_and_ends_when_its_site_is_revoked(scene: Scene, tmp_path: Path) -> None:
    key = make_site_key(tmp_path, "site-s")
    public_key = str(key.private_file.with_suffix(".pub"))
    flower_cli(scene.folder, scene.superlink_port, "supernode", "register", public_key, "lab", "--name", "site-s")
    everybody = [scene.a, scene.b, scene.revoked, key]
    write_register(scene.folder, everybody, revoked=["site-r"])
    command = [
        *(str(PROGRAMS / "flower-supernode"), "--superlink", f"{HOST}:{scene.gateway.port}"),
        *("--root-certificates", str(scene.folder.authorities), "--auth-supernode-private-key", str(key.private_file)),
        *("--isolation", "process", "--port", str(free_port())),
    ]
    environment = flower_environment(os.environ, home=str(tmp_path / "home"), programs=str(PROGRAMS))
    with (tmp_path / "supernode.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        scene.gateway.wait_for_log("site-s connected from 127.0.0.1")
        wait_until(lambda: scene.count("node", "status = 'online'") >= 1)

        write_register(scene.folder, everybody, revoked=["site-r", "site-s"])

        wait_until(lambda: process.poll() is not None)
        scene.gateway.wait_for_log("refused site-s at 127.0.0.1: its key is revoked")
    finally:
        process.kill()
        process.wait()
        write_register(scene.folder, [scene.a, scene.b, scene.revoked], revoked=["site-r"])
