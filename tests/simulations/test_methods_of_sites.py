"""Federations by methods that keep something at the sites: the same bytes after a crash and by every engine."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import read_site_config
from client.site_memory import Part, SiteMemory
from common.model_state import Array, ModelState, decode_state
from tests.killed_run import Moment, carry_on_in_a_process
from tests.tiny_federation import Run, begin_run, carry_on, run_federation, write_hospitals
from tests.tiny_hospitals import study_text

SPLITS = (("train", 4, 3), ("validation", 2, 2), ("test", 2, 2))
FEDBN = {"model": {"norm": "fedbn"}}
DITTO = {"personalization": {"method": "ditto"}}
SCAFFOLD = {
    "training": {
        "optimizer": "sgd",
        "momentum": 0.0,
        "learning_rate": 0.02,
        "local_steps": 2,
        "local_epochs": None,
        "control_variates": True,
    }
}
METHODS: Mapping[str, dict[str, Any]] = {
    "fedbn and ditto": FEDBN | DITTO,
    "scaffold": SCAFFOLD,
    "local": {"aggregation": {"method": "local"}},
    "silobn, fine-tuning and class-balanced sampling": {
        "model": {"norm": "silobn"},
        "personalization": {"method": "fine_tune", "fine_tune_epochs": 1},
        "training": {"class_weighting": "none", "sampling": "class_balanced"},
    },
}


def text_of(changes: Mapping[str, Any]) -> str:
    return study_text(rounds=3, **changes)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_hospitals(tmp_path_factory.mktemp("hospitals"), "a", "b", splits=SPLITS)


def kept(sites: Mapping[str, Path], site: str, part: Part, run: Run, *, round: int) -> dict[str, Array]:
    cache, record = read_site_config(sites[site]).cache, run.record
    memory = SiteMemory(cache, run="run", study_digest=record["study_digest"], run_id=record["run_id"])
    values = memory.read(part, round=round)
    assert values is not None
    return values


def require_same(run: Run, expected: Run) -> None:
    assert run.digests == expected.digests
    assert run.record["figures"] == expected.record["figures"]
    assert run.record["operating_point"] == expected.record["operating_point"]


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_run_that_is_killed_in_a_round_ends_with_the_bytes_of_one_that_was_not(
    changes: dict[str, Any], sites: dict[str, Path], tmp_path: Path
) -> None:
    expected = run_federation(tmp_path / "whole" / "run", text_of(changes), sites)
    folder = begin_run(tmp_path / "killed" / "run", text_of(changes), sites)

    killed = carry_on_in_a_process(folder, sites, kill=Moment("call", "client.training:augment", 11))
    run = carry_on(folder, sites)

    assert killed == -9
    assert run.record["num_resumed"] == 1
    assert expected.record["outcome"] == "COMPLETE"
    require_same(run, expected)


def test_no_normalisation_key_is_in_a_state_of_a_fedbn_run_and_sites_have_layers_of_their_own(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    text = text_of(FEDBN)
    run = run_federation(tmp_path / "run", text, sites)

    own = [kept(sites, site, "own", run, round=3) for site in "ab"]
    assert len(own[0]) == 12 * 5
    assert not run.model("final").keys() & own[0].keys()
    assert not np.array_equal(own[0]["bn1.running_mean"], own[1]["bn1.running_mean"])
    states = list(tmp_path.rglob("state-*.safetensors"))
    assert states
    for path in states:
        assert not decode_state(path.read_bytes(), origin=path.name).keys() & own[0].keys()


def test_ditto_changes_no_byte_of_a_federation_and_adds_figures(sites: dict[str, Path], tmp_path: Path) -> None:
    without = run_federation(tmp_path / "without" / "run", text_of({}), sites)
    ditto = run_federation(tmp_path / "ditto" / "run", text_of(DITTO), sites)

    assert ditto.digests == without.digests
    assert ditto.record["figures"]["test"] == without.record["figures"]["test"]
    assert "personal_test" in ditto.record["figures"]
    assert "personal_test" not in without.record["figures"]


def test_server_s_control_variate_is_the_mean_of_the_sites(sites: dict[str, Path], tmp_path: Path) -> None:
    text = text_of(SCAFFOLD)
    run = run_federation(tmp_path / "run", text, sites)

    own = [kept(sites, site, "control", run, round=3) for site in "ab"]
    server = control_of(run)
    assert server.keys() == own[0].keys()
    for name, values in server.items():
        np.testing.assert_allclose(values, (own[0][name] + own[1][name]) / 2, atol=1e-6)


def control_of(run: Run) -> ModelState:
    """The server's control variate after the last round."""
    (path,) = run.folder.path.rglob("memory-control-00003.safetensors")
    return decode_state(path.read_bytes(), origin=path.name)


# --- engines ----------------------------------------------------------------------------------------------------------

ENGINES = ("in-process", "ray", "network")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("method", ["fedbn and ditto", "scaffold"])
def test_all_engines_end_with_the_same_bytes_and_figures(method: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text_of(METHODS[method]), encoding="utf-8")
    results = {}
    for engine in ENGINES:
        sites = write_hospitals(tmp_path / f"hospitals-{engine}", "a", "b", splits=SPLITS)
        out = tmp_path / engine
        done = subprocess.run(
            [
                *(str(Path(sys.executable).parent / "gliorn-simulate"), "--study", str(tmp_path / "study.yaml")),
                *(part for site in sites.values() for part in ("--site", str(site))),
                *("--engine", engine, "--out", str(out), "--json"),
            ],
            capture_output=True,
            text=True,
            timeout=450,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        record = json.loads((out / "record.json").read_text())
        results[engine] = (
            (out / "model" / "final.safetensors").read_bytes(),
            record["figures"],
            record["operating_point"],
        )

    assert results["ray"] == results["in-process"]
    assert results["network"] == results["in-process"]
