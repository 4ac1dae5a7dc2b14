"""What the SuperLink is started with, and what becomes of Flower's answers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import server.superlink as superlink_module
from server.superlink import LIFETIME, SuperLink, SuperLinkError

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def link(tmp_path: Path) -> SuperLink:
    link = SuperLink(tmp_path / "superlink", port=4711, runs=tmp_path / "runs")
    link.prepare(now=NOW)
    return link


def files_of(link: SuperLink) -> dict[str, bytes]:
    return {str(path.relative_to(link.folder)): path.read_bytes() for path in link.folder.rglob("*") if path.is_file()}


def test_only_the_owner_can_read_its_keys(link: SuperLink) -> None:
    for file in ("tls/server.key", "superexec.secret"):
        assert (link.folder / file).stat().st_mode & 0o777 == 0o600


def test_what_lasts_is_kept_at_the_next_start(link: SuperLink) -> None:
    before = files_of(link)

    link.prepare(now=NOW + LIFETIME - timedelta(days=366))

    assert files_of(link) == before


@pytest.mark.parametrize("damage", ["old", "absent", "not PEM"])
def test_certificate_that_does_not_last_is_made_anew(link: SuperLink, damage: str) -> None:
    certificate = link.folder / "tls" / "server.crt"
    before = files_of(link)
    if damage == "absent":
        certificate.unlink()
    elif damage == "not PEM":
        certificate.write_text("nothing")

    link.prepare(now=NOW + (LIFETIME - timedelta(days=300) if damage == "old" else timedelta(0)))

    after = files_of(link)
    assert after["superexec.secret"] == before["superexec.secret"]
    assert all(after[f"tls/{file}"] != before[f"tls/{file}"] for file in ("ca.crt", "server.crt", "server.key"))


def test_it_listens_on_the_loopback_address_with_a_guarded_queue_of_tasks(link: SuperLink) -> None:
    command = link.superlink_command()

    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--isolation") + 1] == "process"
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(command)
    secret = command[command.index("--superexec-auth-secret-file") + 1]
    assert secret in link.superexec_command()


def test_its_programs_send_nothing_to_anybody(link: SuperLink) -> None:
    environment = link.environment({"PATH": "/bin"})

    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["GLIORN_RUNS"] == str(link.runs)


def pretend_flwr(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a program in the place of Flower's command line."""
    folder.mkdir()
    program = folder / "flwr"
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(superlink_module, "_programs", lambda: folder)


def test_answers_of_flower_are_read(link: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (
        '{"success": true, "nodes": [{"node-id": "5", "status": "online"}, {"node-id": "6", "status": "unregistered"}]}'
    )
    pretend_flwr(tmp_path / "bin", monkeypatch, f"echo '{nodes}'")

    assert link.nodes() == {5}


@pytest.mark.parametrize(
    "code",
    ['echo \'{"success": false, "error-message": "no such thing"}\'', "echo no such thing >&2; exit 3"],
    ids=["told", "exit status"],
)
def test_failures_of_flower_are_told(
    link: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    pretend_flwr(tmp_path / "bin", monkeypatch, code)

    with pytest.raises(SuperLinkError, match=r"`flwr stop 7` failed: .*no such thing"):
        link.stop("7")


def test_node_that_is_gone_already_can_be_unregistered(
    link: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_flwr(tmp_path / "bin", monkeypatch, 'echo \'{"success": false, "error-message": "[code: 24] Node"}\'')

    link.unregister(7)


def test_a_wish_to_end_is_heeded_while_flower_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> None:
        raise KeyboardInterrupt

    link = SuperLink(tmp_path / "superlink", port=4711, runs=tmp_path / "runs", meanwhile=end)
    pretend_flwr(tmp_path / "bin", monkeypatch, "sleep 600")

    with pytest.raises(KeyboardInterrupt):
        link.stop("7")
