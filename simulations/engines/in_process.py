"""Flower's Grid as function calls: the same ServerApp and ClientApp, no processes, no start-up."""

import itertools
import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from client.app import SITE_CONFIG_KEY
from client.app import app as client_app
from common.flower_private import (
    NodeInfo,
    Run,
    assign_message_id,
    copy_of_message,
    new_context,
    take_server_identity,
)
from server.app import app as server_app
from server.run_folder import RUN_KEY, RUNS_VARIABLE
from simulations.engines.launch import Launch
from simulations.faults import FaultyClientApp

RUN_ID, SERVER_NODE = 1, 1
CLIENT_APP_RAISED = 2
"""Flower's error code for a ClientApp that raised an exception."""

_WAIT_S = 1.0
"""How long a request for replies waits where no site has any; longer than the pauses of those who ask."""

_MARGIN_S = 1.0
"""Before a message's time is over, nobody waits for its reply any more."""


@dataclass
class _Job:
    message: Message
    expires_at: float
    state: Literal["waiting", "working", "done", "abandoned"] = "waiting"
    reply: Message | None = None


class InProcessGrid(Grid):
    """Carries messages to ClientApps on threads of this process.

    As many sites work at a time as there are workers, in the order of their messages. A message whose time is over
    before it is answered gives its place to the next one; its site counts as not connected until it comes back.

    Args:
        client_app: What every site runs.
        node_configs: Flower's node settings of each site, by name. The names are what the nodes are registered as.
        workers: Sites that work side by side. torch computes outside Python's lock, so threads suffice.
    """

    def __init__(self, client_app: ClientApp, node_configs: Mapping[str, Mapping[str, str]], *, workers: int) -> None:
        take_server_identity(run_id=RUN_ID, node_id=SERVER_NODE)
        self._client_app = client_app
        self._names: dict[int, str] = {}
        self._contexts: dict[int, Context] = {}
        for node, (name, config) in enumerate(sorted(node_configs.items()), start=SERVER_NODE + 1):
            self._names[node] = name
            self._contexts[node] = new_context(run_id=RUN_ID, node_id=node, node_config=dict(config), run_config={})
        self._numbers = itertools.count(1)
        self._jobs: dict[str, _Job] = {}
        self._stuck: set[int] = set()
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        for _ in range(workers):
            self._start_worker()

    def _start_worker(self) -> None:
        # A daemon, so that a site that never comes back does not keep the program from ending.
        threading.Thread(target=self._work, name="site", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._waiting.get()
            with self._lock:
                if job.state == "abandoned":
                    continue
                job.state = "working"
            reply = self._answer(job.message)
            if not self._hand_in(job, reply):
                return

    def _hand_in(self, job: _Job, reply: Message) -> bool:
        """Keep a reply; False where it comes too late and another worker has taken this one's place."""
        with self._lock:
            if job.state == "abandoned":
                self._stuck.discard(job.message.metadata.dst_node_id)
                return False
            job.state, job.reply = "done", reply
            self._answered.notify_all()
            return True

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(copy_of_message(message), self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - what Flower does at a node: the run goes on without this reply
            return Message(Error(CLIENT_APP_RAISED, type(error).__name__), reply_to=message)

    def _abandon_overdue(self) -> None:
        with self._lock:
            overdue = {
                message_id: job
                for message_id, job in self._jobs.items()
                if job.state != "done" and time.time() >= job.expires_at
            }
            for message_id, job in overdue.items():
                del self._jobs[message_id]
                if job.state == "working":
                    self._stuck.add(job.message.metadata.dst_node_id)
                    self._start_worker()
                job.state = "abandoned"

    def set_run(self, run: Run) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self) -> Run:
        """A run without an app bundle."""
        return Run.create_empty(run_id=RUN_ID)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new message; the same as calling `Message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Nodes that are not stuck in a message whose time is over."""
        self._abandon_overdue()
        return [node for node in self._names if node not in self._stuck]

    def get_nodes(self) -> list[NodeInfo]:
        """The same nodes with their names."""
        return [NodeInfo(node_id=node, name=self._names[node]) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; returns their numbers."""
        ids = []
        for message in messages:
            message_id = f"message-{next(self._numbers)}"
            assign_message_id(message, message_id)
            job = _Job(message, expires_at=message.metadata.created_at + message.metadata.ttl)
            with self._lock:
                self._jobs[message_id] = job
            self._waiting.put(job)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are there, each once; where no site has any, those that come within a second.

        Waiting ends with the reply of any site, so that whoever asks for one after the other does not miss it.
        """
        return self._pull(list(message_ids), wait_s=_WAIT_S)

    def _pull(self, message_ids: Sequence[str], *, wait_s: float) -> list[Message]:
        self._abandon_overdue()
        with self._answered:
            expected = [self._jobs[message_id] for message_id in message_ids if message_id in self._jobs]
            if expected and all(job.reply is None for job in self._jobs.values()):
                # Back in good time: a request that still waits at the deadline looks like a reply under way.
                left_s = min(job.expires_at for job in expected) - time.time() - _MARGIN_S
                if left_s > 0:
                    self._answered.wait(min(wait_s, left_s))
            replies = []
            for message_id in message_ids:
                job = self._jobs.get(message_id)
                if job is not None and job.reply is not None:
                    del self._jobs[message_id]
                    replies.append(job.reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Sequence[Message]:
        """Queue messages and wait for all replies, at most for the timeout in seconds."""
        waiting = set(self.push_messages(messages))
        end = float("inf") if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (left_s := end - time.monotonic()) > 0:
            new = self._pull(list(waiting), wait_s=min(_WAIT_S, left_s))
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            replies += new
        return replies


def run_in_process(launch: Launch) -> None:
    """Carry a run by function calls; returns when the ServerApp is done and raises what it raises."""
    node_configs = {name: {SITE_CONFIG_KEY: str(path)} for name, path in launch.sites.items()}
    app: ClientApp = client_app
    if launch.faults:
        app = FaultyClientApp(client_app, {str(launch.sites[fault.site]): fault for fault in launch.faults})
    grid = InProcessGrid(app, node_configs, workers=launch.workers)
    os.environ[RUNS_VARIABLE] = str(launch.folder.path.parent)
    context = new_context(run_id=RUN_ID, node_id=SERVER_NODE, node_config={}, run_config={RUN_KEY: launch.folder.name})
    server_app(grid, context)
