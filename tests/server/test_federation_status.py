"""`gliorn-server status` without a run: the whole federation at a glance."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.tasks import SiteManifest
from server.cli import main
from server.federation_folder import FederationFolder
from server.federation_status import ago, federation_facts, federation_lines, read_federation_status
from server.locks import hold
from server.record import manifest_values
from server.run_folder import RunFolder, write_json
from server.sightings import Sighting, write_sightings
from tests.served_federation import write_federation
from tests.server.invented_runs import InventedSite, write_invented_run

NOW = datetime.now(UTC)


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    """Three sites: a is connected, b was heard of an hour ago, c is revoked and never came."""
    folder = write_federation(tmp_path / "federation", ["a", "b", "c"], lifetime=timedelta(days=89, hours=12))
    a, b, c = folder.read_register()
    folder.write_register([a, b, replace(c, revoked_at=NOW.isoformat())])
    seen = {"a": timedelta(seconds=12), "b": timedelta(hours=3)}
    write_sightings(
        folder.sightings,
        {
            name: Sighting((NOW - age).isoformat(), version="0.1.0", upload_mbit=17.25 if name == "a" else None)
            for name, age in seen.items()
        },
    )
    return folder


def run_at_work(folder: FederationFolder, name: str = "first") -> RunFolder:
    sites = [InventedSite("a"), InventedSite("b", not_accepted={3: ("failed", "the site went offline")})]
    run = write_invented_run(folder.runs / name, sites, rounds=9, rounds_done=3, finished=False)
    run.write_wish("run")
    counts: dict[str, tuple[int, int]] = {"train": (30, 9), "validation": (12, 5), "test": (16, 6)}
    manifest = SiteManifest("a", "", counts, {}, {}, {}, {}, "cpu", 1, {})  # type: ignore[arg-type]
    write_json(run.manifests, {"a": manifest_values(manifest)})
    return run


def lines_of(folder: FederationFolder) -> list[str]:
    return federation_lines(read_federation_status(folder, now=NOW), now=NOW)


def test_served_federation_with_a_run_at_work_is_told_at_a_glance(folder: FederationFolder) -> None:
    run = run_at_work(folder)

    with hold(folder.lock, otherwise="held"), hold(run.server_app_lock, otherwise="held"):
        lines = lines_of(folder)

    assert lines[0] == f"Federation tiny, sites connect to {folder.read_config().address}"
    assert lines[1:4] == ["  server: running", "  certificate: 89 days left", ""]
    assert [" ".join(line.split()) for line in lines[4:8]] == [
        "SITE STATE LAST SEEN ASKED FOR VERSION UPLOAD PATIENTS recurrence+necrosis",
        "a connected 12 s ago round 3, answered 0.1.0 17.2 Mbit/s train 30+9, validation 12+5, test 16+6",
        "b away 3 h ago round 3, at work 0.1.0 - -",
        "c revoked - - - - -",
    ]
    assert lines[9] == "first: round 3 of 9, 3 done"
    assert "    - b was not in round 3: failed: the site went offline" in lines


def test_without_a_server_nobody_is_connected_and_the_next_step_is_told(folder: FederationFolder) -> None:
    lines = lines_of(folder)

    assert lines[1] == "  server: not running; `gliorn-server start` starts it"
    assert lines[5].split()[:2] == ["a", "away"]
    assert "No run yet; `gliorn-server run study.yaml` begins one." in lines


def test_runs_that_wait_and_runs_that_were_given_up_on_are_named(folder: FederationFolder) -> None:
    run, waiting, failed = (run_at_work(folder, name) for name in ("first", "second", "third"))
    write_json(failed.trouble, "its program ended 5 times")

    with hold(run.server_app_lock, otherwise="held"):
        lines = lines_of(folder)

    assert f"Waiting for their turn: {waiting.name}" in lines
    assert "third: its program ended 5 times" in lines


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (89, "89 days left"),
        (20, "19 days left; `gliorn-server certs renew` makes a new one"),
        (-2, "expired, no site can connect; `gliorn-server certs renew` makes a new one"),
    ],
)
def test_end_of_the_certificate_is_told_early(tmp_path: Path, days: int, text: str) -> None:
    folder = write_federation(tmp_path / "federation", lifetime=timedelta(days=days, hours=-2 if days < 89 else 2))

    assert lines_of(folder)[2] == f"  certificate: {text}"


def test_federation_without_sites_says_how_to_begin(tmp_path: Path) -> None:
    folder = write_federation(tmp_path / "federation")

    assert "No site has been admitted; `gliorn-server invite SITE` begins that." in lines_of(folder)


def test_damaged_run_is_told_and_hides_nothing_else(folder: FederationFolder) -> None:
    run = run_at_work(folder)
    run.status.write_text("{")

    lines = lines_of(folder)

    assert lines[5].split()[0] == "a"
    assert any("status.json: unreadable" in line for line in lines)


def test_status_as_json_is_for_a_script(folder: FederationFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run_at_work(folder)

    assert main(["status", "--json", "--federation", str(folder.path)]) == 0

    values = json.loads(capsys.readouterr().out)
    assert (values["name"], values["served"], values["certificate_days"]) == ("tiny", False, 89)
    assert values["sites"][0]["num_patients"]["train"] == [30, 9]
    assert values["sites"][0]["last_seen"].endswith("+00:00")
    assert values["run"]["rounds_done"] == 3


def test_news_hold_no_ages_so_that_only_changes_are_new(folder: FederationFolder) -> None:
    run_at_work(folder)
    before = federation_facts(read_federation_status(folder, now=NOW))
    later = federation_facts(read_federation_status(folder, now=NOW + timedelta(seconds=9)))

    assert later == before
    assert "a: away" in before
    assert "c: revoked" in before
    assert asdict(read_federation_status(folder, now=NOW))["faults"] == ()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s ago"), (119, "119 s ago"), (120, "2 min ago"), (7200, "2 h ago"), (1e6, "11 d ago")],
)
def test_ages_are_told_in_one_unit(seconds: float, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), now=NOW) == text
