"""The few names of Flower 1.41 that are used here and are not part of its public interface.

Flower may change them in any release, so they stand in this one file, and a test checks that each is still there.
"""

from copy import deepcopy

from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "NodeInfo",
    "ObjectPushError",
    "Run",
    "assign_message_id",
    "build_fab_from_files",
    "copy_of_message",
    "new_context",
    "take_server_identity",
]


def take_server_identity(*, run_id: int, node_id: int) -> None:
    """Let this process make messages, as Flower's own ServerApp process may: `Message(...)` asks who makes it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, run_id


def assign_message_id(message: Message, message_id: str) -> None:
    """Number a message, as the SuperLink does."""
    message.metadata.__dict__["_message_id"] = message_id


def copy_of_message(message: Message) -> Message:
    """A message of equal metadata whose records are new objects, as if it had been sent.

    The arrays' bytes cannot be changed and are shared.
    """
    return Message(content=deepcopy(message.content), metadata=message.metadata)  # type: ignore[call-overload,no-any-return]


def new_context(*, run_id: int, node_id: int, node_config: dict[str, str], run_config: dict[str, str]) -> Context:
    """The context of a node or of the server."""
    return Context(
        run_id=run_id, node_id=node_id, node_config=dict(node_config), state=RecordDict(), run_config=dict(run_config)
    )
