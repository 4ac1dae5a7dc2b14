"""The in-process engine: Flower's Grid as function calls, and what a federation over it is equal to."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.config import read_site_config
from client.prepare import prepare_site
from client.training import round_generator
from common.model_state import state_digest
from common.models import build_model, get_state, initial_state, set_state
from simulations.engines.in_process import CLIENT_APP_RAISED, InProcessGrid
from tests.tiny_federation import run_federation, write_hospitals
from tests.tiny_hospitals import study_text

PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.05, "schedule": "constant"}
NO_AUGMENTATION = dict.fromkeys(
    ("flip_probability", "rotation_degrees", "scaling", "translation_mm", "intensity", "noise"), 0.0
)


class EchoClientApp(ClientApp):
    """Answers with the number it was sent, after what `act` does."""

    def __init__(self, act: Any = lambda number: None) -> None:
        super().__init__()
        self._act = act

    def __call__(self, message: Message, context: Context) -> Message:
        number = message.content.config_records["x"]["n"]
        self._act(number)
        message.content.config_records["x"]["n"] = -1
        content = RecordDict({"x": ConfigRecord({"n": number, "node": str(context.node_config["name"])})})
        return Message(content, reply_to=message)


def grid(app: ClientApp, *names: str, workers: int = 1) -> InProcessGrid:
    return InProcessGrid(app, {name: {"name": name} for name in names}, workers=workers)


def message_to(node: int, number: int, *, ttl: float = 60) -> Message:
    return Message(RecordDict({"x": ConfigRecord({"n": number})}), node, "train", ttl=ttl)


def wait_for(carrier: InProcessGrid, ids: list[str]) -> list[Message]:
    """The first replies to any of these messages."""
    replies: list[Message] = []
    end = time.monotonic() + 60
    while not replies and time.monotonic() < end:
        replies = carrier.pull_messages(ids)
        time.sleep(0.005)
    return replies


def number_in(reply: Message) -> Any:
    return reply.content.config_records["x"]["n"]


def test_nodes_have_the_names_they_were_registered_with() -> None:
    nodes = grid(EchoClientApp(), "b", "a").get_nodes()

    assert [node.name for node in nodes] == ["a", "b"]
    assert len({node.node_id for node in nodes}) == 2


def test_every_message_is_answered_by_its_own_node() -> None:
    carrier = grid(EchoClientApp(), "a", "b", workers=2)
    names = {node.node_id: node.name for node in carrier.get_nodes()}

    replies = carrier.send_and_receive([message_to(node, node) for node in names], timeout=60)

    answered = {reply.metadata.src_node_id: reply.content.config_records["x"]["node"] for reply in replies}
    assert answered == names
    assert all(number_in(reply) == reply.metadata.src_node_id for reply in replies)


def test_what_one_site_does_to_its_message_reaches_no_other() -> None:
    carrier = grid(EchoClientApp(), "a", "b")
    content = RecordDict({"x": ConfigRecord({"n": 5})})

    replies = carrier.send_and_receive([Message(content, node, "train") for node in carrier.get_node_ids()], timeout=60)

    assert [number_in(reply) for reply in replies] == [5, 5]
    assert content.config_records["x"]["n"] == 5


def test_reply_is_handed_out_once() -> None:
    carrier = grid(EchoClientApp(), "a")
    (node,) = carrier.get_node_ids()
    ids = carrier.push_messages([message_to(node, 1)])

    replies = wait_for(carrier, ids)

    assert len(replies) == 1
    assert carrier.pull_messages(ids) == []


def test_exception_becomes_flower_s_error_without_its_text() -> None:
    def fail(number: int) -> None:
        raise OSError("/data/Miller/t1.nii.gz")

    carrier = grid(EchoClientApp(fail), "a")

    (reply,) = carrier.send_and_receive([message_to(carrier.get_node_ids()[0], 1)], timeout=60)

    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (CLIENT_APP_RAISED, "OSError")


def test_site_that_hangs_gives_way_at_its_deadline_and_comes_back_when_it_is_done() -> None:
    released = threading.Event()
    carrier = grid(EchoClientApp(lambda number: released.wait() if number == 1 else None), "a", "b")
    hanging, other = carrier.get_node_ids()

    ids = carrier.push_messages([message_to(hanging, 1, ttl=0.2), message_to(other, 2)])
    late = wait_for(carrier, ids)
    while_it_hangs = carrier.get_node_ids()
    released.set()
    end = time.monotonic() + 60
    while carrier.get_node_ids() != [hanging, other] and time.monotonic() < end:
        time.sleep(0.01)
    (again,) = carrier.send_and_receive([message_to(hanging, 3)], timeout=60)

    assert [number_in(reply) for reply in late] == [2]
    assert while_it_hangs == [other]
    assert number_in(again) == 3


# --- federations ------------------------------------------------------------------------------------------------------


def test_one_site_in_a_federation_is_centralised_training_to_the_last_bit(tmp_path: Path) -> None:
    sites = write_hospitals(tmp_path, "a", splits=(("train", 6, 3), ("validation", 2, 2), ("test", 2, 2)))
    study = study_text(
        rounds=4, training=PLAIN_SGD | {"local_epochs": 2}, augmentation=NO_AUGMENTATION, participation={"min_sites": 1}
    )

    run = run_federation(tmp_path / "run", study, sites)

    agreed = run.folder.read_study()
    patients = prepare_site(read_site_config(sites["a"]), agreed).splits["train"]
    model = build_model(agreed.model, num_sequences=3)
    set_state(model, initial_state(agreed.model, num_sequences=3, seed=agreed.seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    # 9 patients, 6 of them with recurrence: N / (2 N_c)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([9 / 12, 9 / 6]))
    for round in (1, 2, 3, 4):
        generator = round_generator(seed=agreed.seed, site="a", round=round)
        for _ in range(2):
            for part in torch.tensor_split(torch.randperm(9, generator=generator), 3):
                optimizer.zero_grad()
                criterion(model(patients.images[part]), patients.labels[part]).backward()
                optimizer.step()
    assert state_digest(run.model("final")) == state_digest(get_state(model))
    assert run.rounds[0]["class_weights"] == [9 / 12, 9 / 6]


def test_one_full_batch_step_a_round_at_three_sites_is_that_of_all_patients_at_one(tmp_path: Path) -> None:
    parts = {"a": (5, 1), "b": (2, 3), "c": (1, 4)}
    sites = {
        name: write_hospitals(tmp_path, name, splits=(("train", *counts), ("validation", 2, 2)))[name]
        for name, counts in parts.items()
    }
    study = study_text(
        rounds=1, training=PLAIN_SGD | {"batch_size": 256}, augmentation=NO_AUGMENTATION, evaluation={"num_bins": 32}
    )

    run = run_federation(tmp_path / "run", study, sites)

    agreed = run.folder.read_study()
    splits = [prepare_site(read_site_config(path), agreed).splits["train"] for path in sites.values()]
    model = build_model(agreed.model, num_sequences=3)
    set_state(model, initial_state(agreed.model, num_sequences=3, seed=agreed.seed))
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0]))
    criterion(model(torch.cat([s.images[:] for s in splits])), torch.cat([s.labels for s in splits])).backward()
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    pooled = get_state(model)
    assert max(float(np.abs(array - pooled[name]).max()) for name, array in run.model("final").items()) < 1e-6
    assert [run.rounds[0]["sites"][name]["weight"] for name in "abc"] == [6.0, 5.0, 5.0]


@pytest.mark.parametrize(("length", "steps"), [({"local_epochs": 3}, 6), ({"local_epochs": None, "local_steps": 5}, 5)])
def test_every_site_reports_the_steps_it_took(length: dict[str, int | None], steps: int, tmp_path: Path) -> None:
    sites = write_hospitals(tmp_path, "a", "b")

    run = run_federation(tmp_path / "run", study_text(rounds=1, training=length), sites)

    assert {name: site["num_steps"] for name, site in run.rounds[0]["sites"].items()} == {"a": steps, "b": steps}


def test_a_request_waits_for_the_next_reply_of_any_site_and_not_for_its_own_alone() -> None:
    released = threading.Event()
    carrier = grid(EchoClientApp(lambda number: released.wait(60) if number == 1 else None), "a", "b", workers=2)
    nodes = carrier.get_node_ids()
    slow, quick = carrier.push_messages([message_to(nodes[0], 1), message_to(nodes[1], 2)])

    (answer,) = wait_for(carrier, [quick])
    nothing = carrier.pull_messages([slow])
    released.set()
    (late,) = wait_for(carrier, [slow])

    assert (number_in(answer), nothing, number_in(late)) == (2, [], 1)


def test_a_reply_that_waits_to_be_fetched_lets_no_other_request_wait() -> None:
    stop = threading.Event()
    carrier = grid(EchoClientApp(lambda number: stop.wait(60) if number == 1 else None), "a", "b", workers=2)
    nodes = carrier.get_node_ids()
    slow, quick = carrier.push_messages([message_to(nodes[0], 1), message_to(nodes[1], 2)])
    assert carrier.pull_messages([slow]) == []  # ends with the quick one's reply
    fetched: list[list[Message]] = []

    asking = threading.Thread(target=lambda: fetched.extend(carrier.pull_messages([slow]) for _ in range(1000)))
    asking.start()
    asking.join(60)  # a thousand waits would take a quarter of an hour

    assert not asking.is_alive()
    assert fetched == [[]] * 1000
    assert number_in(carrier.pull_messages([quick])[0]) == 2
    stop.set()


def test_nobody_waits_in_a_request_when_the_time_of_its_message_ends() -> None:
    stop = threading.Event()
    carrier = grid(EchoClientApp(lambda number: stop.wait(60)), "a")
    (asked,) = carrier.push_messages([message_to(carrier.get_node_ids()[0], 1, ttl=0.9)])

    returned = [carrier.pull_messages([asked]) for _ in range(3)]

    assert returned == [[]] * 3
    assert carrier._jobs, "the message's time was not over yet, so no request had waited for it"
    stop.set()
