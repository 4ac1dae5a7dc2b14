"""Comparison of two runs over a real federation: equals DeLong on the pooled scores, and says who is not in it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import read_site_config
from client.kept_scores import read_scores
from common.errors import ConfigError
from common.metrics.paired import KeptScores, site_comparison, site_difference
from common.tasks import ModelOfRun
from server.compare_with import EarlierModel, find_models, note_models, noted_models
from server.run_folder import RunFolder
from tests.tiny_federation import Run, begin_run, carry_on, run_federation, write_hospitals
from tests.tiny_hospitals import study_text

OLD_STUDY = study_text(rounds=1)
NEW_STUDY = study_text(rounds=1, training={"learning_rate": 1e-4}, evaluation={"num_bins": 64})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], Run, Run]:
    """An earlier run and a later one that was compared with it, over the same three hospitals."""
    folder = tmp_path_factory.mktemp("federation")
    sites = write_hospitals(folder, "a", "b", "c")
    old = run_federation(folder / "runs" / "old", OLD_STUDY, sites)
    new = begin_run(folder / "runs" / "new", NEW_STUDY, sites)
    note_models(new, find_models(folder / "runs", ["old"]))
    return folder, sites, old, carry_on(new, sites)


def kept(site: Path, run: Run) -> KeptScores:
    model = ModelOfRun(run.folder.name, run.folder.read_study().digest, run_id=run.record["run_id"])
    tested = read_scores(read_site_config(site).cache, model)
    assert tested is not None
    return tested.scores


def joined(parts: list[KeptScores]) -> KeptScores:
    index, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("index", "labels"))
    return KeptScores(index, labels, parts[0].num_bins)


def forget(site: Path, run: str) -> None:
    for path in (read_site_config(site).cache / "scores").glob(f"{run}-*"):
        shutil.rmtree(path)


def comparison_of(run: Run) -> dict[str, Any]:
    (found,) = run.record["comparisons"]
    assert isinstance(found, dict)
    return found


def test_record_holds_the_difference_of_the_pooled_scores(
    federation: tuple[Path, dict[str, Path], Run, Run],
) -> None:
    _, sites, old, new = federation
    found = comparison_of(new)

    both = [joined([kept(site, run) for site in sites.values()]) for run in (new, old)]
    expected = site_difference(site_comparison(both[0], both[1]))

    assert found["missing"] == {}
    assert found["pooled"]["first"] == new.record["figures"]["test"]["figures"]["pooled"]["auc"]["estimate"]["value"]
    assert found["pooled"]["second"] == old.record["figures"]["test"]["figures"]["pooled"]["auc"]["estimate"]["value"]
    assert found["pooled"]["difference"]["value"] == pytest.approx(expected.difference.value, abs=1e-12)
    assert found["pooled"]["difference"]["low"] == pytest.approx(expected.difference.low, abs=1e-6)


def test_every_site_reads_what_it_gained(federation: tuple[Path, dict[str, Path], Run, Run]) -> None:
    _, sites, old, new = federation

    rows = comparison_of(new)["per_site"]

    assert list(rows) == ["a", "b", "c"]
    own = site_difference(site_comparison(kept(sites["b"], new), kept(sites["b"], old)))
    assert rows["b"]["difference"]["value"] == own.difference.value
    assert rows["b"]["num_necrosis"] == 3


def test_run_that_asked_for_no_comparison_has_none_in_its_record(
    federation: tuple[Path, dict[str, Path], Run, Run],
) -> None:
    assert "comparisons" not in federation[2].record


def test_site_that_was_not_tested_before_is_left_out_and_named(
    federation: tuple[Path, dict[str, Path], Run, Run],
) -> None:
    folder, sites, _, _ = federation
    forget(sites["c"], "old")
    again = begin_run(folder / "runs" / "again", NEW_STUDY, sites)
    note_models(again, find_models(folder / "runs", ["old"]))

    run = carry_on(again, sites)

    found = comparison_of(run)
    assert run.record["outcome"] == "COMPLETE"
    assert found["missing"] == {"c": "failed: data"}
    assert list(found["per_site"]) == ["a", "b"]
    assert found["pooled"] is None
    assert found["not_pooled"] == "the counts of 2 of the 3 sites that pooled tables need"
    assert found["within_site"]["difference"] is not None


def test_too_few_sites_have_no_figures(federation: tuple[Path, dict[str, Path], Run, Run]) -> None:
    folder, sites, _, _ = federation
    forget(sites["c"], "old")
    few = begin_run(folder / "runs" / "few", study_text(rounds=1, evaluation={"min_pooled_sites": 3}), sites)
    note_models(few, find_models(folder / "runs", ["old"]))

    found = comparison_of(carry_on(few, sites))

    assert found["not_pooled"] == "the counts of 2 of the 3 sites that the study asks for"
    assert (found["pooled"], found["within_site"], found["per_site"]) == (None, None, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("other", "'other': no run of that name has ended, expected one of: ", id="unknown"),
        pytest.param("../old", "no run of that name", id="outside"),
        pytest.param("old/personal", "its study has no personalization; write old", id="no personal models"),
        pytest.param("invalid", "ended INVALID and was not tested", id="invalid"),
    ],
)
def test_names_that_are_of_no_run_with_a_result_are_refused(
    name: str, message: str, federation: tuple[Path, dict[str, Path], Run, Run]
) -> None:
    runs = federation[0] / "runs"
    invalid = runs / "invalid"
    if not invalid.exists():
        shutil.copytree(runs / "old", invalid)
        record = json.loads((invalid / "record.json").read_text())
        (invalid / "record.json").write_text(json.dumps(record | {"outcome": "INVALID"}))

    with pytest.raises(ConfigError, match=message):
        find_models(runs, [name])


def test_note_survives_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    models = [EarlierModel(ModelOfRun("old", "a" * 64, personal=True), own_models=True)]

    assert noted_models(folder) == []
    note_models(folder, models)
    assert noted_models(folder) == models

    (tmp_path / "compare_with.json").write_text("[{}]")
    with pytest.raises(ConfigError, match="unreadable; delete it"):
        noted_models(folder)


def test_damaged_note_is_refused_before_the_run_begins(
    federation: tuple[Path, dict[str, Path], Run, Run], tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", NEW_STUDY, federation[1])
    (folder.path / "compare_with.json").write_text("[{}]")

    with pytest.raises(ConfigError, match="unreadable; delete it"):
        carry_on(folder, federation[1])

    assert not folder.status.exists()
