"""A run that is killed at any moment and carried on ends with the bytes of a run that was never stopped."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from server.federation import QuorumError
from tests.killed_run import Moment, carry_on_in_a_process
from tests.tiny_federation import Run, begin_run, carry_on, run_federation, write_hospitals
from tests.tiny_hospitals import study_text

STUDY = study_text(
    rounds=3,
    participation={"join_timeout_s": 1},
    training={"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.02, "keep_optimizer_state": True},
)
SPLITS = (("train", 4, 3), ("validation", 2, 2), ("test", 2, 2))

MOMENTS = {
    "before anything is committed": Moment("before", "progress.json"),
    "before the state of round 2": Moment("before", "state-00002.safetensors"),
    "after the state of round 2": Moment("after", "state-00002.safetensors"),
    "after the line of round 2, before its progress": Moment("after", "rounds.jsonl", 3),
    "after the progress of round 2": Moment("after", "progress.json", 3),
    "in the middle of a site's training in round 2": Moment("call", "client.training:augment", 6),
    "between two sites of round 3": Moment("call", "client.site_memory:write_atomically", 6),
    "in the last evaluation": Moment("call", "client.site:disclose", 8),
    "between the two models": Moment("before", "final.safetensors"),
    "before the record": Moment("before", "record.json"),
}
"""Two sites take 2 steps a round, evaluate once a round, and keep their optimisers once a round."""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_hospitals(tmp_path_factory.mktemp("hospitals"), "a", "b", splits=SPLITS)


@pytest.fixture(scope="module")
def uninterrupted(sites: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_federation(tmp_path_factory.mktemp("uninterrupted") / "run", STUDY, sites)


def without_times(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for record in rounds:
        del record["started_at"], record["seconds"]
        for site in record["sites"].values():
            del site["seconds"]
    return rounds


def require_same_result(run: Run, expected: Run) -> None:
    for name in ("best.safetensors", "final.safetensors"):
        assert (run.folder.model / name).read_bytes() == (expected.folder.model / name).read_bytes()
    for entry in ("outcome", "problems", "figures", "selection", "operating_point", "models", "sites"):
        assert run.record[entry] == expected.record[entry]
    assert without_times(run.rounds) == without_times(expected.rounds)


def test_optimizers_go_on_from_round_to_round_in_these_runs(uninterrupted: Run) -> None:
    states = [{name: site["optimizer"] for name, site in r["sites"].items()} for r in uninterrupted.rounds]

    assert states == [dict.fromkeys("ab", "fresh"), dict.fromkeys("ab", "continued"), dict.fromkeys("ab", "continued")]
    assert uninterrupted.record["outcome"] == "COMPLETE"


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_killed_run_ends_with_the_bytes_of_one_that_was_not(
    moment: Moment, sites: dict[str, Path], uninterrupted: Run, tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", STUDY, sites)

    killed = carry_on_in_a_process(folder, sites, kill=moment)
    assert not folder.record.exists()
    ended = carry_on_in_a_process(folder, sites)

    assert (killed, ended) == (-9, 0)
    require_same_result(Run(folder), uninterrupted)
    assert Run(folder).record["num_resumed"] == int(moment != MOMENTS["before anything is committed"])


def test_run_that_is_killed_twice_still_ends_the_same(
    sites: dict[str, Path], uninterrupted: Run, tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", STUDY, sites)

    for moment in (Moment("after", "state-00001.safetensors"), Moment("call", "client.training:augment", 7)):
        assert carry_on_in_a_process(folder, sites, kill=moment) == -9
    assert carry_on_in_a_process(folder, sites) == 0

    require_same_result(Run(folder), uninterrupted)
    assert Run(folder).record["num_resumed"] == 2


def test_finished_run_that_is_carried_on_stays_as_it_is(
    sites: dict[str, Path], uninterrupted: Run, tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", STUDY, sites)
    carry_on(folder, sites)

    again = carry_on(folder, sites)

    require_same_result(again, uninterrupted)


def test_without_the_kept_optimizer_state_the_model_is_another(
    sites: dict[str, Path], uninterrupted: Run, tmp_path: Path
) -> None:
    forgetful = STUDY.replace("keep_optimizer_state: true", "keep_optimizer_state: false")
    assert forgetful != STUDY

    run = run_federation(tmp_path / "run", forgetful, sites)

    assert run.digests[0] == uninterrupted.digests[0]
    assert run.digests[1] != uninterrupted.digests[1]


@pytest.fixture
def stopped(sites: dict[str, Path], tmp_path: Path) -> Run:
    """A run that stands after round 2."""
    folder = begin_run(tmp_path / "run", STUDY, sites)
    assert carry_on_in_a_process(folder, sites, kill=Moment("after", "progress.json", 3)) == -9
    return Run(folder)


def test_run_with_a_damaged_checkpoint_does_not_go_on(stopped: Run, sites: dict[str, Path]) -> None:
    state = stopped.folder.state(2)
    payload = bytearray(state.read_bytes())
    payload[-1] ^= 1
    state.write_bytes(payload)

    with pytest.raises(ConfigError, match=r"state-00002\.safetensors: its SHA-256 is not the one in progress\.json"):
        carry_on(stopped.folder, sites)


def test_site_whose_patients_changed_while_the_run_stood_is_not_let_in_again(
    stopped: Run, sites: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "changed" / "b"
    shutil.copytree(sites["b"].parent, home)
    table = home / "table.tsv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")

    run = carry_on(stopped.folder, {"a": sites["a"], "b": home / "site.yaml"})

    assert run.record["outcome"] == "DEGRADED"
    assert run.record["missing_in_rounds"] == {"b": {"absent: its patients are not those it began the run with": [3]}}


def test_no_sites_come_back(stopped: Run, sites: dict[str, Path]) -> None:
    folder = stopped.folder
    folder.study.write_text(STUDY)

    with pytest.raises(QuorumError, match="0 of 2 sites joined, the study needs 1"):
        carry_on(folder, {"z": sites["a"]})

    assert Run(folder).record["outcome"] == "INVALID"
    assert Run(folder).record["rounds_done"] == 2
