"""`gliorn-server start` with Flower's real programs: it serves, survives, and leaves nothing behind."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from server.cli import main
from server.federation_folder import FederationFolder
from server.federation_status import read_federation_status
from server.superlink import KeyInUseError, SuperLink
from tests.served_federation import Server, admit_new_site, end_all_of, processes_of, write_federation
from tests.tiny_hospitals import study_text

PROGRAMS = {"superlink": "flower-superlink", "superexec": "flower-superexec", "gateway": "server.gateway"}
FOUND_NO_ROOM = ("cli/config.toml", "children.json", "registered.json")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has registered two sites, and whose disk was full at first. Tests leave it running."""
    folder = write_federation(tmp_path_factory.mktemp("served") / "federation", ["a", "b"])
    (folder.superlink / "cli").mkdir()
    for file in FOUND_NO_ROOM:
        (folder.superlink / f"{file}.partial").symlink_to("/dev/full")
    server = Server(folder).start()
    try:
        server.wait_for("ready")
        server.wait_for("b: registered")
        yield server
    finally:
        server.clear_away()


def superlink(folder: FederationFolder) -> SuperLink:
    return SuperLink(folder.superlink, port=folder.read_config().superlink_port, runs=folder.runs)


def pid_of(folder: FederationFolder, program: str) -> int | None:
    found = [pid for pid, command in processes_of(folder.path).items() if PROGRAMS[program] in command]
    return found[0] if found else None


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.2)


def test_its_programs_run_and_both_ports_are_open(server: Server) -> None:
    config = server.folder.read_config()

    assert all(pid_of(server.folder, program) for program in PROGRAMS)
    for port in (config.port, config.superlink_port):
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass


def test_disk_that_was_full_at_first_was_told_of_and_cost_nothing(server: Server) -> None:
    told = [line for line in server.lines if "disk is full" in line or "cannot be written" in line]

    assert any("the coordinator's disk is full: make some room; trying again" in line for line in told)
    assert any("children.json: cannot be written (No space left on device)" in line for line in told)
    assert not any("started again" in line or "starting it again" in line for line in told)
    assert all((server.folder.superlink / file).is_file() for file in FOUND_NO_ROOM)


def test_output_of_each_program_is_in_a_log_of_its_own(server: Server) -> None:
    assert "Starting Flower SuperLink" in (server.folder.logs / "superlink.log").read_text()
    assert "Starting Flower SuperExec" in (server.folder.logs / "superexec.log").read_text()
    assert (server.folder.logs / "gateway.log").is_file()


@pytest.mark.parametrize("file", ["superlink/tls/server.key", "superlink/superexec.secret", "superlink/state.db"])
def test_its_secrets_are_for_the_owner_alone(server: Server, file: str) -> None:
    assert (server.folder.path / file).stat().st_mode & 0o077 == 0


def test_admitted_keys_are_known_to_the_superlink(server: Server) -> None:
    registered = json.loads((server.folder.superlink / "registered.json").read_text())

    assert {each["node"] for each in registered} <= superlink(server.folder).nodes()
    with pytest.raises(KeyInUseError, match="already in use"):
        superlink(server.folder).register(server.folder.superlink / "keys" / "a.pub", name="a")


def test_site_that_is_admitted_and_revoked_while_it_serves_comes_and_goes(server: Server) -> None:
    folder = server.folder
    sites = folder.read_register()
    new = admit_new_site(folder, "c")
    folder.write_register([*sites, new])
    said = server.wait_for("c: registered")

    folder.write_register([*sites, replace(new, revoked_at="2026-01-01T00:00:00+00:00")])

    server.wait_for("c: revoked, and taken out of the SuperLink", after=said)
    registered = {each["site"]: each["node"] for each in json.loads((folder.superlink / "registered.json").read_text())}
    assert registered["c"] not in superlink(folder).nodes()


def test_a_second_start_is_refused(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--federation", str(server.folder.path)]) == 2

    assert "another `gliorn-server start` serves this federation already; end that one first" in capsys.readouterr().err


def test_status_tells_that_it_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--federation", str(server.folder.path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["  server: running", "  certificate: 89 days left"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_that_is_killed_is_started_again(server: Server, program: str) -> None:
    before = pid_of(server.folder, program)
    assert before is not None
    said = len(server.lines)

    os.kill(before, signal.SIGKILL)

    server.wait_for(f"{program} ended with status -9", after=said)
    wait_until(lambda: pid_of(server.folder, program) not in (None, before))


def test_run_without_sites_begins_pauses_at_once_and_can_be_stopped(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, federation = tmp_path / "study.yaml", str(server.folder.path)
    study.write_text(study_text(participation={"min_sites": 2}))
    said = len(server.lines)

    assert main(["run", str(study), "--name", "first", "--federation", federation]) == 0
    assert main(["run", str(study), "--name", "second", "--federation", federation]) == 0
    said = server.wait_for("run first: at work", after=said)
    status = read_federation_status(server.folder, now=datetime.now(UTC))
    assert main(["pause", "first", "--now", "--federation", federation]) == 0
    said = server.wait_for("run first: set aside after round 0", after=said)
    said = server.wait_for("run second: at work", after=said)
    assert main(["stop", "second", "--now", "--federation", federation]) == 0
    server.wait_for("run second: ended INVALID", after=said)

    assert status.queue == ("second",)
    assert status.run is not None
    assert (status.run.run, status.run.alive) == ("first", True)
    record = json.loads((server.folder.runs / "second" / "record.json").read_text())
    assert record["problems"][0] == "the coordinator stopped the run after round 0"
    assert record["engine"] == "federation"
    assert "Run first waits." in capsys.readouterr().out


def test_start_after_a_kill_ends_what_is_left_and_serves_with_the_same_authority(tmp_path: Path) -> None:
    folder = write_federation(tmp_path / "federation", ["a"])
    killed = Server(folder).start()
    following = Server(folder)
    try:
        killed.wait_for("a: registered")
        authority = superlink(folder).authority.read_bytes()
        killed.kill()
        left = set(processes_of(folder.path))
        assert len(left) == 3

        following.start()
        following.wait_for("ready")
        assert not left & set(processes_of(folder.path))
        assert following.end() == 0

        assert superlink(folder).authority.read_bytes() == authority
        assert processes_of(folder.path) == {}
        assert not any("a: registered" in line for line in following.lines), "the database knows it"
        assert following.lines[-1].endswith("ended; runs that were at work go on at the next start")
    finally:
        killed.clear_away()
        if hasattr(following, "process"):
            following.clear_away()
        end_all_of(tmp_path)


# --- what it refuses -------------------------------------------------------------------------------------------------


def refusal(folder: FederationFolder, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["start", "--federation", str(folder.path)]) == 2
    return capsys.readouterr().err


def test_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_federation(tmp_path / "federation")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", folder.read_config().port))
        taken.listen()

        message = refusal(folder, capsys)

    assert f"nothing can listen on 127.0.0.1 port {folder.read_config().port} (Address already in use)" in message
    assert "write another port" in message


def test_port_of_the_superlink_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_federation(tmp_path / "federation")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", folder.read_config().superlink_port))
        taken.listen()

        assert "write another superlink_port" in refusal(folder, capsys)


def test_expired_certificate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_federation(tmp_path / "federation", lifetime=timedelta(days=-3))

    assert f"expired on {datetime.now(UTC) - timedelta(days=3):%Y-%m-%d}, no site would connect; " in refusal(
        folder, capsys
    )


def test_absent_certificate_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_federation(tmp_path / "federation")
    folder.certificate.unlink()

    assert "server.crt: unreadable (FileNotFoundError)" in refusal(folder, capsys)


def test_folder_without_a_federation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no readable federation.yaml in it" in refusal(FederationFolder(tmp_path), capsys)


def test_fault_in_the_settings_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_federation(tmp_path / "federation")
    values = yaml.safe_load(folder.config.read_text())
    folder.config.write_text(yaml.safe_dump(values | {"port": 99999}))

    assert "found 99999" in refusal(folder, capsys)
