"""Runs whose sites send coded updates: fewer bytes, the same checks, and a site that codes wrongly stands alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Message, RecordDict

from common.model_state import Array
from server.global_state import initial_global_state
from tests.tiny_federation import Answer, FaultyClientApp, Run, run_federation, write_hospitals
from tests.tiny_hospitals import study_text


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_hospitals(tmp_path_factory.mktemp("coded"), "a", "b", "c")


def coded_study(upload: str, **changes: Any) -> str:
    return study_text(communication={"upload": upload}, **changes)


def bytes_of(run: Run, way: str) -> int:
    return sum(site[way] for record in run.rounds for site in record["sites"].values())


def test_coded_updates_take_the_bytes_that_they_promise_and_give_nearly_the_same_model(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    runs = {
        upload: run_federation(tmp_path / upload, coded_study(upload, rounds=2), sites)
        for upload in ("fp32", "fp16_delta", "int8_delta")
    }

    up = {upload: bytes_of(run, "bytes_up") for upload, run in runs.items()}
    assert bytes_of(runs["int8_delta"], "bytes_down") == pytest.approx(bytes_of(runs["fp32"], "bytes_down"), rel=1e-3)
    assert up["int8_delta"] < up["fp16_delta"] < up["fp32"]
    exact = runs["fp32"].model("final")
    first = initial_global_state(runs["fp32"].folder.read_study())
    for upload, most in (("fp16_delta", 0.01), ("int8_delta", 0.1)):
        model = runs[upload].model("final")
        moved = distance(exact, first)
        assert 0 < distance(model, exact) < most * moved


def distance(one: dict[str, Array], other: dict[str, Array]) -> float:
    return float(np.sqrt(sum(float(((one[name] - other[name]).astype(np.float64) ** 2).sum()) for name in one)))


def test_run_with_error_feedback_gives_the_same_bytes_again(sites: dict[str, Path], tmp_path: Path) -> None:
    study = coded_study("int8_delta", rounds=2)

    first, second = (run_federation(tmp_path / name / "same", study, sites) for name in ("one", "two"))

    assert first.digests == second.digests


def test_median_and_control_variates_work_on_what_the_updates_stand_for(sites: dict[str, Path], tmp_path: Path) -> None:
    scaffold = {"optimizer": "sgd", "momentum": 0.0, "local_epochs": None, "local_steps": 2, "control_variates": True}
    studies: dict[str, dict[str, Any]] = {
        "median": {"aggregation": {"method": "median"}, "participation": {"min_sites": 3}},
        "scaffold": {"training": scaffold},
    }
    for name, changes in studies.items():
        run = run_federation(tmp_path / name, coded_study("int8_delta", rounds=2, **changes), sites)

        assert run.record["outcome"] == "COMPLETE"
        assert all(site["update_norm"] > 0 for record in run.rounds for site in record["sites"].values())


@pytest.mark.parametrize("case", ["scale", "codes", "state instead"])
def test_site_that_codes_wrongly_is_quarantined_and_the_round_goes_on(
    case: str, sites: dict[str, Path], tmp_path: Path
) -> None:
    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        parts: dict[str, Any] = dict(reply.content)
        if case == "state instead":
            parts["state"] = parts.pop("update")
        else:
            part = "scales" if case == "scale" else "update"
            arrays = dict(parts[part])
            name = "conv1.weight"
            shape = arrays[name].numpy().shape
            bad = np.full(shape, np.nan, np.float32) if case == "scale" else np.ones(shape, np.float32)
            parts[part] = ArrayRecord({**arrays, name: FlowerArray(bad)})
        return Message(RecordDict(parts), reply_to=message)

    run = run_federation(
        tmp_path / "run", coded_study("int8_delta", rounds=2), sites, app=FaultyClientApp("b", act, only_round=1)
    )

    expected = {"scale": "scale of conv1.weight: found NaN", "codes": "expected", "state instead": "no coded update"}
    assert expected[case] in run.rounds[0]["sites"]["b"]["reason"]
    assert [run.rounds[0]["sites"][name]["status"] for name in "abc"] == ["accepted", "refused", "accepted"]
    assert run.rounds[1]["sites"]["b"]["status"] == "quarantined"
    assert run.record["outcome"] == "DEGRADED"
