"""The comparison on one machine: same work in every arm, same patients under every arm, figures that add up."""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from client.cohort import load_cohort
from client.config import SiteConfig, read_site_config
from client.evaluation import margins_of_exams
from client.prepare import prepare_site
from common.errors import ConfigError
from common.metrics.auc import pooled_auc
from common.metrics.confusion import Confusion
from common.metrics.paired import KeptScores, site_comparison, site_difference
from common.study import parse_study
from common.tasks import ModelOfRun
from server.report.comparison_page import ComparisonContents, render_comparison
from simulations.cli import main
from simulations.compare import scores as scores_module
from simulations.compare.arms import (
    ArmRun,
    digest_of_comparison,
    num_batches_of_run,
    require_arms,
    runs_of_arms,
    studies_of_arm,
    with_equal_steps,
)
from simulations.compare.command import Plan, _pooled_sites, _remarks, _runs, compare_command, sum_up
from simulations.compare.figures import ArmSeed, arm_row, difference_row, gain_rows
from simulations.compare.pooled_site import share_cache, write_pooled_site
from simulations.compare.scores import SiteScores, _test_abroad, scores_of_run
from simulations.side_by_side import carry_run
from simulations.single_machine import read_sites
from simulations.studies import study_yaml
from tests.tiny_federation import write_hospitals
from tests.tiny_hospitals import study_text

STUDY = parse_study(
    study_text(
        rounds=1,
        training={"local_epochs": None, "local_steps": 2},
        participation={"min_sites": 2},
        evaluation={"num_bins": 64, "min_pooled_sites": 3},
        split={"validation": 0.25, "test": 0.25},
    ),
    origin="study",
)
SITES = ("a", "b", "c")


def scores(site: str, labels: list[int], index: list[int]) -> SiteScores:
    patients = tuple(f"{site}{number}" for number in range(len(labels)))
    return SiteScores(patients, KeptScores(np.array(index), np.array(labels), 8))


# --- arms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["local", "pooled", "pooled_long", "leave_one_out", "fedavg", "fedbn", "ditto"])
def test_every_arm_has_the_same_optimiser_rounds_and_rules(arm: str) -> None:
    for study in studies_of_arm(STUDY, arm, SITES).values():
        assert study.rounds == STUDY.rounds
        assert study.training.optimizer == STUDY.training.optimizer
        assert study.training.learning_rate == STUDY.training.learning_rate
        assert study.evaluation.operating_point == STUDY.evaluation.operating_point
        assert (study.split, study.seed) == (STUDY.split, STUDY.seed)


def test_every_model_takes_the_same_steps_and_pooled_sees_as_many_patients() -> None:
    assert {s.training.local_steps for arm in ("local", "pooled", "fedavg", "leave_one_out")
            for s in studies_of_arm(STUDY, arm, SITES).values()} == {2}  # fmt: skip
    assert studies_of_arm(STUDY, "pooled", SITES)[""].training.batch_size == 3 * 4
    assert studies_of_arm(STUDY, "pooled_long", SITES)[""].training.local_steps == 3 * 2


def test_federated_and_pooled_arms_cost_the_same_batches() -> None:
    long = studies_of_arm(STUDY, "pooled_long", SITES)[""]

    assert {num_batches_of_run(STUDY, arm, 3) for arm in ("pooled", "pooled_long", "fedavg")} == {6}
    assert long.rounds * (long.training.local_steps or 0) == 6
    assert num_batches_of_run(STUDY, "ditto", 3) == 12  # the personal model is trained too


def test_site_that_is_left_out_never_trains() -> None:
    studies = studies_of_arm(STUDY, "leave_one_out", SITES)

    assert {site: study.participation.held_out for site, study in studies.items()} == {s: (s,) for s in SITES}


@pytest.mark.parametrize(
    ("arm", "sites", "least"),
    [
        ("local", SITES, 1),
        ("pooled", SITES, 1),
        ("leave_one_out", SITES, 2),
        ("fedavg", SITES, 3),
        ("leave_one_out", ("a", "b"), 1),
        ("fedavg", ("a", "b"), 2),
        ("fedbn", ("a", "b"), 2),
        ("fedavg", ("a", "b", "c", "d", "e"), 3),
    ],
)
def test_pooled_figures_ask_for_no_more_sites_than_validate(arm: str, sites: tuple[str, ...], least: int) -> None:
    assert {study.evaluation.min_pooled_sites for study in studies_of_arm(STUDY, arm, sites).values()} == {least}


def test_names_of_runs_tell_comparisons_apart_and_stay_where_out_and_sites_do(tmp_path: Path) -> None:
    def names(out: str, *sites: str) -> set[str]:
        paths = {site: tmp_path / site for site in sites}
        runs = runs_of_arms(STUDY, ["local", "fedavg"], seeds=[3], sites=paths, pooled={}, out=tmp_path / out)
        return {run.planned.name for run in runs}

    first = names("one", "a", "b")

    assert all(name.rpartition("-")[2].isalnum() for name in first)
    assert first == names("one", "b", "a") == names("two/../one", "a", "b")
    assert not first & names("two", "a", "b")
    assert not first & names("one", "a", "b", "c")


def test_epochs_become_the_mean_number_of_steps() -> None:
    epochs = parse_study(study_text(training={"local_epochs": 2}), origin="study")

    study = with_equal_steps(epochs, {"a": 20, "b": 5})  # 5 and 2 batches of 4 an epoch

    assert (study.training.local_epochs, study.training.local_steps) == (None, 7)
    assert with_equal_steps(STUDY, {"a": 20}) == STUDY


def test_unknown_arm_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="arms fedsgd: expected some of local, pooled, pooled_long, leave_one_out"):
        require_arms(["local", "fedsgd"])


def test_pooled_batch_that_no_study_may_have_is_refused() -> None:
    large = parse_study(study_text(training={"local_epochs": None, "local_steps": 1, "batch_size": 100}), origin="s")

    with pytest.raises(ConfigError, match="arm pooled: 3 sites of 100 patients a step are a batch of 300"):
        studies_of_arm(large, "pooled", SITES)


# --- the pooled site --------------------------------------------------------------------------------------------------


def test_pooled_site_has_every_patient_in_its_own_split_and_prepares_nothing_twice(tmp_path: Path) -> None:
    paths = write_hospitals(tmp_path, "a", "b")
    sites = {name: read_site_config(path) for name, path in paths.items()}
    prepared = {name: prepare_site(config, STUDY) for name, config in sites.items()}

    share_cache(tmp_path / "pooled" / "cache", sites)
    pooled = read_site_config(write_pooled_site(tmp_path / "pooled" / "seed-3", sites, STUDY))
    cohort = load_cohort(pooled, STUDY)
    found = prepare_site(pooled, STUDY)

    for name in sites:
        for patient, split in prepared[name].cohort.split_of.items():
            assert cohort.split_of[f"{name}--{patient}"] == split
    assert len(cohort.split_of) == 40
    assert found.num_from_cache == 40
    np.testing.assert_array_equal(
        found.splits["test"].images[:6].numpy(), prepared["a"].splits["test"].images[:].numpy()
    )


# --- figures ----------------------------------------------------------------------------------------------------------

A = [0, 0, 0, 1, 1]
GOOD = {"x": scores("x", A, [0, 1, 3, 2, 4]), "y": scores("y", A, [0, 1, 2, 5, 6])}
POOR = {"x": scores("x", A, [3, 1, 4, 2, 4]), "y": scores("y", A, [2, 6, 2, 5, 1])}


def test_one_seed_has_the_figures_of_its_patients() -> None:
    row = arm_row("fedavg", [ArmSeed(GOOD, Confusion(3, 1, 5, 1))], confidence=0.95)

    pool = KeptScores(np.array([0, 1, 3, 2, 4, 0, 1, 2, 5, 6]), np.array(A + A), 8)
    expected = pooled_auc(pool.histogram()).estimate
    assert row.auc is not None
    assert (row.auc.value, row.auc.low) == pytest.approx((expected.value, expected.low))
    assert row.within_site_auc is not None
    assert row.within_site_auc.value == pytest.approx((5 + 6) / 12)
    assert row.sensitivity is not None
    assert row.sensitivity.value == 0.75
    assert row.spread is None


def test_local_models_have_no_pooled_auc_and_the_page_says_why() -> None:
    row = arm_row("local", [ArmSeed(GOOD, None)], confidence=0.95)

    assert row.auc is None
    assert "no common scale" in row.remark
    pair = (ArmSeed(GOOD, None), ArmSeed(POOR, None))
    assert difference_row("fedavg", "local", [pair], confidence=0.95).pooled is None


def test_gain_of_a_site_over_one_seed_is_delong_s() -> None:
    (x, y) = gain_rows("fedavg", "local", [(ArmSeed(GOOD, None), ArmSeed(POOR, None))], confidence=0.95)

    expected = site_difference(site_comparison(GOOD["x"].scores, POOR["x"].scores))
    assert (x.site, x.first_auc, x.second_auc) == ("x", expected.first, expected.second)
    assert (x.gain.value, x.gain.low) == pytest.approx((expected.difference.value, expected.difference.low))
    assert (y.num_recurrence, y.num_necrosis) == (3, 2)


def test_seeds_on_the_same_patients_widen_nothing_and_narrow_nothing_where_they_agree() -> None:
    pair = (ArmSeed(GOOD, None), ArmSeed(POOR, None))

    once = difference_row("fedavg", "fedprox", [pair], confidence=0.95)
    thrice = difference_row("fedavg", "fedprox", [pair] * 3, confidence=0.95)

    assert once.pooled is not None
    assert thrice.pooled is not None
    assert thrice.pooled.low == pytest.approx(once.pooled.low)


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, ComparisonContents, dict[str, Any]]:
    """Every fixed arm and FedAvg over three hospitals, each run to its end in this process."""
    folder = tmp_path_factory.mktemp("compare")
    paths = write_hospitals(folder, *SITES, splits=(("train", 3, 3), ("validation", 2, 2), ("test", 3, 2)))
    arms = ("local", "pooled", "pooled_long", "leave_one_out", "fedavg")
    plan = Plan(STUDY, arms, (3,), folder / "out", 1)
    sites = read_sites(list(paths.values()))
    pooled = _pooled_sites(plan, sites)
    runs = _runs(plan, paths, pooled)
    for run in runs:
        carry_run(run.planned, while_running=lambda: None)
    contents, measured = sum_up(plan, runs, sites, {seed: read_site_config(path) for seed, path in pooled.items()})
    return plan, contents, measured


def runs_and_sites(plan: Plan) -> tuple[list[ArmRun], dict[str, tuple[Path, SiteConfig]]]:
    sites = read_sites([plan.out.parent / site / "site.yaml" for site in SITES])
    return _runs(plan, {name: path for name, (path, _) in sites.items()}, _pooled_sites(plan, sites)), sites


def test_every_run_of_three_sites_chooses_its_round_and_its_threshold(
    compared: tuple[Plan, ComparisonContents, dict[str, Any]],
) -> None:
    runs, _ = runs_and_sites(compared[0])

    assert len(runs) == 9
    for run in runs:
        record = run.planned.record()
        assert record is not None
        assert record["selection"]["best"]["auc"] is not None, run.planned.name
        assert record["operating_point"]["threshold"] is not None, run.planned.name


def test_comparisons_in_other_folders_leave_the_scores_of_this_one_alone(
    compared: tuple[Plan, ComparisonContents, dict[str, Any]],
) -> None:
    plan, contents, measured = compared
    runs, sites = runs_and_sites(plan)
    paths = {name: path for name, (path, _) in sites.items()}
    two = {site: paths[site] for site in ("a", "b")}
    others = []
    for out, members in (("second", paths), ("third", two)):
        (run,) = runs_of_arms(STUDY, ["fedavg"], seeds=[3], sites=members, pooled={}, out=plan.out.parent / out)
        carry_run(run.planned, while_running=lambda: None)
        others.append(run.planned.name)

    kept = {path.name.rsplit("-", 2)[0] for path in (sites["a"][1].cache / "scores").glob("fedavg-*")}
    assert kept == {*others, next(run.planned.name for run in runs if run.arm == "fedavg")}
    assert len(kept) == 3
    pooled = {3: read_site_config(plan.out / "pooled" / "seed-3" / "site.yaml")}
    assert sum_up(plan, runs, sites, pooled) == (contents, measured)


def test_kept_scores_with_another_auc_than_the_record_s_are_refused(
    compared: tuple[Plan, ComparisonContents, dict[str, Any]],
) -> None:
    runs, sites = runs_and_sites(compared[0])
    run = next(run for run in runs if run.arm == "fedavg")
    configs = {name: config for name, (_, config) in sites.items()}
    record = run.planned.record()
    assert record is not None
    assert set(scores_of_run(run, record, configs)) == set(SITES)

    other = copy.deepcopy(record)
    estimate = other["figures"]["test"]["figures"]["per_site"]["b"]["auc"]["estimate"]
    estimate["value"] += 1 / 12

    with pytest.raises(
        ConfigError, match=rf"{run.planned.name} come to an AUC of 0\.\d+, expected the .* of its record"
    ):
        scores_of_run(run, other, configs)


def test_models_are_tested_abroad_with_the_threads_of_a_run(
    compared: tuple[Plan, ComparisonContents, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, sites = runs_and_sites(compared[0])
    run = next(run for run in runs if run.arm == "local" and run.site == "a")
    config = sites["b"][1].model_copy(update={"torch_threads": None})
    threads = []

    def margins(*args: Any, **named: Any) -> Any:
        threads.append(torch.get_num_threads())
        return margins_of_exams(*args, **named)

    monkeypatch.setattr(scores_module, "margins_of_exams", margins)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        path = run.planned.path / "model" / "best.safetensors"
        _test_abroad(path, config, run.planned.study, ModelOfRun("elsewhere", run.planned.study.digest), round=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == [1]


def test_remarks_say_where_an_arm_differs_in_more_than_its_method(tmp_path: Path) -> None:
    def told(*arms: str, norm: str = "group") -> str:
        base = parse_study(study_yaml(STUDY).replace("norm: group", f"norm: {norm}"), origin="study")
        return "\n".join(_remarks(Plan(base, arms, (3,), tmp_path, 1), 3))

    assert "ditto trains twice as many batches" in told("fedavg", "ditto")
    assert "fine_tune trains more than the other arms: 5 epochs" in told("fedavg", "fine_tune")
    assert "fedbn and silobn: batch norm in place" in told("fedavg", "silobn", "fedbn")
    assert "in place" not in told("fedavg", "fedbn", norm="batch")
    assert not any(name in told("fedavg", "local") for name in ("ditto", "fine_tune", "fedbn", "silobn"))


def test_every_arm_has_a_row_and_the_local_models_go_abroad(
    compared: tuple[Plan, ComparisonContents, dict[str, Any]],
) -> None:
    _, contents, _ = compared

    assert [arm.name for arm in contents.arms] == [
        "local",
        "local abroad",
        "pooled",
        "pooled_long",
        "leave_one_out",
        "fedavg",
    ]
    assert [arm.auc is None for arm in contents.arms] == [True, False, False, False, True, False]


@pytest.mark.parametrize("arm", ["fedavg", "pooled"])
def test_pooled_auc_of_an_arm_is_that_of_its_record(
    arm: str, compared: tuple[Plan, ComparisonContents, dict[str, Any]]
) -> None:
    plan, contents, _ = compared
    name = f"{arm}-seed-3-{digest_of_comparison(plan.out, SITES)}"
    record = json.loads((plan.out / "runs" / name / "record.json").read_text())

    row = next(row for row in contents.arms if row.name == arm)

    assert row.auc is not None
    recorded = record["figures"]["test"]["figures"]["pooled"]["auc"]["estimate"]
    assert row.auc.value == pytest.approx(recorded["value"])


def test_every_hospital_reads_what_it_gained(compared: tuple[Plan, ComparisonContents, dict[str, Any]]) -> None:
    _, contents, measured = compared

    gained = [row for row in contents.gains if (row.first, row.second) == ("fedavg", "local")]

    assert [(row.site, row.num_recurrence, row.num_necrosis) for row in gained] == [(site, 3, 2) for site in SITES]
    assert "fedavg_minus_pooled" in measured
    assert "fedavg_minus_local_on_all_patients" in measured


def test_page_stands_by_itself_and_names_no_patient(
    compared: tuple[Plan, ComparisonContents, dict[str, Any]],
) -> None:
    page = render_comparison(compared[1])

    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "What did my hospital gain?" in page
    assert "--0001" not in page  # identifiers of the pooled site


def test_command_reads_what_is_finished_and_ends_with_page_and_figures(
    compared: tuple[Plan, ComparisonContents, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    plan, contents, measured = compared
    words = ["compare", "--study", str(plan.out / "study.yaml"), "--arms", ",".join(plan.arms[:-1]), "--json"]
    words += ["--methods", "fedavg", "--out", str(plan.out), "--workers", "1"]
    words += [word for site in SITES for word in ("--site", str(plan.out.parent / site / "site.yaml"))]
    (plan.out / "study.yaml").write_text(study_yaml(plan.base))

    assert main(words) == 0

    told = capsys.readouterr()
    values = json.loads(told.out)
    assert "9 runs, 0 of them left" in told.err
    assert "Nothing was tuned for any arm." in " ".join(told.err.split())
    assert values == json.loads((plan.out / "comparison.json").read_text())
    assert [arm["name"] for arm in values["arms"]] == [arm.name for arm in contents.arms]
    assert values["measured"] == measured
    assert "What did my hospital gain?" in (plan.out / "comparison.html").read_text()


def test_budget_is_told_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = dict.fromkeys(("site", "study", "seed", "rounds", "sites", "patients", "separation", "data"))
    arguments = argparse.Namespace(
        **words, methods="fedavg,fedprox", arms="local,pooled", seeds=2, out=tmp_path / "out", workers=2,
        dry_run=True, json=False,
    )  # fmt: skip

    assert compare_command(arguments, Console(width=200)) == 0

    told = capsys.readouterr().out
    # Two seeds of 5 local runs, one pooled and two federated ones; 16 rounds of 8 steps at 5 sites are 640 batches.
    assert "Budget: 16 runs, 16 of them left" in told
    assert "local 1280, pooled 1280, fedavg 1280, fedprox 1280" in told
    assert not (tmp_path / "out").exists()
