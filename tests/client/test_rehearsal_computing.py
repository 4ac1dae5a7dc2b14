"""The rehearsed round: real steps on real patients in a process of its own, disks, memory, and the estimate."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from client.config import SiteConfig, read_site_config
from client.kit import Kit
from client.prepare import prepare_site
from client.rehearsal.computing import (
    TrialError,
    estimate_round,
    judge_round,
    rehearse_computing,
    start_trial,
    steps_per_round,
)
from client.rehearsal.findings import shown_bytes, shown_seconds
from client.rehearsal.resources import ModelSize, check_disks, check_gpu_memory, check_memory, model_size
from client.rehearsal.trial import MAX_STEPS, Trial, run_trial
from client.training import TrainingOutcome, train_locally
from common.models import initial_state
from common.study import Study, parse_study
from tests.tiny_hospitals import study_text, write_tiny_hospital

EXAM_BYTES = 16**3 * 3 * 4
SIZE = ModelSize(state_bytes=10_000_000, trainable_bytes=8_000_000)
SCAFFOLD = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "local_steps": 2,
    "local_epochs": None,
    "control_variates": True,
}
TRIAL = Trial(
    imported_at=0.0,
    open_s=2.0,
    first_step_s=5.0,
    step_s=1.0,
    num_timed=5,
    loss=0.7,
    validation_s=3.0,
    num_training=10,
    num_validation=4,
    device="cpu, torch threads: 1",
    peak_bytes=10**9,
    gpu_peak_bytes=None,
    gpu_free_bytes=None,
)


def study(**changes: object) -> Study:
    return parse_study(study_text(**changes), origin="study")


@pytest.fixture(scope="module")
def site_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hospital(tmp_path_factory.mktemp("hospital"), "a")


@pytest.fixture(scope="module")
def config(site_file: Path) -> SiteConfig:
    config = read_site_config(site_file)
    prepare_site(config, study())
    return config


def test_a_round_s_work_is_done_and_measured_and_leaves_nothing_behind(site_file: Path, config: SiteConfig) -> None:
    patient = {"round_timeout_s": 36_000}  # however busy this machine is
    heavy = study(training={"keep_optimizer_state": True, "fedprox_mu": 0.1}, participation=patient)
    before = set(site_file.parent.rglob("*"))

    findings = rehearse_computing(config, site_file, heavy, size=model_size(heavy))

    assert [(finding.name, finding.level) for finding in findings] == [
        (name, "ok") for name in ("device", "step", "memory", "round")
    ]
    assert f"(median of {MAX_STEPS} after a first of " in findings[1].found
    assert "MB measured" in findings[2].found
    for part in ("of the 10 h that the study waits", "start ", "validation ", "training ", "transfer of "):
        assert part in findings[3].found
    # Digests of files are remembered once the files are some seconds old.
    assert set(site_file.parent.rglob("*")) - before <= {config.cache / "digests.json"}


def test_a_round_that_cannot_be_done_in_the_study_s_time_fails(site_file: Path, config: SiteConfig) -> None:
    hasty = study(participation={"round_timeout_s": 0.2})  # less than a process takes to start

    findings = rehearse_computing(config, site_file, hasty, size=model_size(hasty))

    assert findings[-1].name == "round"
    assert findings[-1].level == "FAIL"
    assert "longer participation.round_timeout_s" in findings[-1].advice


def test_a_device_that_is_not_there_fails_with_what_to_write(site_file: Path, config: SiteConfig) -> None:
    elsewhere = site_file.with_name("elsewhere.yaml")
    elsewhere.write_text(yaml.safe_dump(yaml.safe_load(site_file.read_text()) | {"device": "cuda:77"}))

    findings = rehearse_computing(config, elsewhere, study(), size=SIZE)

    assert [(finding.name, finding.level) for finding in findings] == [("step", "FAIL")]
    assert "cuda:77 is not among them" in findings[0].found


@pytest.mark.parametrize(
    ("program", "told"),
    [
        pytest.param("kill -9 $$", "ended from outside \\(signal 9\\), probably for want of memory", id="killed"),
        pytest.param("echo 'KeyError: x' >&2; exit 1", "a fault of this program: KeyError: x", id="our own fault"),
        pytest.param("exec sleep 30", "not done within 300 ms", id="hangs"),
    ],
)
def test_a_process_that_does_not_come_through_is_told(
    program: str, told: str, tmp_path: Path, site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))

    with pytest.raises(TrialError, match=told):
        start_trial(site_file, study(), limit_s=0.3 if "sleep" in program else 30)


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        pytest.param({"local_epochs": 3}, 9, id="three passes of ten exams in fours"),
        pytest.param({"local_epochs": None, "local_steps": 7}, 7, id="a number of steps"),
    ],
)
def test_steps_of_a_round_follow_the_study(training: dict[str, object], steps: int) -> None:
    assert steps_per_round(study(training=training), num_exams=10) == steps


@pytest.mark.parametrize(
    ("mbit", "transfer_s", "total_s"), [pytest.param(None, None, 14, id="unknown"), pytest.param(16, 10, 24, id="told")]
)
def test_a_round_is_the_sum_of_its_parts(mbit: float | None, transfer_s: float | None, total_s: float) -> None:
    estimate = estimate_round(TRIAL, study(), import_s=2.0, size=SIZE, max_bandwidth_mbit=mbit)

    assert estimate.start_s == 4.0  # imports and loading
    assert estimate.training_s == 7.0  # ten exams in fours: the first step and two more
    assert estimate.transfer_s == transfer_s  # 10 MB each way are 160 megabits
    assert estimate.total_s == total_s


@pytest.mark.parametrize(
    ("limit_s", "level"),
    [pytest.param(28, "ok", id="half"), pytest.param(27, "warning", id="over half"), pytest.param(13, "FAIL", id="no")],
)
def test_a_round_is_held_against_its_time_limit(limit_s: float, level: str) -> None:
    estimate = estimate_round(TRIAL, study(), import_s=2.0, size=SIZE, max_bandwidth_mbit=None)

    finding = judge_round(estimate, study(participation={"round_timeout_s": limit_s}), size=SIZE)

    assert finding.level == level
    assert "transfer of 20.0 MB in both directions together not known" in finding.found


@pytest.mark.parametrize(
    ("free", "level"),
    [
        pytest.param(20 * EXAM_BYTES - 1, "FAIL", id="too little"),
        pytest.param(20 * EXAM_BYTES, "warning", id="just enough"),
        pytest.param(40 * EXAM_BYTES, "ok", id="plenty"),
    ],
)
def test_room_on_the_cache_s_disk_is_held_against_the_exams(free: int, level: str, tmp_path: Path) -> None:
    config = read_site_config(write_tiny_hospital(tmp_path, "a"))

    (finding,) = check_disks(config, study(), num_exams=20, size=SIZE, kit=None, free=lambda _: free)

    assert finding.level == level
    assert "for 20 exams still to prepare" in finding.found


def test_exams_in_the_cache_need_no_room_and_what_the_kit_and_the_optimiser_take_does(
    config: SiteConfig, tmp_path: Path
) -> None:
    kit = Kit("h:1", tmp_path / "ca.crt", tmp_path / "site.key", None, None)
    keeping = study(training={"keep_optimizer_state": True})

    (finding,) = check_disks(config, keeping, num_exams=21, size=SIZE, kit=kit, free=lambda _: 10**12)

    assert finding.name == "disk"  # both folders lie on one
    assert "for 1 exam still to prepare" in finding.found
    assert "48.0 MB for the optimiser's state" in finding.found  # two moments of 8 MB, three times
    assert "20.0 MB for the model on its way, 50.0 MB for logs" in finding.found


@pytest.mark.parametrize(
    ("changes", "told", "bytes_needed"),
    [
        pytest.param({"personalization": {"method": "ditto"}}, "40.0 MB for this site's own model", 4e7, id="ditto"),
        pytest.param({"aggregation": {"method": "local"}}, "40.0 MB for this site's own model", 4e7, id="local"),
        pytest.param(
            {"personalization": {"method": "ditto"}, "training": {"keep_optimizer_state": True}},
            "96.0 MB for the optimiser's state",
            13.6e7,
            id="two optimisers",
        ),
        pytest.param({"training": SCAFFOLD}, "24.0 MB for control variates", 2.4e7, id="scaffold"),
        pytest.param({"personalization": {"method": "fine_tune"}}, "20.0 MB for the fine-tuned", 2e7, id="fine-tuning"),
    ],
)
def test_room_is_counted_for_what_a_method_keeps(
    changes: dict[str, object], told: str, bytes_needed: float, config: SiteConfig
) -> None:
    agreed = study(**changes)

    (finding,) = check_disks(config, agreed, num_exams=20, size=SIZE, kit=None, free=lambda _: int(bytes_needed) - 1)

    assert told in finding.found
    assert finding.level == "FAIL"


def test_control_variates_travel_beside_the_model_and_a_site_by_itself_sends_none() -> None:
    seconds = [
        estimate_round(TRIAL, study(**changes), import_s=0.0, size=SIZE, max_bandwidth_mbit=8.0).transfer_s
        for changes in ({}, {"training": SCAFFOLD}, {"aggregation": {"method": "local"}})
    ]

    assert seconds == [20.0, 36.0, 10.0]  # 8 Mbit are 1 MB; the model is 10, what is trained of it 8


def test_a_step_of_ditto_is_two_steps(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def counted(*args: Any, **settings: Any) -> TrainingOutcome:
        steps.append(1)
        return train_locally(*args, **settings)

    monkeypatch.setattr("client.rehearsal.trial.train_locally", counted)

    plain, ditto = (
        run_trial(config, study(personalization={"method": method}), imported_at=0.0) for method in ("none", "ditto")
    )

    assert len(steps) == (1 + plain.num_timed) + 2 * (1 + ditto.num_timed)
    assert ditto.loss == plain.loss  # of the global model, which is the same


def test_the_model_s_size_is_that_of_what_travels() -> None:
    state = initial_state(study().model, num_sequences=3, seed=1)

    size = model_size(study())

    assert size.state_bytes == sum(array.nbytes for array in state.values())
    assert size.trainable_bytes == size.state_bytes  # group norm has no buffers


@pytest.mark.parametrize(
    ("available", "level"),
    [
        pytest.param(1_295_999_999, "FAIL", id="too little"),
        pytest.param(1_300_000_000, "warning", id="scarcely"),
        pytest.param(1_620_000_000, "ok", id="enough"),
    ],
)
def test_the_measured_peak_is_held_against_the_memory(available: int, level: str) -> None:
    finding = check_memory(study(), peak_bytes=10**9, available=available, size=SIZE)

    assert finding.level == level  # 1000 measured, 4 × 10 for messages, 256 for Flower: 1296 MB
    assert "1.3 GB needed" in finding.found


def test_a_system_that_does_not_tell_its_memory_is_a_warning() -> None:
    assert check_memory(study(), peak_bytes=None, available=1, size=SIZE).level == "warning"


@pytest.mark.parametrize(("free", "level"), [(10**9, "warning"), (2 * 10**9, "ok")])
def test_memory_of_a_gpu_is_held_against_a_step(free: int, level: str) -> None:
    assert check_gpu_memory(study(), peak_bytes=9 * 10**8, free_bytes=free).level == level


def test_sizes_and_times_read_well() -> None:
    assert [shown_bytes(count) for count in (12, 1200, 57_600_000, 3e9)] == ["12 bytes", "1.2 kB", "57.6 MB", "3.0 GB"]
    assert [shown_seconds(s) for s in (0.0001, 0.0456, 3.14, 60, 125, 3600, 5400)] == [
        *("under 1 ms", "46 ms", "3.1 s", "1 min", "2 min 5 s", "1 h", "1 h 30 min"),
    ]
