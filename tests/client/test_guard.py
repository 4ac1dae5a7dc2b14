"""A site runs its own ClientApp and nothing that a coordinator sends."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from client.config import ServerSpec, read_site_config
from client.flower_private import ToldError, _without_run_settings, require_private_names, run_clientapp, told_text
from client.flower_programs import FlowerCommands, FlowerPrograms
from client.guard import EXIT_REFUSED, REFUSED_PROGRAMS, require_installed_bundle, write_guard
from client.journal import JOURNAL_VARIABLE, read_entry
from client.kit import Kit, kit_of
from common.bundle import BundleRefusal, bundle_digest, installed_bundle, read_refusal
from common.flower_environment import flower_environment
from common.flower_private import new_context, take_server_identity
from server.processes import free_ports, stop_group
from server.provisioning import make_site_key_pair
from server.superlink import SuperLink
from tests.tiny_hospitals import write_tiny_hospital

SECRET = "/data/miller_john/t1.nii.gz"


def test_installed_bundle_is_let_through() -> None:
    require_installed_bundle(installed_bundle())


def test_any_other_bundle_is_refused_with_both_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal.jsonl"
    monkeypatch.setenv(JOURNAL_VARIABLE, str(journal))
    other = installed_bundle() + b"\0"

    with pytest.raises(ToldError) as caught:
        require_installed_bundle(other)

    refusal = BundleRefusal(installed=bundle_digest(installed_bundle()), offered=bundle_digest(other))
    assert str(caught.value) == refusal.to_text()
    entry = read_entry(journal.read_text())
    assert entry is not None
    assert (entry.kind, entry.facts["offered"]) == ("bundle", refusal.offered)


def test_flower_finds_only_the_guard_s_programs(tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "flwr-left-over").touch()

    write_guard(tmp_path / "programs")

    names = {path.name for path in (tmp_path / "programs").iterdir()}
    assert names == {"flwr-clientapp", *REFUSED_PROGRAMS}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "programs").iterdir()} == {0o700}
    for name in REFUSED_PROGRAMS:
        done = subprocess.run([tmp_path / "programs" / name, "--token", "x"], capture_output=True, check=False)
        assert done.returncode == EXIT_REFUSED
        assert b"refused" in done.stderr


def test_only_type_and_place_of_an_exception_are_told() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        told = told_text(error)

    assert told.startswith("ValueError at test_guard.py:")
    assert told_text(ToldError("a text made to be told")) == "a text made to be told"


def test_settings_of_the_run_do_not_reach_the_app() -> None:
    seen: list[dict[str, object]] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        seen.append(dict(context.run_config))  # type: ignore[attr-defined]
        return Message(RecordDict(), reply_to=message)

    take_server_identity(run_id=1, node_id=1)
    settings = {"site-config": SECRET, "disclosure.min_patients": "1"}
    context = new_context(run_id=1, node_id=2, node_config={"site-config": "own"}, run_config=settings)
    _without_run_settings(app)(Message(RecordDict(), 2, "train"), context)

    assert seen == [{}]
    assert context.node_config == {"site-config": "own"}


def test_private_names_of_flower_are_still_what_the_site_takes_them_for(monkeypatch: pytest.MonkeyPatch) -> None:
    require_private_names()

    from flwr.supernode.runtime import run_clientapp as module

    monkeypatch.delattr(module, "install_from_fab")
    with pytest.raises(ImportError, match=r"lacks .*install_from_fab.*flwr>=1\.41,<1\.42"):
        run_clientapp([], check=lambda bundle: None, load=ClientApp)


# --- through real Flower processes ------------------------------------------------------------------------------------

SERVER_APP = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    replies = grid.send_and_receive([Message(RecordDict(), nodes[0], "train")], timeout=90)
    Path({out!r}).write_text(json.dumps([[r.has_error(), r.error.reason if r.has_error() else ""] for r in replies]))
"""
CLIENT_APP = """
from pathlib import Path
from flwr.clientapp import ClientApp
Path({ran!r}).write_text("code of the coordinator ran at the site")
app = ClientApp()
"""
BUNDLE = """
[project]
name = "gliorn"
version = "0.1.0"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0"]
[tool.flwr.app]
publisher = "gliorn"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "evil.server:app"
clientapp = "evil.client:app"
[tool.flwr.app.config]
site-config = "{secret}"
"""


def write_bundle(folder: Path, *, out: Path, ran: Path) -> Path:
    """An app of a coordinator that sends code."""
    (folder / "evil").mkdir(parents=True)
    (folder / "evil" / "__init__.py").touch()
    (folder / "evil" / "server.py").write_text(SERVER_APP.format(out=str(out)))
    (folder / "evil" / "client.py").write_text(CLIENT_APP.format(ran=str(ran)))
    (folder / "pyproject.toml").write_text(BUNDLE.format(secret=SECRET))
    (folder / "LICENSE").write_text("none")
    return folder


@contextmanager
def served(folder: Path) -> Iterator[SuperLink]:
    """A SuperLink and its SuperExec, of a coordinator that runs and sends code of its own."""
    (port,) = free_ports(1)
    link = SuperLink(folder, port=port, runs=folder / "runs")
    link.prepare(now=datetime.now(UTC))
    unguarded = flower_environment(
        link.environment(os.environ), home=str(folder / "home"), programs=str(Path(sys.executable).parent)
    )
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "log").open("wb") as log:
            for command in (link.superlink_command(), link.superexec_command()):
                processes.append(
                    subprocess.Popen(command, env=unguarded, stdout=log, stderr=log, start_new_session=True)
                )
                wait_until(link.is_listening)
        yield link
    finally:
        for process in reversed(processes):
            stop_group(process, patience_s=1.0)


def wait_until(holds: "object", *, seconds: float = 120.0) -> None:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.1)


def join(link: SuperLink, folder: Path) -> tuple[Kit, FlowerPrograms]:
    """A site with a key that the SuperLink knows, and its programs."""
    path = write_tiny_hospital(folder, "a")
    kit_folder = path.parent / "federation"
    kit_folder.mkdir(mode=0o700)
    pair = make_site_key_pair()
    (kit_folder / "site.key").write_bytes(pair.private_key)
    (kit_folder / "site.pub").write_bytes(pair.public_key)
    (kit_folder / "ca.crt").write_bytes(link.authority.read_bytes())
    link.register(kit_folder / "site.pub", name="a")
    server = ServerSpec(address=link.address, ca_certificate=kit_folder / "ca.crt", private_key=kit_folder / "site.key")
    config = read_site_config(path).model_copy(update={"server": server})
    kit = kit_of(config, origin=path)
    commands = FlowerCommands(kit, config, path, os.environ)
    commands.prepare()
    return kit, FlowerPrograms(commands, kit.flower_log)


def test_code_of_a_coordinator_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    out, ran = tmp_path / "replies.json", tmp_path / "ran"
    bundle = write_bundle(tmp_path / "bundle", out=out, ran=ran)
    with served(tmp_path / "superlink") as link:
        kit, programs = join(link, tmp_path)
        try:
            programs.start()
            submitted = subprocess.run(
                [Path(sys.executable).parent / "flwr", "run", bundle, "federation", "--format", "json"],
                env=link.environment(os.environ) | {"FLWR_HOME": str(link.folder / "cli")},
                capture_output=True,
                check=True,
            )
            wait_until(out.exists)
        finally:
            programs.kill_all()
            programs.close_events()

    ((failed, reason),) = json.loads(out.read_text())
    refusal = read_refusal(reason)
    assert failed
    assert refusal is not None
    assert reason == refusal.to_text()
    assert refusal.installed == bundle_digest(installed_bundle())
    assert refusal.offered.startswith(json.loads(submitted.stdout)["fab-hash"])
    assert not ran.exists()
    assert not (kit.flower_home / "apps").exists()  # nothing was unpacked
    entry = read_entry(kit.journal.read_text().splitlines()[-1])
    assert entry is not None
    assert entry.facts["offered"] == refusal.offered
