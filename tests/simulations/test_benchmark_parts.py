"""What benchmarks measure with: time and memory of a process tree, made-up hospitals, the plain loop."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from simulations.benchmark.plain_loop import main as plain_loop
from simulations.benchmark.process_tree import cost_of
from simulations.benchmark.ratios import medians_in_turns
from simulations.benchmark.virtual import our_command, study_of_size, write_federation

IN_A_CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; held = bytearray(b'x' * 2**27); time.sleep(2)"])
"""


def test_memory_of_a_command_holds_that_of_the_processes_it_starts(tmp_path: Path) -> None:
    cost = cost_of(
        [sys.executable, "-c", IN_A_CHILD], environment=os.environ, log=tmp_path / "output.log", timeout_s=60
    )

    assert cost.peak_bytes > 2**27
    assert cost.seconds > 2


@pytest.mark.parametrize(
    ("program", "reason"),
    [("print('no such site'); raise SystemExit(3)", "ended with code 3: no such site"), ("input()", "code 1")],
)
def test_a_command_that_fails_says_why(tmp_path: Path, program: str, reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        cost_of([sys.executable, "-c", program], environment=os.environ, log=tmp_path / "output.log", timeout_s=60)


def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did not end within 1 s"):
        cost_of(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            environment=os.environ,
            log=tmp_path / "output.log",
            timeout_s=1,
        )


def test_sides_take_turns_and_the_first_turn_is_not_counted() -> None:
    turns: list[str] = []

    seconds = medians_in_turns({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repeats=2)

    assert turns == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_the_plain_loop_trains_on_what_the_hospitals_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of_size(rounds=1, size=16, width=0.125)
    _, files = write_federation(tmp_path / "hospitals", study, num_sites=2, patients=4)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")

    code = plain_loop([str(path), *map(str, files)])

    assert code == 0
    assert "validation patients called rightly" in capsys.readouterr().out


def test_a_run_until_its_first_step_ends_there_and_learns_nothing(tmp_path: Path) -> None:
    study = study_of_size(rounds=1, size=16, width=0.125)
    configs, _ = write_federation(tmp_path / "hospitals", study, num_sites=2, patients=4)
    path, out = tmp_path / "study.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    command = our_command(path, configs, engine="in-process", out=out, workers=1)

    cost_of(
        [sys.executable, "-m", "simulations.benchmark.first_step", *command[1:]],
        environment=os.environ,
        log=tmp_path / "output.log",
        timeout_s=120,
    )

    assert (out / "rounds.jsonl").read_text(encoding="utf-8") == ""
    assert not (out / "record.json").exists()
