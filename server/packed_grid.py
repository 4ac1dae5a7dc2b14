"""Flower's Grid for a run over the network: small arrays travel together, and nobody else has to know."""

from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.flower_private import NodeInfo, Run
from common.packing import pack, unpack
from server.flower_private import UnreadableReplyError


class PackedGrid(Grid):
    """Packs what it sends and unpacks what it brings.

    Args:
        grid: What carries the messages.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid`."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`. The messages that are given stay as they are."""
        return self._grid.push_messages(_packed(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`.

        Raises:
            UnreadableReplyError: If a reply cannot be unpacked.
        """
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            _unpack(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Sequence[Message]:
        """See `Grid`."""
        replies = list(self._grid.send_and_receive(_packed(messages), timeout=timeout))
        for reply in replies:
            _unpack(reply)
        return replies


def _packed(messages: Iterable[Message]) -> list[Message]:
    """The messages packed; those that share their content share it still, so that Flower computes its digests once."""
    contents: dict[int, RecordDict] = {}
    packed = []
    for message in messages:
        if not message.has_content():
            packed.append(message)
            continue
        number = id(message.content)
        if number not in contents:
            contents[number] = pack(message.content)
        packed.append(Message(content=contents[number], metadata=message.metadata))  # type: ignore[call-overload]
    return packed


def _unpack(reply: Message) -> None:
    if reply.has_content():
        try:
            reply.content = unpack(reply.content)
        except ProtocolError:
            raise UnreadableReplyError("its reply is not readable") from None
