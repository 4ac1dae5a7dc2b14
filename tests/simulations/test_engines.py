"""All engines run the same ServerApp and ClientApp, and end with the same bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_hospitals import study_text, write_tiny_hospital

ENGINES = ("in-process", "ray", "network")
CODED = {"upload": "fp16_delta", "download": "int8_delta"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One run of two sites and two rounds by each engine, from the command line.

    States go both ways as differences, so that whole states, differences, and states that a site keeps are among what
    travels.
    """
    folder = tmp_path_factory.mktemp("engines")
    sites = [write_tiny_hospital(folder, name) for name in ("a", "b")]
    (folder / "study.yaml").write_text(study_text(communication=CODED), encoding="utf-8")
    finished = {}
    for engine in ENGINES:
        out = folder / engine
        done = subprocess.run(
            [
                *(str(Path(sys.executable).parent / "gliorn-simulate"), "--study", str(folder / "study.yaml")),
                *(part for site in sites for part in ("--site", str(site))),
                *("--engine", engine, "--out", str(out), "--json"),
            ],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        log = out / "engine.log"
        assert done.returncode == 0, done.stderr + (log.read_text()[-4000:] if log.exists() else "")
        assert json.loads(done.stdout)["outcome"] == "COMPLETE"
        finished[engine] = out
    return finished


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("file", ["model/best.safetensors", "model/final.safetensors"])
def test_all_engines_end_with_the_same_model_bytes(runs: Mapping[str, Path], file: str) -> None:
    models = {engine: (out / file).read_bytes() for engine, out in runs.items()}

    assert models["ray"] == models["in-process"]
    assert models["network"] == models["in-process"]


def test_all_engines_end_with_the_same_figures(runs: Mapping[str, Path]) -> None:
    records = {engine: read_record(out) for engine, out in runs.items()}

    for engine in ("ray", "network"):
        assert records[engine]["figures"] == records["in-process"]["figures"]
        assert records[engine]["operating_point"] == records["in-process"]["operating_point"]


def test_all_engines_send_the_state_in_the_same_ways(runs: Mapping[str, Path]) -> None:
    for out in runs.values():
        rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
        ways = [[site["state_down"] for site in record["sites"].values()] for record in rounds]
        assert ways == [[["whole"], ["whole"]], [["difference"], ["difference"]]]


def test_the_record_names_the_engine(runs: Mapping[str, Path]) -> None:
    assert [read_record(runs[engine])["engine"] for engine in ENGINES] == list(ENGINES)


def test_no_process_of_an_engine_is_left(runs: Mapping[str, Path]) -> None:
    folder = str(next(iter(runs.values())).parent)
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:  # it ended while we looked, or is not ours
            continue
        if folder.encode() in told and int(process.name) != os.getpid():
            left.append(told.replace(b"\0", b" ")[-200:])

    assert left == []


def read_record(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "record.json").read_text(encoding="utf-8"))
    return record
