"""Rounds with a faulty site among three: the run goes on without it, unharmed, and says who and why."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from common.model_state import non_finite_entry
from common.record_values import PROTOCOL
from common.study import parse_study
from common.tasks import SiteManifest
from server.rounds import class_counts, class_weights
from tests.tiny_federation import Act, Answer, FaultyClientApp, Run, run_federation
from tests.tiny_hospitals import study_text

TWO_SITES_SUFFICE = {"min_sites": 2}
WEIGHT = "conv1.weight"


@pytest.fixture(scope="module")
def healthy(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over the two sites that stay healthy. All sites have as many patients of each class, so that the class
    weights are the same with two sites as with three."""
    two = {name: hospitals[name] for name in ("a", "c")}
    return run_federation(tmp_path_factory.mktemp("healthy") / "run", study_text(participation=TWO_SITES_SUFFICE), two)


def with_values(**changes: Any) -> Act:
    """Spoil the reply's configuration; a value of None is left out."""

    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        config = dict(reply.content.config_records["reply"])
        for name, value in changes.items():
            config[name.replace("_", "-")] = value
        kept = {name: value for name, value in config.items() if value is not None}
        return Message(RecordDict({**reply.content, "reply": ConfigRecord(kept)}), reply_to=message)

    return act


def with_state(spoil: Callable[[dict[str, FlowerArray]], object]) -> Act:
    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        arrays = dict(reply.content.array_records["state"])
        spoil(arrays)
        return Message(RecordDict({**reply.content, "state": ArrayRecord(arrays)}), reply_to=message)

    return act


def with_array(change: Callable[[Any], Any]) -> Act:
    def spoil(arrays: dict[str, FlowerArray]) -> None:
        arrays[WEIGHT] = FlowerArray(change(arrays[WEIGHT].numpy().copy()))

    return with_state(spoil)


def with_one(number: float) -> Act:
    def change(array: Any) -> Any:
        array.flat[5] = number
        return array

    return with_array(change)


def with_statistics(**changes: list[int]) -> Act:
    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        statistics = MetricRecord({**reply.content.metric_records["statistics"], **changes})
        return Message(RecordDict({**reply.content, "statistics": statistics}), reply_to=message)

    return act


def with_more_validation_patients(message: Message, answer: Answer) -> Message:
    """Counts that agree with each other and not with what was registered: the cohort of ten sites in one."""
    reply = answer()
    counts = MetricRecord()
    for name, values in reply.content.metric_records["statistics"].items():
        assert isinstance(values, list)
        counts[name] = [10 * int(count) for count in values]
    return Message(RecordDict({**reply.content, "statistics": counts}), reply_to=message)


def with_garbage(message: Message, answer: Answer) -> Message:
    return Message(RecordDict({"reply": ConfigRecord({"protocol": [b"\xff"], "x": True})}), reply_to=message)


def with_nothing(message: Message, answer: Answer) -> Message:
    return Message(RecordDict(), reply_to=message)


def replay_of_round_one() -> Act:
    """In every round the reply to the first one."""
    first: list[RecordDict] = []

    def act(message: Message, answer: Answer) -> Message:
        if not first:
            first.append(answer().content)
        return Message(first[0], reply_to=message)

    return act


REFUSED: dict[str, tuple[Act, str]] = {
    "NaN": (with_one(np.nan), "conv1.weight holds NaN or infinite numbers, expected finite ones"),
    "infinity": (with_one(-np.inf), "conv1.weight holds NaN or infinite numbers, expected finite ones"),
    "shape that broadcasts": (with_array(lambda array: array[:1]), "conv1.weight has shape (1, 3, 7, 7, 7)"),
    "type": (with_array(lambda array: array.astype(np.float64)), "type float64, expected (8, 3, 7, 7, 7) and float32"),
    "missing array": (with_state(lambda arrays: arrays.pop(WEIGHT)), "lacks 'conv1.weight' and has nothing"),
    "extra array": (with_state(lambda arrays: arrays.update(more=arrays[WEIGHT])), "lacks nothing and has 'more'"),
    "no patients": (with_values(num_patients=[0, 0]), "trained on 0 patients, expected 8"),
    "a milliard patients": (with_values(num_patients=[10**9, 0]), "trained on 1000000000 patients (1000000000, 0)"),
    "one patient too many": (with_values(num_patients=[4, 5]), "registered 8 (4, 4)"),
    "negative patients": (with_values(num_patients=[-4, 4]), "'num-patients' is -4, expected 0 to"),
    "missing value": (with_values(num_steps=None), "'num-steps' is missing; both sides need the same version"),
    "round to come": (with_values(round=2), "a reply to round 2, expected round 1"),
    "another study": (with_values(study_digest="0" * 64), "study 000000000000, expected"),
    "another cohort": (with_values(cohort="0" * 64), "the validation patients are not those registered"),
    "another split": (with_values(split="test"), "evaluated the test patients, expected validation"),
    "loss without end": (with_values(train_loss=float("inf")), "'train-loss' is inf"),
    "garbage": (with_garbage, f"the message is of protocol list, this program speaks {PROTOCOL}"),
    "nothing": (with_nothing, "the message has no 'reply' part"),
    "counts at odds": (with_statistics(num_patients=[3, 4]), "histogram_necrosis does not add up to its num_patients"),
    "counts of others": (with_more_validation_patients, "counted (30, 30) validation patients, registered (3, 3)"),
    "huge update": (with_array(lambda array: array + 1e6), "more than 10 times the others' median"),
}


@pytest.mark.parametrize(("act", "reason"), REFUSED.values(), ids=REFUSED)
def test_broken_reply_is_refused_and_the_run_is_that_of_the_healthy_sites(
    act: Act, reason: str, hospitals: dict[str, Path], healthy: Run, tmp_path: Path
) -> None:
    study = study_text(participation=TWO_SITES_SUFFICE)

    run = run_federation(tmp_path / "run", study, hospitals, app=FaultyClientApp("b", act, only_round=1))

    first, second = (record["sites"]["b"] for record in run.rounds)
    assert first["status"] == "refused"
    assert reason in first["reason"]
    assert second == {**second, "status": "quarantined", "reason": first["reason"]}
    assert run.record["outcome"] == "DEGRADED"
    assert run.record["quarantined"] == {"b": first["reason"]}
    assert f"b was not in round 1: refused: {first['reason']}" in run.record["problems"]
    assert non_finite_entry(run.model("final")) is None
    assert run.digests == healthy.digests


def test_replayed_reply_is_refused_in_the_round_it_is_replayed_in(hospitals: dict[str, Path], tmp_path: Path) -> None:
    study = study_text(participation=TWO_SITES_SUFFICE)

    run = run_federation(tmp_path / "run", study, hospitals, app=FaultyClientApp("b", replay_of_round_one()))

    assert [record["sites"]["b"]["status"] for record in run.rounds] == ["accepted", "refused"]
    assert run.rounds[1]["sites"]["b"]["reason"] == "a reply to round 1, expected round 2"
    assert run.record["outcome"] == "DEGRADED"


def test_site_whose_program_fails_is_named_and_asked_again(
    hospitals: dict[str, Path], healthy: Run, tmp_path: Path
) -> None:
    def fail(message: Message, answer: Answer) -> Message:
        raise OSError("/data/Miller/t1.nii.gz")

    study = study_text(participation=TWO_SITES_SUFFICE)

    run = run_federation(tmp_path / "run", study, hospitals, app=FaultyClientApp("b", fail, only_round=1))

    first, second = (record["sites"]["b"] for record in run.rounds)
    assert (first["status"], first["reason"]) == ("failed", "the site's program failed (Flower error 2)")
    assert second["status"] == "accepted"
    assert run.record["outcome"] == "DEGRADED"
    assert run.digests[0] == healthy.digests[0]


def test_site_that_says_it_cannot_is_named_with_its_code(
    hospitals: dict[str, Path], healthy: Run, tmp_path: Path
) -> None:
    app = FaultyClientApp("b", with_values(failure="data"))

    run = run_federation(tmp_path / "run", study_text(participation=TWO_SITES_SUFFICE), hospitals, app=app)

    assert run.record["missing_in_rounds"] == {"b": {"failed: data": [1, 2]}}
    assert "b was not in rounds 1–2: failed: data" in run.record["problems"]
    assert run.digests == healthy.digests


def test_site_that_hangs_is_left_behind_at_the_deadline(
    hospitals: dict[str, Path], healthy: Run, tmp_path: Path
) -> None:
    released = threading.Event()

    def hang(message: Message, answer: Answer) -> Message:
        released.wait()
        return answer()

    study = study_text(participation=TWO_SITES_SUFFICE | {"round_timeout_s": 8})

    try:
        run = run_federation(tmp_path / "run", study, hospitals, app=FaultyClientApp("b", hang), workers=3)
    finally:
        released.set()

    assert run.record["missing_in_rounds"]["b"] == {
        "failed: no reply before the deadline": [1],
        "failed: not connected": [2],
    }
    assert run.record["outcome"] == "DEGRADED"
    assert [record["sites"]["a"]["status"] for record in run.rounds] == ["accepted", "accepted"]
    assert run.digests == healthy.digests


def test_update_of_a_faulty_site_leaves_no_trace_in_the_run_folder(hospitals: dict[str, Path], tmp_path: Path) -> None:
    study = study_text(participation=TWO_SITES_SUFFICE)

    run = run_federation(tmp_path / "run", study, hospitals, app=FaultyClientApp("b", with_one(np.nan)))

    assert list(run.folder.replies.iterdir()) == []
    for line in run.folder.rounds.read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))


def test_class_weights_are_of_the_patients_of_all_sites_together() -> None:
    def manifest(num_recurrence: int, num_necrosis: int) -> SiteManifest:
        counts = {"train": (num_recurrence, num_necrosis), "validation": (0, 0), "test": (0, 0)}
        return SiteManifest("a", "", counts, {}, {}, {}, {}, "cpu", 1, {})  # type: ignore[arg-type]

    manifests = {"a": manifest(12, 0), "b": manifest(3, 3), "c": manifest(1, 1)}
    study = parse_study(study_text(), origin="study")
    unweighted = parse_study(study_text(training={"class_weighting": "none"}), origin="study")

    assert class_counts(study, manifests) == (16, 4)
    assert class_weights(study, (16, 4)) == (20 / 32, 20 / 8)
    assert class_weights(unweighted, (16, 4)) == (1.0, 1.0)
    assert class_weights(study, (12, 0)) == (0.5, 0.0)


def test_patients_of_a_site_that_is_held_out_do_not_count_in_the_class_weights() -> None:
    def manifest(num_recurrence: int, num_necrosis: int) -> SiteManifest:
        counts = {"train": (num_recurrence, num_necrosis), "validation": (0, 0), "test": (0, 0)}
        return SiteManifest("a", "", counts, {}, {}, {}, {}, "cpu", 1, {})  # type: ignore[arg-type]

    study = parse_study(study_text(participation={"min_sites": 1, "held_out": ["b"]}), origin="study")

    assert class_counts(study, {"a": manifest(12, 2), "b": manifest(3, 3)}) == (12, 2)
