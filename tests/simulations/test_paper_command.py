"""`gliorn-simulate paper` as a user types it: a tiny table from phantoms to page, killed, resumed and misused."""

import fcntl
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from simulations.cli import main
from simulations.paper.table import WHAT_IT_IS_NOT

PROGRAM = str(Path(sys.executable).parent / "gliorn-simulate")


def arguments(folder: Path, *, out: str, rounds: int = 1) -> list[str]:
    """A table of one cell, of 20 phantoms at one hospital, which are drawn once for all tests of a folder."""
    study = folder / "study.yaml"
    if not study.exists():
        values = {
            "name": "tiny",
            "seed": 0,
            "rounds": 1,
            "preprocessing": {"spacing_mm": [4.0, 4.0, 4.0], "size_voxels": [16, 16, 16], "crop": "lesion"},
            "training": {"learning_rate": 1e-3, "batch_size": 4, "local_epochs": 1},
            "participation": {"min_sites": 1, "round_timeout_s": 600},
            "evaluation": {"num_bins": 256, "min_pooled_sites": 1},
        }
        study.write_text(yaml.safe_dump(values), encoding="utf-8")
    chosen = ["--models", "resnet10", "--sequences", "t1ce", "--patients", "20", "--width", "0.125", "--no-federated"]
    places = ["--study", str(study), "--data", str(folder / "phantoms"), "--out", str(folder / out), "--workers", "1"]
    return ["paper", *chosen, *places, "--rounds", str(rounds)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where phantoms and tables lie."""
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What the command prints for a table that is in `folder / "table"` then."""
    done = subprocess.run(
        [PROGRAM, *arguments(folder, out="table")], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CELL = "cells/one-resnet10-t1ce-seed-0"


def test_the_budget_comes_first_and_every_line_of_the_table_is_printed(printed: str) -> None:
    assert printed.startswith("Budget: 1 cell; 20 patients at one hospital; 3 gradient steps, about")
    assert WHAT_IT_IS_NOT in printed
    assert re.search(r"ResNet10, T1ce .*published .*9 \+ 49 .*0\.70 \[0\.47, 0\.86\] .*0\.56 \[0\.27, 0\.81\]", printed)
    assert re.search(r"one hospital .*1 \+ 4", printed)


def test_figures_of_the_table_are_those_of_the_cell_s_own_record(printed: str, folder: Path) -> None:
    values = json.loads((folder / "table" / "paper.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "table" / CELL / "record.json").read_text(encoding="utf-8"))

    (row,) = values["rows"]
    pooled = record["figures"]["test"]["figures"]["pooled"]
    assert row["phantoms"]["one"]["figures"]["auc"] == pooled["auc"]["estimate"]
    assert row["phantoms"]["one"]["figures"]["accuracy"] == pooled["at_threshold"]["accuracy"]
    assert row["published"]["printed"] == {"accuracy": 0.88, "sensitivity": 0.56, "specificity": 0.94, "auc": 0.7}
    assert record["study"]["model"]["name"] == "resnet10"
    assert list(record["sites"]) == ["hospital-p"]


def test_the_page_stands_alone_and_says_what_it_is_not(printed: str, folder: Path) -> None:
    page = (folder / "table" / "paper.html").read_text(encoding="utf-8")

    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    assert page.count("<svg") == 1
    assert page.count(WHAT_IT_IS_NOT) == 2
    assert "Research use only" in page
    assert 'data-interval="published.resnet10.t1ce.auc">[0.470, 0.860]' in page


def test_a_finished_table_is_shown_again_without_training(
    printed: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "table" / "cells").rglob("*")}

    status = main([*arguments(folder, out="table"), "--json"])

    shown = capsys.readouterr()
    assert status == 0
    assert "1 cell, 1 of them finished" in shown.err
    assert json.loads(shown.out) == json.loads((folder / "table" / "paper.json").read_text(encoding="utf-8"))
    assert {path: path.stat().st_mtime_ns for path in (folder / "table" / "cells").rglob("*")} == before


def test_a_killed_table_goes_on_and_ends_with_the_same_model(printed: str, folder: Path) -> None:
    assert main(arguments(folder, out="whole", rounds=8)) == 0
    killed = folder / "killed" / CELL
    process = subprocess.Popen([PROGRAM, *arguments(folder, out="killed", rounds=8)], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not (killed / "rounds.jsonl").exists() or not (killed / "rounds.jsonl").read_bytes():
        assert time.monotonic() < end, "no round was finished"
        assert process.poll() is None, "the table was finished before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    wait_until_nobody_carries(killed)

    status = main(arguments(folder, out="killed", rounds=8))

    assert status == 0
    record = json.loads((killed / "record.json").read_text(encoding="utf-8"))
    assert record["num_resumed"] == 1
    best = "model/best.safetensors"
    assert (killed / best).read_bytes() == (folder / "whole" / CELL / best).read_bytes()


def wait_until_nobody_carries(run: Path) -> None:
    """A cell's process ends by itself once the command is gone."""
    end = time.monotonic() + 60
    with (run / "run.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                assert time.monotonic() < end, "a cell outlives its command"
                time.sleep(0.1)


@pytest.mark.slow
def test_five_hospitals_are_trained_together_and_tested_as_one(folder: Path) -> None:
    status = main([*arguments(folder, out="five"), "--federated", "--models", "resnet10,vgg11"])

    values = json.loads((folder / "five" / "paper.json").read_text(encoding="utf-8"))
    assert status == 0
    assert [row["model"] for row in values["rows"]] == ["resnet10", "vgg11"]
    for row in values["rows"]:
        record = json.loads(
            (folder / "five" / "cells" / f"five-{row['model']}-t1ce-seed-0" / "record.json").read_text(encoding="utf-8")
        )
        pooled = record["figures"]["test"]["figures"]["pooled"]
        assert len(record["sites"]) == 5
        assert row["phantoms"]["five"]["num_patients"] == [pooled["num_recurrence"], pooled["num_necrosis"]]
        assert row["phantoms"]["five"]["figures"]["auc"] == pooled["auc"]["estimate"]
        assert row["phantoms"]["one"]["num_patients"] == [4, 1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--models", "resnet11"], "--models resnet11: expected names out of resnet10, densenet121, resnet50"),
        (["--sequences", "flair"], "--sequences flair: expected names out of t1, t1ce, t2, all"),
        (["--patients", "12"], "--patients 12: expected 20 or more"),
        (["--rounds", "0"], "rounds"),
        (["--width", "-1"], "width"),
        (["--seeds", "0"], "--seeds 0: expected a whole number of at least 1"),
        (["--workers", "0"], "--workers 0: expected a whole number of at least 1"),
        (["--separation", "9"], "separation is 9"),
        (["--study", "nowhere.yaml"], "--study nowhere.yaml: cannot be read"),
        (["--patients", "24"], "holds a table of the phantoms in"),
        (["--rounds", "2"], "was begun with other settings"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_a_sentence(
    change: list[str], told: str, printed: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([*arguments(folder, out="table"), *change])

    assert status == 2
    assert told in capsys.readouterr().err


def test_options_of_a_plain_run_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--engine", "ray", *arguments(folder, out="ray")])

    assert status == 2
    assert "--engine has no meaning for the paper's table" in capsys.readouterr().err


def test_dry_run_tells_the_cost_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([*arguments(folder, out="dry"), "--dry-run"])

    assert status == 0
    assert capsys.readouterr().out.startswith("Budget: 1 cell;")
    assert not (folder / "dry").exists()
