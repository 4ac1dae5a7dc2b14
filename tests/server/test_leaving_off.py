"""A run heeds what the coordinator wishes between two rounds, and goes on later as if nothing had been."""

import json
from pathlib import Path

import pytest
from flwr.app import Message

from server.leaving_off import read_manifests
from server.run_folder import RunFolder, Wish
from server.run_status import read_status
from tests.tiny_federation import Answer, FaultyClientApp, Run, begin_run, carry_on, run_federation
from tests.tiny_hospitals import study_text

STUDY = study_text(rounds=3, participation={"min_sites": 2})


@pytest.fixture(scope="module")
def two(hospitals: dict[str, Path]) -> dict[str, Path]:
    return {name: hospitals[name] for name in ("a", "b")}


@pytest.fixture(scope="module")
def undisturbed(two: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_federation(tmp_path_factory.mktemp("undisturbed") / "run", STUDY, two)


def carry_with_a_wish_in_round_2(folder: RunFolder, sites: dict[str, Path], wish: Wish) -> None:
    def act(message: Message, answer: Answer) -> Message:
        folder.write_wish(wish)
        return answer()

    carry_on(folder, sites, app=FaultyClientApp("a", act, only_round=2))


def test_paused_run_ends_its_round_and_later_ends_with_the_same_bytes(
    two: dict[str, Path], undisturbed: Run, tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", STUDY, two)

    carry_with_a_wish_in_round_2(folder, two, "pause")

    assert not folder.record.exists()
    assert (read_status(folder).phase, read_status(folder).rounds_done) == ("paused", 2)
    folder.write_wish("run")
    resumed = carry_on(folder, two)
    assert resumed.record["outcome"] == "COMPLETE"
    assert resumed.digests == undisturbed.digests
    assert (folder.model / "best.safetensors").read_bytes() == (
        undisturbed.folder.model / "best.safetensors"
    ).read_bytes()


def test_stopped_run_says_in_its_record_after_which_round_and_can_go_on(
    two: dict[str, Path], undisturbed: Run, tmp_path: Path
) -> None:
    folder = begin_run(tmp_path / "run", STUDY, two)

    carry_with_a_wish_in_round_2(folder, two, "stop")

    record = Run(folder).record
    assert (record["outcome"], record["rounds_done"]) == ("INVALID", 2)
    assert record["problems"] == ["the coordinator stopped the run after round 2"]
    folder.write_wish("run")
    assert carry_on(folder, two).digests == undisturbed.digests


def test_what_the_sites_bring_is_on_disk_as_soon_as_they_have_joined(two: dict[str, Path], tmp_path: Path) -> None:
    folder = begin_run(tmp_path / "run", STUDY, two)

    carry_with_a_wish_in_round_2(folder, two, "pause")

    manifests = read_manifests(folder)
    assert {site: manifest.num_patients["train"] for site, manifest in manifests.items()} == {"a": (4, 4), "b": (4, 4)}
    assert set(json.loads(folder.manifests.read_text())) == {"a", "b"}
