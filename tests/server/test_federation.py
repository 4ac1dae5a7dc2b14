"""Whole runs: who takes part, what is pooled, what is withheld, and what never leaves a hospital."""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from sklearn.metrics import roc_auc_score

from client.app import app as client_app
from client.config import read_site_config
from client.evaluation import margins_of_exams, mean_per_patient
from client.prepare import prepare_site
from client.site import Site
from common.messages import bins_of
from common.models import build_model, set_state
from common.study import parse_study
from common.tasks import TrainReply, TrainTask
from server.federation import QuorumError
from tests.tiny_federation import Answer, FaultyClientApp, Run, begin_run, carry_on, run_federation, write_hospitals
from tests.tiny_hospitals import study_text


def result(run: Run) -> dict[str, Any]:
    """What a run came to, without times and names."""
    record = run.record
    return {name: record[name] for name in ("outcome", "selection", "operating_point", "figures", "models")}


# --- the same bytes, in whatever order --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_federation(tmp_path_factory.mktemp("plain") / "run", study_text(), hospitals, workers=1)


def test_run_with_all_sites_is_complete(plain: Run) -> None:
    assert plain.record["outcome"] == "COMPLETE"
    assert plain.record["problems"] == []
    assert [sorted(record["sites"]) for record in plain.rounds] == [["a", "b", "c"]] * 2
    assert plain.record["figures"]["test"]["figures"]["pooled"]["num_recurrence"] == 9


def test_sites_side_by_side_give_the_same_bytes_as_one_after_the_other(
    plain: Run, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    run = run_federation(tmp_path / "run", study_text(), hospitals, workers=3)

    assert result(run) == result(plain)
    assert run.digests == plain.digests


def test_order_in_which_sites_finish_does_not_matter(plain: Run, hospitals: dict[str, Path], tmp_path: Path) -> None:
    others = threading.Semaphore(0)

    class FirstSiteFinishesLast(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            if message.metadata.message_type == "train":
                if message.metadata.dst_node_id == 2:
                    assert others.acquire(timeout=60)
                    assert others.acquire(timeout=60)
                else:
                    others.release()
            return reply

    run = run_federation(tmp_path / "run", study_text(), hospitals, app=FirstSiteFinishesLast(), workers=2)

    assert result(run) == result(plain)
    assert run.digests == plain.digests


def test_number_of_torch_threads_is_each_site_s_own(tmp_path: Path) -> None:
    sites = write_hospitals(tmp_path, "a", "b", "c", splits=(("train", 2, 2), ("validation", 1, 1), ("test", 1, 1)))
    for name, path in sites.items():
        config = yaml.safe_load(path.read_text()) | {"torch_threads": 2 if name == "b" else 1}
        path.write_text(yaml.safe_dump(config))

    one, three = (run_federation(tmp_path / str(n) / "run", study_text(), sites, workers=n) for n in (1, 3))

    assert {name: site["torch_threads"] for name, site in three.record["sites"].items()} == {"a": 1, "b": 2, "c": 1}
    assert three.digests == one.digests


def test_fedprox_with_mu_zero_is_fedavg_and_with_another_is_not(
    plain: Run, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    zero = run_federation(tmp_path / "0" / "run", study_text(training={"fedprox_mu": 0.0}), hospitals)
    other = run_federation(tmp_path / "1" / "run", study_text(training={"fedprox_mu": 1.0}), hospitals)

    assert zero.digests == plain.digests
    assert other.digests[0] != plain.digests[0]


def test_batch_norm_travels_and_its_variances_stay_positive(hospitals: dict[str, Path], tmp_path: Path) -> None:
    run = run_federation(tmp_path / "run", study_text(model={"norm": "batch"}), hospitals)

    state = run.model("final")
    assert run.record["outcome"] == "COMPLETE"
    assert min(array.min() for name, array in state.items() if name.endswith("running_var")) > 0
    # 2 rounds of ceil(8 / 4) steps
    assert state["bn1.num_batches_tracked"] == 4
    assert state["bn1.num_batches_tracked"].shape == ()


# --- quorum and who is who --------------------------------------------------------------------------------------------


def test_missed_quorum_is_invalid_and_the_run_goes_on_once_the_site_is_mended(
    plain: Run, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    def fail(message: Message, answer: Answer) -> Message:
        raise ValueError("broken")

    folder = begin_run(tmp_path / "run", study_text(participation={"min_sites": 3}), hospitals)

    with pytest.raises(QuorumError, match=r"2 of 3 sites gave a usable reply in round 2, the study needs 3") as caught:
        carry_on(folder, hospitals, app=FaultyClientApp("b", fail, only_round=2))
    invalid = Run(folder).record
    mended = carry_on(folder, hospitals)

    assert "Missing: b (failed: the site's program failed (Flower error 2))" in str(caught.value)
    assert "nothing before round 2 is lost" in str(caught.value)
    assert (invalid["outcome"], invalid["rounds_done"]) == ("INVALID", 1)
    assert str(caught.value) in invalid["problems"]
    assert "figures" not in invalid
    assert mended.record["outcome"] == "COMPLETE"
    assert mended.record["num_resumed"] == 1
    assert mended.digests == plain.digests


def test_site_that_is_refused_where_quorum_fails_may_come_back_mended(
    plain: Run, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    def empty(message: Message, answer: Answer) -> Message:
        reply = answer()
        del reply.content["state"]
        return reply

    folder = begin_run(tmp_path / "run", study_text(participation={"min_sites": 3}), hospitals)

    with pytest.raises(QuorumError, match="b \\(refused: the message holds no model state"):
        carry_on(folder, hospitals, app=FaultyClientApp("b", empty))
    mended = carry_on(folder, hospitals)

    assert mended.record["outcome"] == "COMPLETE"
    assert mended.digests == plain.digests


def test_too_few_sites_at_the_start_are_no_run(hospitals: dict[str, Path], tmp_path: Path) -> None:
    study = study_text(participation={"min_sites": 2, "join_timeout_s": 0.3})
    folder = begin_run(tmp_path / "run", study, {}, expected=("a", "b", "c"))

    with pytest.raises(QuorumError, match=r"1 of 3 sites joined, the study needs 2\. Missing: b \(absent: never conn"):
        carry_on(folder, {"a": hospitals["a"]})

    assert Run(folder).record["outcome"] == "INVALID"


def test_site_that_never_comes_is_named_and_the_others_go_on(hospitals: dict[str, Path], tmp_path: Path) -> None:
    folder = begin_run(tmp_path / "run", study_text(participation={"join_timeout_s": 0.3}), {}, expected=("a", "z"))

    run = carry_on(folder, {"a": hospitals["a"]})

    assert run.record["outcome"] == "DEGRADED"
    assert run.record["problems"][0] == "z was not in rounds 1–2: absent: never connected"
    assert "z is not in the test figures: absent: never connected" in run.record["problems"]


def test_site_that_goes_by_another_name_than_it_is_registered_with_is_refused(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", study_text(), {}, expected=("a", "c"))

    run = carry_on(folder, {"a": hospitals["a"], "c": hospitals["b"]})

    reason = "registered as 'c', but its configuration says name: 'b'; make them equal"
    assert run.record["outcome"] == "DEGRADED"
    assert run.record["not_joined"] == {"c": reason}
    assert sorted(run.record["sites"]) == ["a"]


def test_site_in_whose_reply_another_node_takes_its_name_is_not_counted_twice(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", study_text(), {}, identity="claimed", expected=("a", "b"))

    run = carry_on(folder, {"first": hospitals["a"], "second": hospitals["a"]})

    assert run.record["outcome"] == "DEGRADED"
    assert sorted(run.record["sites"]) == ["a"]
    assert "'a' has joined already from another node" in run.record["not_joined"]["b"]


# --- what is pooled ---------------------------------------------------------------------------------------------------


def margins_of(run: Run, site: Path, split: Any) -> tuple[Any, Any]:
    """Margins and labels of a site's patients under the best model, from the prepared images."""
    study = run.folder.read_study()
    patients = prepare_site(read_site_config(site), study).splits[split]
    model = build_model(study.model, num_sequences=3)
    set_state(model, run.model("best"))
    margins = margins_of_exams(model, patients.images, batch_size=study.training.batch_size)
    return (
        mean_per_patient(margins, patients.patient_index.numpy(), patients.num_patients),
        patients.patient_labels.numpy(),
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_pooled_auc_is_that_of_all_patients_together(split: str, plain: Run, hospitals: dict[str, Path]) -> None:
    both = [margins_of(plain, site, split) for site in hospitals.values()]
    margins, labels = (np.concatenate(part) for part in zip(*both, strict=True))

    pooled = plain.record["figures"][split]["figures"]["pooled"]["auc"]

    binned = bins_of(plain.folder.read_study()).index(margins)
    assert len(labels) == 18
    assert pooled["estimate"]["value"] == pytest.approx(roc_auc_score(labels, binned), abs=1e-12)
    assert abs(pooled["estimate"]["value"] - roc_auc_score(labels, margins)) <= pooled["bin_error"] + 1e-12


def test_sensitivity_and_specificity_are_counted_at_the_threshold_frozen_on_validation(
    plain: Run, hospitals: dict[str, Path]
) -> None:
    threshold = plain.record["operating_point"]["threshold"]
    parts = {split: [margins_of(plain, site, split) for site in hospitals.values()] for split in ("validation", "test")}
    (_, _), (margins, labels) = (
        tuple(np.concatenate(part) for part in zip(*parts[split], strict=True)) for split in ("validation", "test")
    )

    counts = plain.record["figures"]["test"]["figures"]["pooled"]["at_threshold"]["counts"]

    called = margins >= float(threshold)
    assert counts == {
        "true_positive": int((called & (labels == 1)).sum()),
        "false_positive": int((called & (labels == 0)).sum()),
        "true_negative": int((~called & (labels == 0)).sum()),
        "false_negative": int((~called & (labels == 1)).sum()),
    }
    validation = plain.record["figures"]["validation"]["figures"]["pooled"]["at_threshold"]
    assert validation["sensitivity"]["value"] >= 0.9


def test_site_below_its_min_cell_trains_but_is_withheld_from_the_pool(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    few = write_hospitals(tmp_path, "few", disclosure={"min_patients": 1, "min_cell": 5, "max_bins": 32})

    run = run_federation(tmp_path / "run", study_text(), {"a": hospitals["a"], "b": hospitals["b"]} | few)

    test = run.record["figures"]["test"]
    assert run.record["outcome"] == "COMPLETE"
    assert run.rounds[0]["sites"]["few"]["status"] == "accepted"
    assert test["missing"] == {"few": "withheld: a class has fewer patients than the site shows"}
    assert sorted(test["figures"]["per_site"]) == ["a", "b"]
    assert test["figures"]["pooled"]["num_recurrence"] == 6


def test_too_few_sites_that_show_their_counts_give_no_pooled_figure_and_no_threshold(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    few = write_hospitals(tmp_path, "few", disclosure={"min_patients": 1, "min_cell": 5, "max_bins": 32})

    run = run_federation(tmp_path / "run", study_text(evaluation={"min_pooled_sites": 2}), {"a": hospitals["a"]} | few)

    why = "the counts of 1 of the 2 sites that the study asks for"
    record = run.record
    assert record["outcome"] == "COMPLETE"
    assert record["operating_point"]["threshold"] is None
    assert record["operating_point"]["reason"] == f"no pooled validation result: {why}"
    for split in ("validation", "test"):
        assert record["figures"][split]["figures"] is None
        assert record["figures"][split]["not_pooled"] == why
    assert record["selection"]["best"] == {"round": 2, "num_patients": 0, "auc": None, "loss": None}


def test_site_without_validation_and_test_patients_trains_with_the_others(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    only_training = write_hospitals(tmp_path, "t", splits=(("train", 4, 4),))

    run = run_federation(tmp_path / "run", study_text(), {"a": hospitals["a"], "b": hospitals["b"]} | only_training)

    assert run.record["outcome"] == "COMPLETE"
    assert [record["sites"]["t"]["status"] for record in run.rounds] == ["accepted", "accepted"]
    assert run.record["figures"]["test"]["missing"] == {"t": "no patients in this split"}


def test_site_of_one_class_is_in_the_pool(hospitals: dict[str, Path], tmp_path: Path) -> None:
    splits = (("train", 4, 0), ("validation", 3, 0), ("test", 3, 0))
    one_class = write_hospitals(tmp_path, "r", splits=splits)

    run = run_federation(tmp_path / "run", study_text(), {"a": hospitals["a"], "b": hospitals["b"]} | one_class)

    assert run.record["outcome"] == "COMPLETE"
    assert run.record["figures"]["test"]["figures"]["pooled"]["num_recurrence"] == 9
    assert run.rounds[0]["class_weights"] == [20 / 24, 20 / 16]
    assert run.rounds[0]["sites"]["r"]["weight"] == 4 * 20 / 24


# --- what never leaves a hospital -------------------------------------------------------------------------------------

SECRET_PATIENT, SECRET_PATH = "Miller-1947", "/data/neuro"


class Recorder(ClientApp):
    """The real ClientApp; keeps the bytes of everything it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        assert not reply.has_error()
        for record in reply.content.values():
            self.sent += repr(dict(record)).encode()
        for arrays in reply.content.array_records.values():
            self.sent += b"".join(array.data for array in arrays.values())
        return reply


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def require_no_trace(text: str, recorder: Recorder, run_folder: Path, logged: str) -> None:
    for where in (recorder.sent, everything_in(run_folder), logged.encode()):
        assert where
        assert text.encode() not in where


def hospital_with_a_patient_called(patient: str, folder: Path, *, damaged: bool) -> dict[str, Path]:
    """Hospital `b`, one of whose training patients has a telling name, and perhaps a damaged volume."""
    sites = write_hospitals(folder, "b")
    home = sites["b"].parent
    (home / "0001_t1.nii.gz").rename(home / f"{patient}_t1.nii.gz")
    if damaged:
        volume = home / f"{patient}_t1.nii.gz"
        volume.write_bytes(volume.read_bytes()[:1000])
    table = home / "table.tsv"
    table.write_text(table.read_text().replace("0001", patient, 1).replace("0001_t1.nii", f"{patient}_t1.nii", 1))
    return sites


@pytest.mark.parametrize("damaged", [True, False], ids=["cannot be read", "is well"])
def test_patient_and_path_stay_at_the_hospital_whether_or_not_its_data_are_fit(
    damaged: bool, hospitals: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hospital = hospital_with_a_patient_called(SECRET_PATIENT, tmp_path / "hospital", damaged=damaged)
    recorder = Recorder()

    run = run_federation(tmp_path / "runs" / "run", study_text(), {"a": hospitals["a"]} | hospital, app=recorder)

    if damaged:
        assert run.record["not_joined"] == {"b": "cannot take part: data"}
    else:
        assert run.record["outcome"] == "COMPLETE"
    require_no_trace(SECRET_PATIENT, recorder, tmp_path / "runs", caplog.text)
    require_no_trace(str(tmp_path / "hospital"), recorder, tmp_path / "runs", caplog.text)


def test_text_of_an_exception_in_the_middle_of_training_stays_at_the_hospital(
    hospitals: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    train = Site.train

    def fail_at_b(site: Site, task: TrainTask) -> TrainReply:
        if site.config.name == "b":
            try:
                raise KeyError(SECRET_PATIENT)
            except KeyError as error:
                raise RuntimeError(f"{SECRET_PATH}/{SECRET_PATIENT}.nii.gz") from error
        return train(site, task)

    monkeypatch.setattr(Site, "train", fail_at_b)
    recorder = Recorder()

    run = run_federation(tmp_path / "runs" / "run", study_text(), hospitals, app=recorder)

    assert run.record["missing_in_rounds"] == {"b": {"failed: internal": [1, 2]}}
    assert "RuntimeError at test_federation.py" in caplog.text
    for secret in (SECRET_PATIENT, SECRET_PATH):
        require_no_trace(secret, recorder, tmp_path / "runs", caplog.text)


def test_record_holds_what_the_sites_said_of_themselves_and_no_more(plain: Run) -> None:
    sites: Mapping[str, Mapping[str, Any]] = plain.record["sites"]

    assert {tuple(sorted(site)) for site in sites.values()} == {
        (
            *("cohort_digests", "crop_centers", "device", "missing_sequences", "num_exams", "num_patients"),
            *("torch_threads", "versions"),
        )
    }
    assert sites["a"]["num_patients"] == {"train": [4, 4], "validation": [3, 3], "test": [3, 3]}
    assert len({json.dumps(site["cohort_digests"]) for site in sites.values()}) == 3


def test_study_that_counts_too_finely_for_a_site_leaves_it_out_by_name(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    shy = write_hospitals(tmp_path, "shy", disclosure={"min_patients": 1, "min_cell": 1, "max_bins": 16})

    run = run_federation(tmp_path / "run", study_text(), {"a": hospitals["a"]} | shy)

    assert run.record["outcome"] == "DEGRADED"
    assert run.record["not_joined"] == {"shy": "cannot take part: disclosure"}
    assert parse_study(run.folder.study.read_text(), origin="study").evaluation.num_bins == 32
