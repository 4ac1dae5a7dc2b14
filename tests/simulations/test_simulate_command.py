"""The command as a user types it: phantoms, own sites, JSON, resumption."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from simulations.cli import main
from tests.tiny_hospitals import study_text, write_tiny_hospital

PROGRAM = str(Path(sys.executable).parent / "gliorn-simulate")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name three tiny hospitals."""
    folder = tmp_path_factory.mktemp("three")
    return [part for name in ("a", "b", "c") for part in ("--site", str(write_tiny_hospital(folder, name)))]


def write_study(folder: Path, **changes: object) -> str:
    path = folder / "study.yaml"
    path.write_text(study_text(**changes), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def phantom_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small demo: phantom hospitals, one round, in a folder of its own; returns the folder and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    small = {"width": 0.125, "num_groups": 4}
    preprocessing = {"missing_sequence": "zero_fill", "spacing_mm": [4.0, 4.0, 4.0]}
    study = write_study(folder, rounds=1, model=small, preprocessing=preprocessing, augmentation={"drop_sequence": 0.1})
    done = subprocess.run(
        [PROGRAM, "--study", study, "--sites", "A,C,E", "--patients", "12", "--seed", "7", "--out", "run"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.timeout(600)
def test_the_demo_ends_with_a_table_of_sites_and_pool_and_names_the_report(phantom_run: tuple[Path, str]) -> None:
    folder, printed = phantom_run

    assert "COMPLETE" in printed
    for row in ("hospital-a", "hospital-c", "hospital-e", "pooled"):
        assert row in printed
    assert "Research use only" in printed
    assert "run/report.html" in printed
    assert (folder / "run" / "report.html").stat().st_size > 10_000


def test_the_demo_prints_one_line_a_round_without_a_terminal(phantom_run: tuple[Path, str]) -> None:
    _, printed = phantom_run

    lines = [line for line in printed.splitlines() if line.startswith("round ")]

    assert len(lines) == 1
    assert "3 of 3 sites" in lines[0]
    assert "AUC" in lines[0]


def test_the_seed_of_the_command_is_that_of_phantoms_and_study(phantom_run: tuple[Path, str]) -> None:
    folder, _ = phantom_run

    study = yaml.safe_load((folder / "run" / "study.yaml").read_text(encoding="utf-8"))

    assert study["seed"] == 7
    assert [path.name for path in (folder / "hospitals").iterdir()] == ["separation-1.5-seed-7-2mm-12"]


def test_a_second_run_takes_the_hospitals_that_are_there(phantom_run: tuple[Path, str]) -> None:
    folder, _ = phantom_run
    before = {path: path.stat().st_mtime_ns for path in (folder / "hospitals").rglob("*.nii.gz")}

    done = subprocess.run(
        [
            *(PROGRAM, "--study", "study.yaml", "--sites", "A,C,E", "--patients", "12", "--seed", "7"),
            *("--out", "again", "--fedprox-mu", "0.1", "--json"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    summary = json.loads(done.stdout)
    record = json.loads((folder / "again" / "record.json").read_text(encoding="utf-8"))
    assert summary["outcome"] == "COMPLETE"
    assert summary["test"]["auc"] == record["figures"]["test"]["figures"]["pooled"]["auc"]
    assert record["study"]["training"]["fedprox_mu"] == 0.1
    assert {path: path.stat().st_mtime_ns for path in (folder / "hospitals").rglob("*.nii.gz")} == before


def test_hospitals_writes_a_table_and_a_picture_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "hospitals",
        "--out",
        str(tmp_path / "h"),
        "--sites",
        "D",
        "--patients",
        "4",
        "--spacing",
        "5",
        "--json",
    ]

    status = main(arguments)

    (written,) = json.loads(capsys.readouterr().out)
    table = Path(written["site"]).parent / "table.tsv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert status == 0
    assert len(rows) == 4
    assert Path(written["picture"]).read_bytes().startswith(b"\x89PNG")


def test_too_few_sites_end_invalid_with_exit_2_and_say_how_to_go_on(
    sites: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, participation={"min_sites": 3})
    faulty = ["--fault", "b:exception:2"]

    status = main([*sites, "--study", study, "--out", f"{tmp_path}/run", *faulty])

    printed = capsys.readouterr().out
    assert status == 2
    assert "INVALID" in printed
    assert "b (failed" in printed
    assert f"--resume {tmp_path}/run" in printed
    assert "INVALID" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_an_invalid_run_goes_on_once_the_site_is_mended(sites: list[str], tmp_path: Path) -> None:
    study = write_study(tmp_path, participation={"min_sites": 3})
    main([*sites, "--study", study, "--out", f"{tmp_path}/mended", "--fault", "b:exception:2"])
    main([*sites, "--study", study, "--out", f"{tmp_path}/sound"])

    status = main(["--resume", f"{tmp_path}/mended"])

    record = json.loads((tmp_path / "mended" / "record.json").read_text(encoding="utf-8"))
    assert status == 0
    assert record["outcome"] == "COMPLETE"
    assert record["num_resumed"] == 1
    for model in ("best", "final"):
        file = f"model/{model}.safetensors"
        assert (tmp_path / "mended" / file).read_bytes() == (tmp_path / "sound" / file).read_bytes()


def test_a_killed_command_goes_on_with_resume_and_ends_with_the_same_bytes(sites: list[str], tmp_path: Path) -> None:
    study = write_study(tmp_path, rounds=6)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main([*sites, "--study", study, "--out", str(whole)])
    process = subprocess.Popen(
        [PROGRAM, *sites, "--study", study, "--out", str(killed)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 120
    while not (killed / "rounds.jsonl").exists() or not (killed / "rounds.jsonl").read_bytes():
        assert time.monotonic() < end, "no round was finished"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    status = main(["--resume", str(killed)])

    assert status == 0
    for model in ("best", "final"):
        file = f"model/{model}.safetensors"
        assert (killed / file).read_bytes() == (whole / file).read_bytes()


def test_a_run_that_has_ended_is_shown_again_and_left_as_it_is(
    sites: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*sites, "--study", write_study(tmp_path, rounds=1), "--out", f"{tmp_path}/run"])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()

    status = main(["--resume", f"{tmp_path}/run"])

    assert status == 0
    assert "has ended" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_that_another_process_carries_is_left_alone(
    sites: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, participation={"min_sites": 3})
    main([*sites, "--study", study, "--out", f"{tmp_path}/run", "--fault", "b:exception:2"])
    with (tmp_path / "run" / "run.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        status = main(["--resume", f"{tmp_path}/run"])

    assert status == 2
    assert "another process carries this run" in capsys.readouterr().err


def test_options_before_the_name_of_a_command_hold(tmp_path: Path) -> None:
    status = main(["--patients", "4", "--sites", "D", "hospitals", "--out", str(tmp_path / "h"), "--spacing", "6"])

    (table,) = (tmp_path / "h").glob("*/table.tsv")
    assert status == 0
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_network_run_leaves_no_process(sites: list[str], tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [PROGRAM, *sites, "--study", write_study(tmp_path), "--out", str(out), "--engine", "network"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=heed_interruptions,  # noqa: PLW1509 - one system call, before any thread of the child
    )
    end = time.monotonic() + 120
    while not (out / "engine.log").exists() or b"SuperNode" not in (out / "engine.log").read_bytes():
        assert time.monotonic() < end, "the network was not started"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 2
    assert b"--resume" in error
    assert processes_that_name(str(tmp_path)) == []


def heed_interruptions() -> None:
    """Undo what a shell does to what it starts in the background, and so to these tests: it lets SIGINT be ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_that_name(text: str) -> list[str]:
    """Commands of other processes whose environment or arguments hold a text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            told = command + (process / "environ").read_bytes()
        except OSError:  # it ended while we looked, or is not ours
            continue
        if text.encode() in told and int(process.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_a_folder_with_something_in_it_is_not_taken_for_a_new_run(
    sites: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")

    status = main([*sites, "--study", write_study(tmp_path), "--out", f"{tmp_path}/run"])

    assert status == 2
    assert "--resume" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
