"""How a ServerApp fetches replies: whole ones, one at a time, put together without a second copy."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.superlink.grid import http_grid

from common.flower_private import take_server_identity
from common.messages import read_train_task, task_records
from common.model_state import Array
from common.study import parse_study
from common.tasks import TrainTask
from server import flower_private
from server.flower_private import end_turn, fetch_one_reply_at_a_time, has_turn
from tests.tiny_hospitals import study_text

STUDY = parse_study(study_text(), origin="study")


@pytest.fixture
def pull() -> Iterator[Any]:
    """What Flower's Grid calls to fetch the objects of a message."""
    fetch_one_reply_at_a_time()
    yield vars(http_grid)["pull_objects"]
    if has_turn():
        end_turn()


def message_in_parts() -> tuple[str, list[str], dict[str, bytes]]:
    """A message's number, its objects' numbers in the order in which they are sent, and the objects."""
    take_server_identity(run_id=1, node_id=1)
    same = np.arange(600, dtype=np.float32).reshape(20, 30)
    state: dict[str, Array] = {"a": same, "b": same.copy(), "c": np.zeros(3, np.int64), "d": np.array(1.5, np.float32)}
    message = Message(task_records(TrainTask(STUDY, "run", 1, (1.0, 1.0), 0.0, state)), 7, "train", ttl=60.0)
    objects = {number: each.deflate() for number, each in get_all_nested_objects(message).items()}
    return message.object_id, [tree.object_id for tree in iterate_object_tree(get_object_tree(message))], objects


@pytest.mark.usefixtures("pull")
def test_message_put_together_from_its_parts_is_the_message() -> None:
    message_id, _, objects = message_in_parts()

    message = vars(http_grid)["inflate_object_from_contents"](message_id, objects)

    state = read_train_task(message.content).state
    assert {name: array.shape for name, array in state.items()} == {"a": (20, 30), "b": (20, 30), "c": (3,), "d": ()}
    np.testing.assert_array_equal(state["a"], state["b"])
    assert objects == {}
    assert message.object_id == message_id


def test_nothing_is_fetched_before_the_message_itself_is_there_which_is_sent_last(pull: Any) -> None:
    message_id, order, objects = message_in_parts()
    fetched: list[str] = []

    def fetch(number: str) -> bytes:
        fetched.append(number)
        return objects[number]

    contents = pull(object_ids=order, pull_object_fn=fetch)

    assert order[-1] == fetched[0] == message_id
    assert contents == objects


@pytest.mark.usefixtures("pull")
def test_what_is_sent_goes_part_by_part_in_its_order() -> None:
    take_server_identity(run_id=1, node_id=1)
    message = Message(RecordDict({"x": ConfigRecord({"n": 1}), "y": ConfigRecord({"n": 2})}), 7, "train", ttl=60.0)
    parts = get_all_nested_objects(message)
    wanted = list(parts)[1:]
    sent: list[str] = []

    vars(http_grid)["push_objects"](
        dict(parts), push_object_fn=lambda number, content: sent.append(number), object_ids_to_push=set(wanted)
    )

    assert sent == wanted
    assert sent[-1] == message.object_id


def test_one_reply_at_a_time_is_in_memory(pull: Any) -> None:
    _, order, objects = message_in_parts()
    pull(object_ids=order, pull_object_fn=objects.__getitem__)
    second = threading.Thread(target=lambda: pull(object_ids=order, pull_object_fn=objects.__getitem__), daemon=True)

    second.start()
    second.join(0.3)
    assert second.is_alive()

    assert has_turn()
    end_turn()
    second.join(10)
    assert not second.is_alive()
    end_turn()


def test_message_and_its_ping_fetched_together_take_one_turn(pull: Any) -> None:
    _, order, objects = message_in_parts()

    pull(object_ids=order, pull_object_fn=objects.__getitem__)
    pull(object_ids=order, pull_object_fn=objects.__getitem__)

    assert has_turn()
    assert not has_turn()
    end_turn()
    assert flower_private._turn.acquire(blocking=False)
    flower_private._turn.release()
