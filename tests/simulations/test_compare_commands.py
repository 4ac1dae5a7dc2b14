"""`gliorn-simulate compare` and `folds` as whole commands, with processes of their own: they end, and they go on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from common.study import parse_study
from simulations.cli import main
from simulations.compare.arms import digest_of_comparison
from simulations.compare.folds_command import FoldPlan
from simulations.side_by_side import carry_run
from tests.tiny_federation import write_hospitals
from tests.tiny_hospitals import study_text

SPLITS = (("train", 3, 3), ("validation", 2, 2), ("test", 3, 2))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(
        study_text(
            rounds=1, training={"local_epochs": None, "local_steps": 1}, split={"validation": 0.25, "test": 0.25}
        )
    )
    return path


@pytest.mark.slow
def test_comparison_ends_with_page_and_figures_and_goes_on_where_it_was_left(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = write_hospitals(tmp_path, "a", "b", splits=SPLITS)
    words = ["compare", "--study", str(study), "--arms", "local,pooled", "--methods", "fedavg,ditto", "--json"]
    words += ["--out", str(tmp_path / "out"), "--workers", "2"]
    words += [word for path in sites.values() for word in ("--site", str(path))]

    first = main(words)
    values = json.loads(capsys.readouterr().out)
    comparison = digest_of_comparison(tmp_path / "out", ("a", "b"))
    local = tmp_path / "out" / "runs" / f"local-seed-3-a-{comparison}" / "record.json"
    kept = local.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "runs" / f"fedavg-seed-3-{comparison}")
    again = main(words)
    told = capsys.readouterr()

    assert (first, again) == (0, 0)
    assert [arm["name"] for arm in values["arms"]] == [
        "local",
        "local abroad",
        "pooled",
        "fedavg",
        "ditto (own models)",
    ]
    assert json.loads(told.out) == values
    assert "5 runs, 1 of them left" in told.err
    assert local.stat().st_mtime_ns == kept
    assert "What did my hospital gain?" in (tmp_path / "out" / "comparison.html").read_text()


def test_cross_validation_reads_its_folds_and_tests_every_patient_once(
    tmp_path: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = write_hospitals(tmp_path, "a", "b", splits=(("train", 3, 3),))
    for path in sites.values():
        table = path.with_name("table.tsv")
        rows = [line.split("\t") for line in table.read_text().splitlines()]
        column = rows[0].index("split")
        table.write_text("".join("\t".join(row[:column] + row[column + 1 :]) + "\n" for row in rows))
    base = parse_study(study.read_text(), origin="study")
    plan = FoldPlan(base=base, method="fedavg", num_folds=2, repeats=1, out=tmp_path / "out", workers=1)
    for run in plan.runs(list(sites.values())):
        carry_run(run, while_running=lambda: None)
    words = ["folds", "--study", str(study), "--folds", "2", "--out", str(tmp_path / "out"), "--json"]
    words += [word for path in sites.values() for word in ("--site", str(path))]

    assert main(words) == 0

    (repeat,) = json.loads(capsys.readouterr().out)["repeats"]
    assert (repeat["num_recurrence"], repeat["num_necrosis"]) == (6, 6)
    assert len(repeat["fold_aucs"]) == 2


def test_study_that_holds_a_site_out_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(study_text(participation={"held_out": ["a"]}))

    assert main(["compare", "--study", str(path), "--dry-run"]) == 2
    assert "the arm leave_one_out leaves each site out in turn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["compare", "--arms", "best"], "--arms best: expected some of local, pooled", id="arm"),
        pytest.param(["compare", "--methods", "best"], "--methods 'best': expected some of fedavg", id="method"),
        pytest.param(["folds", "--folds", "1"], "--folds 1: expected 2 to 20", id="folds"),
        pytest.param(["folds", "--method", "local"], "expected one federated method", id="local"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_default_study_is_complete_and_says_steps() -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "simulations" / "compare_study.yaml").read_text())

    assert values["training"]["local_steps"] * values["rounds"] == 128
