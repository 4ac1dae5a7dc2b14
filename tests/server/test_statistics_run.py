"""A run of statistics: sums are those of the sites, who refuses or lies is named and left out, nothing is trained."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from flwr.app import Message, MetricRecord
from flwr.clientapp import ClientApp

from client.app import SITE_CONFIG_KEY
from client.app import app as client_app
from client.cohort_statistics import counted_rows
from client.config import read_site_config
from client.prepare import prepare_site
from common.errors import ConfigError
from common.study import parse_study
from server.compare_with import find_models
from server.keeper import is_due, outcome_of
from server.run_folder import RunFolder
from server.run_status import read_status, stand
from server.statistics_note import note_statistics, statistics_file, statistics_page
from server.statistics_page import read_statistics, statistics_lines
from server.statistics_run import carry_statistics
from simulations.engines.in_process import InProcessGrid
from tests.tiny_federation import Answer, FaultyClientApp, begin_run, write_hospitals
from tests.tiny_hospitals import study_text

SHOWN = {"min_patients": 1, "min_cell": 3, "max_bins": 256, "statistics": True}
SPLITS = (("train", 4, 3), ("validation", 3, 1), ("test", 3, 3))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sites")
    return {
        **write_hospitals(folder, "a", "b", disclosure=SHOWN, splits=SPLITS),
        **write_hospitals(folder, "c", splits=SPLITS),  # has not agreed to statistics
    }


def run(path: Path, sites: Mapping[str, Path], *, app: ClientApp = client_app) -> tuple[RunFolder, dict[str, Any]]:
    """Carry a run of statistics; returns its folder and its `statistics.json`."""
    folder = begin_run(path, study_text(), sites)
    note_statistics(folder)
    folder.write_wish("run")
    assert is_due(folder)
    grid = InProcessGrid(app, {name: {SITE_CONFIG_KEY: str(site)} for name, site in sites.items()}, workers=1)
    carry_statistics(grid, folder, now=lambda: datetime.now(UTC))
    return folder, json.loads(statistics_file(folder).read_text())


def row(values: Mapping[str, Any], table: str, name: str) -> dict[str, Any]:
    rows = next(each["rows"] for each in values["tables"] if each["name"] == table)
    found: dict[str, Any] = next(each for each in rows if each["name"] == name)
    return found


def test_sums_are_those_of_a_direct_count_and_a_silent_site_is_named(
    hospitals: Mapping[str, Path], tmp_path: Path
) -> None:
    folder, values = run(tmp_path / "run", hospitals)

    study = parse_study(study_text(), origin="study")
    direct = [
        counted_rows(prepare_site(read_site_config(hospitals[site]), study), study.sequences) for site in ("a", "b")
    ]
    assert values["missing"] == {"c": "does not disclose statistics"}
    t2 = row(values, "intensity", "t2")
    for place, num_sites in enumerate(t2["num_sites"]):
        if num_sites == 2:
            assert t2["pooled"][place] == sum(rows["intensity", "t2"][place].count for rows in direct)
    assert 2 in t2["num_sites"]
    assert row(values, "sex", "necrosis")["pooled"] == [0, 0, 0, 14]
    assert row(values, "split", "recurrence") == {
        "name": "recurrence",
        "pooled": [8, 6, 6],
        "num_sites": [2, 2, 2],
        "per_site": {"a": [4, 3, 3], "b": [4, 3, 3]},
    }
    assert row(values, "split", "necrosis")["per_site"]["a"] == [None, None, None]
    assert (outcome_of(folder), is_due(folder)) == ("DEGRADED", False)
    assert not list(folder.checkpoints.iterdir())
    record = json.loads(folder.record.read_text())
    assert (record["kind"], record["problems"]) == ("statistics", ["c: does not disclose statistics"])
    assert record["sites"] == {}


def test_page_and_lines_show_what_was_pooled(hospitals: Mapping[str, Path], tmp_path: Path) -> None:
    folder, _ = run(tmp_path / "run", {site: hospitals[site] for site in ("a", "c")})

    lines = "\n".join(statistics_lines(read_statistics(folder)))
    page = statistics_page(folder).read_text()

    assert "c: does not disclose statistics" in lines
    assert "c: does not disclose statistics" in page
    assert "train                               4/1         –" in lines
    assert page.count("<svg") == 6 + 3
    assert "http" not in page
    assert ">hidden<" in page
    assert stand(read_status(folder)) == "ended DEGRADED after statistics alone"
    with pytest.raises(ConfigError, match="is a run of statistics and tested no model"):
        find_models(tmp_path, ["run"])


def edited(change: Callable[[MetricRecord], object]) -> Callable[[Message, Answer], Message]:
    """An act of a site that changes the counts it sends."""

    def act(message: Message, answer: Answer) -> Message:
        reply = answer()
        record = reply.content["cohort-statistics"]
        assert isinstance(record, MetricRecord)
        change(record)
        return reply

    return act


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            lambda record: record.update({"sex/necrosis": [500, 0, 0, 0]}),
            "sex/necrosis counts 500 patients, registered 7",
            id="more patients than registered",
        ),
        pytest.param(
            lambda record: record.update({"exams/patients": [3, 0, 0, 0]}),
            "exams/patients counts 3 patients, registered 17",
            id="fewer, and nothing hidden",
        ),
        pytest.param(
            lambda record: record.update({"split/recurrence": [3, 4, 3]}),
            "3 patients with recurrence in train, registered 4",
            id="another split",
        ),
        pytest.param(
            lambda record: record.update({"intensity/t1": [10**9] * 24}), "counts 24000000000 voxels", id="voxels"
        ),
        pytest.param(lambda record: record.update({"age/necrosis": [7]}), "age/necrosis has 1 cells", id="wrong shape"),
        pytest.param(lambda record: record.update({"age/necrosis": [7.0] * 9}), "whole numbers", id="no integers"),
        pytest.param(lambda record: record.pop("age/necrosis"), "age/necrosis", id="row left out"),
    ],
)
def test_counts_that_cannot_be_are_refused(
    hospitals: Mapping[str, Path], tmp_path: Path, change: Callable[[MetricRecord], object], reason: str
) -> None:
    app = FaultyClientApp("b", edited(change), message_type="query.statistics")

    _, values = run(tmp_path / "run", {site: hospitals[site] for site in ("a", "b")}, app=app)

    assert values["sites"] == ["a"]
    assert reason in values["missing"]["b"]
    assert row(values, "exams", "patients")["pooled"] == [17, 0, 0, 0]


def test_run_in_which_no_site_shows_anything_is_invalid(hospitals: Mapping[str, Path], tmp_path: Path) -> None:
    folder, values = run(tmp_path / "run", {"c": hospitals["c"]})

    assert outcome_of(folder) == "INVALID"
    assert values["sites"] == []
    assert "no site shows statistics" in read_status(folder).problems[0]
    assert "does not disclose" in statistics_page(folder).read_text()


@pytest.mark.parametrize(
    ("wish", "at"), [("stop", "query.describe"), ("pause", "query.statistics"), ("stop", "query.duplicates")]
)
def test_coordinator_can_end_it_between_any_two_steps(
    hospitals: Mapping[str, Path], tmp_path: Path, wish: Literal["pause", "stop"], at: str
) -> None:
    def wished(message: Message, answer: Answer) -> Message:
        RunFolder(tmp_path / "run").write_wish(wish)
        return answer()

    folder = begin_run(tmp_path / "run", study_text(), {"a": hospitals["a"]})
    note_statistics(folder)
    folder.write_wish("run")
    app = FaultyClientApp("a", wished, message_type=at)
    node = {"a": {SITE_CONFIG_KEY: str(hospitals["a"])}}

    ended = carry_statistics(InProcessGrid(app, node, workers=1), folder, now=lambda: datetime.now(UTC))

    assert ended == {"pause": "PAUSED", "stop": "INVALID"}[wish]
    assert not statistics_file(folder).exists()
    assert folder.record.exists() == (wish == "stop")
    assert outcome_of(folder) == (None if wish == "pause" else "INVALID")
    folder.write_wish("run")
    assert (
        carry_statistics(InProcessGrid(client_app, node, workers=1), folder, now=lambda: datetime.now(UTC))
        == "COMPLETE"
    )
