"""`gliorn-server compare`: runs beside each other, studies of a plan, and a cross-validation added up."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from common.metrics.auc import pooled_auc
from common.metrics.site_statistics import SiteStatistics
from common.study import parse_study
from server.cli import main
from server.compare_with import find_models, note_models
from server.method_studies import METHODS, require_methods, studies_of_plan, study_of_fold, study_of_method
from server.out_of_fold import fold_run, lines_of, out_of_fold
from server.repeated_runs import auc_of_held_out
from tests.server.invented_runs import InventedSite, write_invented_run
from tests.tiny_federation import Run, begin_run, carry_on, run_federation, write_hospitals
from tests.tiny_hospitals import study_text

BASE = parse_study(study_text(training={"fedprox_mu": 0.1}, participation={"min_sites": 5}), origin="base")


# --- studies ----------------------------------------------------------------------------------------------------------


def test_plain_method_has_the_settings_of_no_other() -> None:
    study = study_of_method(BASE, "fedavg")

    assert study.training.fedprox_mu == 0
    assert study.aggregation.method == "mean"
    assert study.personalization.method == "none"


def test_norm_that_stays_at_its_sites_belongs_to_its_own_method_alone() -> None:
    base = parse_study(study_text(model={"norm": "fedbn"}), origin="base")

    assert study_of_method(base, "fedavg").model.norm == "batch"
    assert study_of_method(base, "silobn").model.norm == "silobn"
    assert study_of_method(BASE, "fedavg").model.norm == "group"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_study_that_differs_in_its_settings_alone(method: str) -> None:
    study, plain = study_of_method(BASE, method), study_of_method(BASE, "fedavg")

    changed = {
        section
        for section, values in study.model_dump().items()
        if values != plain.model_dump()[section]
    }  # fmt: skip
    assert changed == set(METHODS[method])
    assert (study.seed, study.rounds, study.training.learning_rate) == (BASE.seed, BASE.rounds, 1e-3)


def test_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="--methods 'fedavg,best': expected some of fedavg, fedprox"):
        require_methods("fedavg,best", option="--methods")


def test_plan_of_folds_is_a_study_for_each_fold_of_each_repeat() -> None:
    studies = studies_of_plan(BASE, ["fedavg"], num_folds=3, repeats=2)

    assert next(iter(studies)) == "fedavg-repeat-0-fold-0"
    assert [(s.split.repeat, s.split.fold) for s in studies.values()] == [(r, f) for r in (0, 1) for f in (0, 1, 2)]
    assert len({study.digest for study in studies.values()}) == 6


def test_plan_writes_studies_and_says_what_to_do_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.yaml").write_text(study_text())

    status = main(
        ["compare", "--plan", str(tmp_path / "study.yaml"), "--methods", "fedavg,local", "--out", str(tmp_path / "s")]
    )

    told = capsys.readouterr().out
    studies = {path.stem: parse_study(path.read_text(), origin=path.name) for path in (tmp_path / "s").iterdir()}
    assert status == 0
    assert sorted(studies) == ["fedavg", "local"]
    assert studies["local"].aggregation.method == "local"
    assert all(f"digest {study.digest}" in told for study in studies.values())
    assert "gliorn-client accept" in told
    assert "local.yaml --name local --compare-with fedavg --wait" in told


def test_plan_of_seeds_and_of_hospitals_left_out_says_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.yaml").write_text(study_text(seed=4, rounds=3))
    words = ["compare", "--plan", str(tmp_path / "study.yaml"), "--methods", "fedavg,leave_one_out", "--seeds", "2"]

    status = main([*words, "--sites", "a,b", "--out", str(tmp_path / "s")])

    told = capsys.readouterr().out
    studies = {path.stem: parse_study(path.read_text(), origin=path.name) for path in (tmp_path / "s").iterdir()}
    assert status == 0
    assert sorted(studies) == [
        *("fedavg-seed-4", "fedavg-seed-5", "without-a-seed-4", "without-a-seed-5"),
        *("without-b-seed-4", "without-b-seed-5"),
    ]
    assert studies["without-a-seed-5"].participation.held_out == ("a",)
    assert studies["without-a-seed-5"].seed == 5
    assert "Budget: 6 runs, 18 rounds of 1 epochs at a site, 6 fewer at one that is left out in turn." in told
    assert "without-b-seed-5.yaml --name without-b-seed-5 --compare-with fedavg-seed-5 --wait" in told
    assert "gliorn-server compare fedavg-seed-4 without-a-seed-4 without-b-seed-4 fedavg-seed-5" in told


def test_study_of_an_earlier_plan_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.yaml").write_text(study_text(seed=4))
    words = ["compare", "--plan", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "s")]
    main(words)
    (tmp_path / "study.yaml").write_text(study_text(seed=5))

    assert main(words) == 2
    assert "fedavg.yaml: is there with another study" in capsys.readouterr().err


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run, and another that was compared with it."""
    folder = tmp_path_factory.mktemp("runs")
    sites = write_hospitals(folder, "a", "b")
    old = run_federation(folder / "old", study_text(rounds=1), sites)
    new = begin_run(folder / "new", study_text(rounds=1, training={"fedprox_mu": 0.5}), sites)
    note_models(new, find_models(folder, ["old"]))
    return old, carry_on(new, sites)


def test_runs_are_shown_with_their_difference_and_what_each_hospital_gained(
    runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"

    status = main(["compare", str(runs[0].folder.path), str(runs[1].folder.path), "--out", str(page)])

    told, html = capsys.readouterr().out, page.read_text()
    (found,) = runs[1].record["comparisons"]
    assert status == 0
    assert "new − old: within sites" in told
    assert "  a: new − old" in told
    assert f"{found['per_site']['b']['first']:.3f}" in html
    assert "What did my hospital gain?" in html
    assert "https://" not in html


def test_runs_that_were_not_compared_are_shown_with_advice(
    runs: tuple[Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(runs[0].folder.path, tmp_path / "other")
    main(["compare", str(runs[0].folder.path), str(other), "--out", str(tmp_path / "page.html")])

    assert "No paired differences" in capsys.readouterr().out


def test_seeds_and_hospitals_left_out_are_one_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sites = [InventedSite("a"), InventedSite("b", shift=0.5)]
    names = []
    for seed in (1, 2):
        write_invented_run(tmp_path / f"fedavg-seed-{seed}", sites, rounds=2, seed=seed)
        for site in "ab":
            held_out = {"held_out": [site], "min_sites": 1}
            few = {"min_pooled_sites": 1}
            name = f"without-{site}-seed-{seed}"
            write_invented_run(
                tmp_path / name, sites, rounds=2, seed=seed, participation=held_out, evaluation=few, name=name
            )
            names.append(name)

    status = main(
        [
            *("compare", *(str(tmp_path / name) for name in ("fedavg-seed-1", "fedavg-seed-2", *names))),
            *("--out", str(tmp_path / "page.html")),
        ]
    )

    told = capsys.readouterr().out.splitlines()
    assert status == 0
    assert [line.partition(":")[0] for line in told[:2]] == ["fedavg", "without each hospital"]
    assert ", AUC " not in told[1]


def test_auc_of_hospitals_left_out_is_that_within_sites(tmp_path: Path) -> None:
    """The invented models differ in nothing, so that leaving each out gives the AUC within sites of one test."""
    records = []
    for site in "ab":
        folder = write_invented_run(
            tmp_path / site,
            [InventedSite("a"), InventedSite("b", shift=0.5)],
            rounds=2,
            participation={"held_out": [site], "min_sites": 1},
            evaluation={"min_pooled_sites": 1},
        )
        records.append(json.loads(folder.record.read_text()))

    found = auc_of_held_out(records, confidence=0.95)

    expected = records[0]["figures"]["test"]["figures"]["within_site_auc"]["estimate"]
    assert found.value == pytest.approx(expected["value"], abs=1e-12)
    assert found.low == pytest.approx(expected["low"])
    assert found.high == pytest.approx(expected["high"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param([], "no run is named", id="nothing"),
        pytest.param(["one"], "one is named alone; name two runs or more", id="one run"),
        pytest.param(["one", "one"], "one is named alone", id="one run twice"),
        pytest.param(["absent", "gone"], "absent or unreadable, expected the record of a run", id="absent"),
        pytest.param(["--plan", "s.yaml", "run"], "takes no runs", id="both"),
        pytest.param(["--plan", "absent.yaml"], "unreadable (FileNotFoundError)", id="no study"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err


# --- cross-validation -------------------------------------------------------------------------------------------------


def fold_records(run: Run, *, num_folds: int = 3, repeats: int = 1) -> list[dict[str, Any]]:
    """The record of a real run as if it were of every fold, so that the sums can be checked in the head."""
    study = run.folder.read_study()
    return [
        run.record
        | {
            "run": f"r{repeat}f{fold}",
            "study": study_of_fold(study, num_folds, fold, repeat).model_dump(mode="json"),
        }
        for repeat in range(repeats)
        for fold in range(num_folds)
    ]


def test_folds_add_up_to_patients_who_were_each_tested_once(runs: tuple[Run, Run]) -> None:
    records = fold_records(runs[0], repeats=2)

    found = out_of_fold([fold_run(record) for record in records])

    one: SiteStatistics = fold_run(records[0]).statistics
    assert [each.repeat for each in found.repeats] == [0, 1]
    assert found.repeats[0].figures.num_necrosis == 3 * one.num_patients[1]
    assert found.repeats[0].figures.at_threshold is not None
    assert found.repeats[0].figures.at_threshold.counts.num_patients == 3 * sum(one.num_patients)
    assert found.mean_fold_auc == pytest.approx(pooled_auc(one.histogram).estimate.value)
    assert found.spread == 0.0
    assert "each tested once" in lines_of(found)[0]


def test_fold_without_a_threshold_takes_the_figures_at_one_from_its_repeat(runs: tuple[Run, Run]) -> None:
    records = fold_records(runs[0], repeats=2)
    records[1] = json.loads(json.dumps(records[1]))
    del records[1]["figures"]["test"]["figures"]["statistics"]["confusion"]

    found = out_of_fold([fold_run(record) for record in records])

    assert [each.without_threshold for each in found.repeats] == [(1,), ()]
    assert found.repeats[0].figures.at_threshold is None
    assert found.repeats[0].figures.num_necrosis == found.repeats[1].figures.num_necrosis
    assert "no figures at a threshold, since fold 1 chose none" in lines_of(found)[0]
    assert found.repeats[1].figures.at_threshold is not None


def test_missing_and_doubled_folds_and_other_studies_are_refused_at_once(runs: tuple[Run, Run]) -> None:
    first, second, third = fold_records(runs[0])
    other = json.loads(json.dumps(third))
    other["study"]["seed"] = 99
    other["study"]["split"]["fold"] = 1

    with pytest.raises(ConfigError) as caught:
        out_of_fold([fold_run(record) for record in (first, second, other)])

    assert "r0f2: its study differs from that of r0f0" in str(caught.value)
    assert "fold 2 of repeat 0 is missing" in str(caught.value)
    assert "fold 1 of repeat 0 is there more than once" in str(caught.value)


def test_run_without_folds_is_refused(runs: tuple[Run, Run]) -> None:
    with pytest.raises(ConfigError, match=r"run old: its study has no split.num_folds"):
        fold_run(runs[0].record)
