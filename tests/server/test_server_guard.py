"""The coordinator runs its own ServerApp, and nothing that is submitted to its SuperLink."""

import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import pytest
from flwr.serverapp import ServerApp

from common.bundle import bundle_digest, installed_bundle
from common.errors import ProtocolError
from server.flower_private import run_serverapp
from server.guard import EXIT_REFUSED, REFUSED_PROGRAMS, require_installed_bundle, write_guard
from server.processes import free_ports, stop_group
from server.run_folder import Participants, create_run_folder
from server.superlink import SuperLink
from tests.tiny_hospitals import study_text

SERVER_APP = """
from pathlib import Path
from flwr.serverapp import ServerApp
Path({imported!r}).touch()
app = ServerApp()

@app.main()
def main(grid, context):
    Path({ran!r}).touch()
"""
BUNDLE = """
[project]
name = "gliorn"
version = "0.2.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0"]
[tool.flwr.app]
publisher = "gliorn"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "foreign.server:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
run = ""
"""


def test_installed_bundle_is_let_through() -> None:
    require_installed_bundle(installed_bundle())


def test_any_other_bundle_is_refused_with_both_digests_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    other = installed_bundle() + b"\0"
    digests = f"installed {bundle_digest(installed_bundle())}, offered {bundle_digest(other)}"

    with pytest.raises(ProtocolError, match=digests), caplog.at_level(logging.ERROR):
        require_installed_bundle(other)

    assert digests in caplog.text


def test_flower_finds_only_the_guard_s_programs(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "flwr-left-over").touch()

    write_guard(programs)

    assert {path.name for path in programs.iterdir()} == {"flwr-serverapp", *REFUSED_PROGRAMS}
    assert {stat.S_IMODE(path.stat().st_mode) for path in programs.iterdir()} == {0o700}
    for name in REFUSED_PROGRAMS:
        done = subprocess.run([programs / name, "--token", "x"], capture_output=True, check=False)
        assert done.returncode == EXIT_REFUSED
        assert b"refused" in done.stderr


def test_guard_stands_for_every_program_that_flower_s_superexec_starts() -> None:
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    assert set(TASK_TYPE_TO_COMMAND.values()) == {"flwr-serverapp", *REFUSED_PROGRAMS}


@pytest.mark.parametrize("name", ["install_from_fab", "get_project_config", "run_"])
def test_flower_that_is_made_otherwise_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(import_module("flwr.superlink.runtime.run_serverapp"), name)

    with pytest.raises(ImportError, match=rf"lacks {name}.*flwr>=1\.41,<1\.42"):
        run_serverapp([], check=lambda bundle: None, load=ServerApp)


# --- through real Flower processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    """A SuperLink and its SuperExec, as the coordinator starts them."""
    folder = tmp_path_factory.mktemp("coordinator")
    (port,) = free_ports(1)
    link = SuperLink(folder / "superlink", port=port, runs=folder / "runs")
    link.prepare(now=datetime.now(UTC))
    environment = link.environment(os.environ) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "log").open("wb") as log:
            for command in (link.superlink_command(), link.superexec_command()):
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
                wait_until(link.is_listening)
        yield link
    finally:
        for process in reversed(processes):
            stop_group(process, patience_s=1.0)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.2)


def end_of(link: SuperLink, run_id: str) -> str:
    wait_until(lambda: link.state_of(run_id).startswith("finished"))
    return link.state_of(run_id)


def test_code_that_a_local_user_submits_never_runs_and_is_never_unpacked(link: SuperLink, tmp_path: Path) -> None:
    imported, ran, app = tmp_path / "imported", tmp_path / "ran", tmp_path / "app"
    (app / "foreign").mkdir(parents=True)
    (app / "foreign" / "__init__.py").touch()
    (app / "foreign" / "server.py").write_text(SERVER_APP.format(imported=str(imported), ran=str(ran)))
    (app / "pyproject.toml").write_text(BUNDLE)
    (app / "LICENSE").write_text("none")
    user = tmp_path / "user"  # needs nothing of the coordinator's but what the SuperLink shows to all: its certificate
    user.mkdir()
    (user / "config.toml").write_text((link.folder / "cli" / "config.toml").read_text())

    submitted = subprocess.run(
        [Path(sys.executable).parent / "flwr", "run", app, "federation", "--format", "json"],
        env=link.environment(os.environ) | {"FLWR_HOME": str(user)},
        capture_output=True,
        text=True,
        check=True,
    )

    run_id = submitted.stdout.split('"run-id": "')[1].split('"')[0]
    assert end_of(link, run_id) == "finished:failed"
    assert not imported.exists()
    assert not ran.exists()
    assert not (link.folder / "home" / "apps").exists()
    told = link.guard_log.read_text()
    assert f"installed {bundle_digest(installed_bundle())}, offered " in told
    assert len(told.splitlines()) == 1


def test_installed_bundle_runs_the_installed_server_app_without_being_unpacked(link: SuperLink) -> None:
    participants = Participants(("a", "b"), "registered", "federation")
    study = study_text(participation={"min_sites": 2})
    run = create_run_folder(link.runs / "first", study_text=study, participants=participants)
    run.write_wish("pause")  # so that it looks at its folder and ends

    run_id = link.submit(run.name)

    assert end_of(link, run_id) == "finished:completed"
    assert "nobody wants the run to go on now" in run.log.read_text()
    assert not (link.folder / "home" / "apps").exists()
