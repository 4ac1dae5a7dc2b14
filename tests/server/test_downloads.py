"""Runs whose sites are sent differences of the global state, or nothing where they keep it: same bytes, fewer sent."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as client_app
from tests.killed_run import Moment, carry_on_in_a_process
from tests.tiny_federation import (
    Act,
    Answer,
    FaultyClientApp,
    Run,
    begin_run,
    carry_on,
    run_federation,
    write_hospitals,
)
from tests.tiny_hospitals import study_text

SCAFFOLD = {"optimizer": "sgd", "momentum": 0.0, "local_epochs": None, "local_steps": 2, "control_variates": True}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_hospitals(tmp_path_factory.mktemp("downloads"), "a", "b", "c")


@pytest.fixture
def fresh(sites: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The same sites with caches of their own, which a test may spoil."""
    home = tmp_path / "sites"
    shutil.copytree(next(iter(sites.values())).parent.parent, home)
    return {name: home / name / path.name for name, path in sites.items()}


def study(download: str = "fp32", **changes: Any) -> str:
    return study_text(communication={"download": download}, **{"rounds": 3, **changes})


class Watched(ClientApp):
    """The real ClientApp; notes how the global state came with each message that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[tuple[str, object]] = []
        self.arrays: list[set[str]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        task = message.content.get("task")
        if isinstance(task, ConfigRecord) and "state-way" in task:
            self.ways.append((message.metadata.group_id, task["state-way"]))
            self.arrays.append(set(message.content.array_records))
        return client_app(message, context)


def ways_by_round(run: Run) -> list[dict[str, list[str]]]:
    return [{name: site["state_down"] for name, site in record["sites"].items()} for record in run.rounds]


def down(run: Run, round: int) -> list[int]:
    return [site["bytes_down"] for site in run.rounds[round - 1]["sites"].values()]


@pytest.mark.parametrize(("download", "share"), [("fp16_delta", 0.5), ("int8_delta", 0.25)])
def test_later_rounds_take_the_bytes_that_the_code_promises(
    download: str, share: float, sites: dict[str, Path], tmp_path: Path
) -> None:
    run = run_federation(tmp_path / "run", study(download), sites)

    assert ways_by_round(run) == [{key: ["whole"] for key in "abc"}] + 2 * [{key: ["difference"] for key in "abc"}]
    for round in (2, 3):
        for first, later in zip(down(run, 1), down(run, round), strict=True):
            assert share * first < later < (share + 0.08) * first
    assert run.record["outcome"] == "COMPLETE"


@pytest.mark.parametrize("download", ["fp32", "fp16_delta", "int8_delta"])
def test_state_that_a_site_has_been_sent_is_not_sent_for_the_test(
    download: str, sites: dict[str, Path], tmp_path: Path
) -> None:
    watched = Watched()

    run = run_federation(tmp_path / "run", study(download), sites, app=watched)

    asked = list(zip(watched.ways, watched.arrays, strict=True))
    tested = [(way, arrays) for (group, way), arrays in asked if group == "test"]
    assert tested == 3 * [("held", set())]
    last = [way for group, way in watched.ways if group == "validation"][:3]
    assert last == 3 * ["whole" if download == "fp32" else "difference"]
    assert run.record["outcome"] == "COMPLETE"


def test_site_that_trains_by_itself_is_sent_the_initial_state_once(sites: dict[str, Path], tmp_path: Path) -> None:
    run = run_federation(tmp_path / "run", study_text(rounds=2, aggregation={"method": "local"}), sites)

    assert ways_by_round(run) == [{key: ["whole"] for key in "abc"}, {key: ["held"] for key in "abc"}]
    assert max(down(run, 2)) < 0.1 * min(down(run, 1))


def test_model_of_whole_states_and_that_of_differences_are_near_and_not_the_same(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    runs = {way: run_federation(tmp_path / way, study(way), sites) for way in ("fp32", "fp16_delta", "int8_delta")}

    exact = runs["fp32"].model("final")
    for way, most in (("fp16_delta", 1e-3), ("int8_delta", 2e-2)):
        coded = runs[way].model("final")
        assert 0 < max(float(np.abs(coded[name] - exact[name]).max()) for name in exact) < most


METHODS: Mapping[str, dict[str, Any]] = {
    "scaffold": {"training": SCAFFOLD},
    "fedprox": {"training": {"fedprox_mu": 0.1, "fedprox_adaptive": True}},
    "fedadam": {"aggregation": {"method": "fedadam"}},
    "fedavgm, coded both ways": {"aggregation": {"method": "fedavgm"}, "upload": "int8_delta"},
    "fedbn": {"model": {"norm": "fedbn"}},
    "silobn": {"model": {"norm": "silobn"}},
    "batch norm": {"model": {"norm": "batch"}},
    "median": {"aggregation": {"method": "median"}, "participation": {"min_sites": 3}},
    "trimmed mean": {"aggregation": {"method": "trimmed_mean"}, "participation": {"min_sites": 3}},
    "ditto": {"personalization": {"method": "ditto"}},
    "fine-tuned": {"personalization": {"method": "fine_tune", "fine_tune_epochs": 1}},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_bytes_whether_sites_are_sent_differences_or_whole_states(
    name: str, sites: dict[str, Path], tmp_path: Path
) -> None:
    changes = dict(METHODS[name])
    coded = {"download": "int8_delta", "upload": changes.pop("upload", "fp32")}
    text = study_text(communication=coded, rounds=2, **changes)

    run = run_federation(tmp_path / "some" / "run", text, sites)
    forgetful = run_federation(tmp_path / "whole" / "run", text, sites, app=Forgetful())

    assert ways_by_round(run)[1] == {key: ["difference"] for key in "abc"}
    assert ways_by_round(forgetful)[1] == {key: ["whole"] for key in "abc"}
    assert run.digests == forgetful.digests
    assert run.record["figures"] == forgetful.record["figures"]
    assert run.record["outcome"] == "COMPLETE"


class Forgetful(ClientApp):
    """The real ClientApp of sites that say that they keep nothing."""

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        values = reply.content.config_records.get("reply")
        if values is not None and "held" in values:
            values["held"] = ""
        return reply


# --- memories that are lost -------------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def older(path: Path) -> None:
    """As after a cache was restored from a backup."""
    path.rename(path.with_name(f"global-{'0' * 64}.safetensors"))


def before_its_answer(site: Path, spoil: Any) -> Act:
    def act(message: Message, answer: Answer) -> Message:
        for path in (site.parent / "cache").rglob("global-*.safetensors"):
            spoil(path)
        return answer()

    return act


@pytest.mark.parametrize("spoil", [delete, damage, truncate, older])
def test_site_that_lost_what_it_kept_is_sent_the_whole_state_and_nothing_else_changes(
    spoil: Any, fresh: dict[str, Path], tmp_path: Path
) -> None:
    undisturbed = run_federation(tmp_path / "one" / "run", study("int8_delta"), fresh)
    app = FaultyClientApp("b", before_its_answer(fresh["b"], spoil), only_round=2)

    run = run_federation(tmp_path / "two" / "run", study("int8_delta"), fresh, app=app)

    second = run.rounds[1]["sites"]
    assert ways_by_round(run)[1] == {"a": ["difference"], "b": ["difference", "whole"], "c": ["difference"]}
    assert second["b"]["bytes_down"] > down(run, 1)[1] + second["a"]["bytes_down"] - 1000
    assert {site["status"] for site in second.values()} == {"accepted"}
    assert ways_by_round(run)[2] == {key: ["difference"] for key in "abc"}
    assert run.digests == undisturbed.digests
    assert run.record["outcome"] == "COMPLETE"
    assert run.record["problems"] == []
    assert run.record["quarantined"] == {}
    assert run.record["figures"] == undisturbed.record["figures"]


def test_site_that_lost_the_state_before_the_test_is_sent_it_again(fresh: dict[str, Path], tmp_path: Path) -> None:
    asked: list[object] = []
    lose = before_its_answer(fresh["b"], delete)

    def act(message: Message, answer: Answer) -> Message:
        asked.append(message.content.config_records["task"]["state-way"])
        return lose(message, answer)

    app = FaultyClientApp("b", act, message_type="evaluate")
    run = run_federation(tmp_path / "run", study(), fresh, app=app)

    assert asked[-2:] == ["held", "whole"]
    assert (run.record["outcome"], run.record["problems"]) == ("COMPLETE", [])


def test_site_that_asks_for_the_whole_state_for_ever_fails_in_its_round_and_is_asked_in_the_next(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    asked: list[object] = []

    def act(message: Message, answer: Answer) -> Message:
        asked.append(message.content.config_records["task"]["state-way"])
        reply = answer()
        protocol = reply.content.config_records["reply"]["protocol"]
        values = ConfigRecord({"protocol": protocol, "failure": "state_missing"})
        return Message(RecordDict({"reply": values}), reply_to=message)

    text = study("int8_delta", participation={"min_sites": 2})
    run = run_federation(tmp_path / "run", text, sites, app=FaultyClientApp("b", act, only_round=2))

    assert asked == ["difference", "whole"]
    assert run.rounds[1]["sites"]["b"]["status"] == "failed"
    assert run.rounds[1]["sites"]["b"]["reason"] == "state_missing"
    assert run.rounds[2]["sites"]["b"]["status"] == "accepted"
    assert ways_by_round(run)[2] == {"a": ["difference"], "b": ["whole"], "c": ["difference"]}
    assert run.record["quarantined"] == {}


# --- runs that are stopped --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment",
    [
        Moment("before", "state-00002.safetensors"),
        Moment("before", "memory-lost-00002.safetensors"),
        Moment("after", "progress.json", 3),
    ],
    ids=["before the state", "before what the code lost", "after round 2"],
)
def test_resumed_run_ends_with_the_bytes_of_one_that_was_not_stopped(
    moment: Moment, sites: dict[str, Path], tmp_path: Path
) -> None:
    text = study("int8_delta")
    undisturbed = run_federation(tmp_path / "one" / "run", text, sites)
    folder = begin_run(tmp_path / "two" / "run", text, sites)

    assert carry_on_in_a_process(folder, sites, kill=moment) == -9
    run = carry_on(folder, sites)

    assert run.digests == undisturbed.digests
    assert (run.folder.model / "final.safetensors").read_bytes() == (
        undisturbed.folder.model / "final.safetensors"
    ).read_bytes()
    assert run.record["figures"] == undisturbed.record["figures"]
    after = 2 if moment.when == "after" else 1
    assert ways_by_round(run)[after] == {key: ["whole"] for key in "abc"}
