"""A site reduced to its protocol: what a SuperNode says to the coordinator, without its processes and without a cohort.

Many of them fit into one process, so that what a coordinator needs can be measured with as many sites as one likes.
The calls are Flower's own (flwr 1.41, `flwr.supernode`); the answers are made up.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.messages import (
    MESSAGE_TYPES,
    PING_TYPE,
    bins_of,
    ping_records,
    read_describe_task,
    read_evaluate_task,
    read_train_task,
    reply_records,
)
from common.metrics.site_statistics import SiteStatistics
from common.packing import unpack
from common.study import Study
from common.tasks import DescribeTask, EvaluateReply, EvaluateTask, Evaluation, SiteManifest, TrainReply, TrainTask

HEARTBEAT_S = 30.0
"""What the site promises; the SuperLink takes it for gone after twice this time."""

_POLL_S = 0.3
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class MadeUpSite:
    """Answers as a site would whose training changes every weight a little.

    Attributes:
        name: Of the site; makes its numbers differ from the others'.
        num_patients: Of each class in each split.
    """

    name: str
    num_patients: int = 20

    def answer(self, message: Message) -> RecordDict:
        """The answer to any message of a coordinator."""
        kind = message.metadata.message_type
        if kind == PING_TYPE:
            return ping_records()
        if kind == MESSAGE_TYPES[DescribeTask]:
            return reply_records(self._describe(read_describe_task(message.content).study))
        if kind == MESSAGE_TYPES[EvaluateTask]:
            task = read_evaluate_task(message.content)
            return reply_records(
                EvaluateReply(task.study.digest, self._evaluation(task.study, task.split, task.threshold), seconds=0.1)
            )
        assert kind == MESSAGE_TYPES[TrainTask], f"unexpected message {kind}"
        return reply_records(self._train(read_train_task(message.content)))

    def _describe(self, study: Study) -> SiteManifest:
        return SiteManifest(
            site=self.name,
            study_digest=study.digest,
            num_patients=dict.fromkeys(("train", "validation", "test"), (self.num_patients, self.num_patients)),
            num_exams=dict.fromkeys(("train", "validation", "test"), 2 * self.num_patients),
            cohort_digests=dict.fromkeys(("train", "validation", "test"), "c" * 64),
            missing_sequences={},
            crop_centers={},
            device="cpu",
            torch_threads=1,
            versions={},
        )

    def _train(self, task: TrainTask) -> TrainReply:
        step = 1e-4 * (1 + len(self.name) + sum(self.name.encode()) % 97)
        state = {name: array + np.asarray(step, dtype=array.dtype) for name, array in task.state.items()}
        return TrainReply(
            study_digest=task.study.digest,
            round=task.round,
            state=state,
            num_patients=(self.num_patients, self.num_patients),
            num_steps=1,
            train_loss=0.5,
            optimizer="fresh",
            seconds=(0.1, 0.1),
            evaluation=self._evaluation(task.study, "validation", None),
        )

    def _evaluation(self, study: Study, split: Literal["validation", "test"], threshold: float | None) -> Evaluation:
        margins = np.linspace(-2.0, 2.0, 2 * self.num_patients)
        labels = np.repeat(np.array([0, 1]), self.num_patients)
        statistics = SiteStatistics.from_margins(margins, labels, bins=bins_of(study), threshold=threshold)
        return Evaluation(split=split, statistics=statistics, withheld="", cohort_digest="c" * 64)


class FleetSite:
    """One site's connection to a coordinator: a gateway, or a SuperLink itself.

    Args:
        address: host:port.
        ca_certificate: PEM of the authority the coordinator is checked against.
        private_key: The site's key in OpenSSH format.
        answer: What the site answers to a message.
        working: Held while a model is in memory, so that many sites fit into one process.
    """

    def __init__(
        self,
        address: str,
        ca_certificate: bytes,
        private_key: bytes,
        answer: Callable[[Message], RecordDict],
        *,
        working: threading.Semaphore | None = None,
    ) -> None:
        key = serialization.load_ssh_private_key(private_key, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._public_key = public_key_to_bytes(key.public_key())
        interceptors: Sequence[Any] = (
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        )
        self._client = FleetHttpClient.from_server_address(address, False, ca_certificate, interceptors)
        self._answer = answer
        self._working = working or threading.Semaphore()
        self.node: Node | None = None
        self.answered: list[str] = []

    def activate(self) -> None:
        """Connect."""
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_S)
        self.node = Node(node_id=self._client.ActivateNode(request).node_id)

    def deactivate(self) -> None:
        """Say goodbye."""
        assert self.node is not None
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))

    def heartbeat(self) -> None:
        """Say that the site is still there."""
        self._client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_S))

    def fetch(self) -> Message | None:
        """The next message with its content, if there is one."""
        response = self._client.PullMessages(PullMessagesRequest(node=self.node))
        if not response.messages_list:
            return None
        metadata, tree = response.messages_list[0].metadata, response.message_object_trees[0]
        contents = {each.object_id: self._fetch_object(metadata.run_id, each) for each in iterate_object_tree(tree)}
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.node, run_id=metadata.run_id, message_object_id=metadata.message_id)
        )
        message = inflate_object_from_contents(metadata.message_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = metadata.message_id
        message.content = unpack(message.content)
        return message

    def _fetch_object(self, run_id: int, tree: ObjectTree) -> bytes:
        request = PullObjectRequest(node=self.node, run_id=run_id, object_id=tree.object_id)
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            response = self._client.PullObject(request)
            if response.object_available:
                return bytes(response.object_content)
            if not response.object_found:
                break
            time.sleep(_POLL_S)  # a message is handed out before all its parts are there
        raise LookupError(f"object {tree.object_id} is not to be had")

    def hand_in(self, reply: Message, *, objects: int | None = None) -> None:
        """Send a reply.

        Args:
            reply: The reply.
            objects: Send only this many of its parts, as if the upload were cut off.
        """
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            parts = get_all_nested_objects(reply)
            tree = get_object_tree(reply)
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self.node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[0.1],
                )
            )
            wanted = set(response.objects_to_push)
            for each in [each for each in iterate_object_tree(tree) if each.object_id in wanted][:objects]:
                if each.object_id not in wanted:
                    continue
                wanted.discard(each.object_id)
                self._client.PushObject(
                    PushObjectRequest(
                        node=self.node,
                        run_id=reply.metadata.run_id,
                        object_id=each.object_id,
                        object_content=parts[each.object_id].deflate(),
                        session_id=response.session_id,
                    )
                )

    def work(self) -> bool:
        """Answer the next message, if there is one."""
        with self._working:
            message = self.fetch()
            if message is None:
                return False
            self.handle(message)
            return True

    def handle(self, message: Message) -> None:
        """Answer a message; what a site that misbehaves does otherwise."""
        self.hand_in(self.reply_to(message))
        self.answered.append(message.metadata.message_type)

    def reply_to(self, message: Message) -> Message:
        """The honest answer."""
        return Message(self._answer(message), reply_to=message)

    def run(self, stop: threading.Event) -> None:
        """Stay connected and answer until told to stop; a coordinator that is away is waited for."""
        beats = threading.Thread(target=self._beat, args=(stop,), name="heartbeat", daemon=True)
        beats.start()
        while not stop.is_set():
            try:
                if self.node is None:
                    self.activate()
                if not self.work():
                    stop.wait(_POLL_S)
            except (httpx.HTTPError, LookupError):
                stop.wait(1.0)
        beats.join()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S / 2):
            try:
                if self.node is not None:
                    self.heartbeat()
            except httpx.HTTPError:
                continue

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
