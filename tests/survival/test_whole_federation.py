"""A federation of three sites from nothing, by the commands that people type."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.model_state import state_digest
from tests.deployment import Deployment, deployment
from tests.tiny_federation import run_federation
from tests.tiny_hospitals import study_text

STUDY = study_text(participation={"min_sites": 2, "round_timeout_s": 900, "join_timeout_s": 300})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A federation that has carried out one run, and has been ended."""
    with deployment(tmp_path_factory.mktemp("whole"), "a", "b", "c", study=STUDY) as made:
        made.start_server()
        made.join()
        made.begin_run("first")
        made.record("first")
        yield made


@pytest.mark.timeout(400)
def test_run_is_complete_and_ends_with_the_bytes_of_one_on_a_single_machine(
    finished: Deployment, tmp_path: Path
) -> None:
    alone = run_federation(tmp_path / "alone", STUDY, finished.sites)

    assert finished.record("first")["outcome"] == "COMPLETE"
    assert state_digest(finished.final_model("first")) == state_digest(alone.model("final"))
    assert finished.record("first")["figures"] == alone.record["figures"]


def test_hospital_sees_a_plain_line_for_each_round_and_no_traceback(finished: Deployment) -> None:
    lines = finished.log("a")

    assert "connected to the federation north as a" in lines
    assert "round 1 of 2: trained" in lines
    assert "round 2 of 2: trained" in lines
    assert "Traceback" not in lines


def test_status_tells_every_site_and_the_end(finished: Deployment) -> None:
    told = finished.server("status")

    assert all(f"\n{site} " in told for site in finished.sites)
    assert "ended COMPLETE after 2 of 2 rounds" in finished.server("status", "first")


def test_everything_ends_when_it_is_asked_to(finished: Deployment) -> None:
    statuses = finished.end()

    assert set(statuses.values()) == {0}
    assert finished.log("a").rstrip().endswith("left the federation")
