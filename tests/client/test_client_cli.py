"""`gliorn-client` as a hospital types it: what it prints, and how it ends."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client import cli
from client.config import ServerSpec, read_site_config
from client.flower_programs import FlowerCommands
from client.kit import kit_of
from tests.tiny_hospitals import study_text, write_tiny_hospital

SPLITS = (("train", 2, 1), ("validation", 1, 1), ("test", 1, 1))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_tiny_hospital(tmp_path, "a", splits=SPLITS)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(study_text(), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_check_prints_what_the_coordinator_will_be_told(
    site: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run("check", "--site", site, "--study", study)

    out = capsys.readouterr().out
    assert status == 0
    assert "train: 2 recurrence + 1 necrosis, 3 exams" in out
    assert "device: cpu, torch threads: 1" in out
    digests = [line for line in out.splitlines() if "keyed digest of the" in line]
    assert [len(line.split()[-1]) for line in digests] == [64, 64, 64]


def test_check_takes_what_prepare_has_made(site: Path, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "--site", site, "--study", study) == 0
    assert "7 exams prepared, 0 of them were in the cache" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (site.parent / "cache" / "exams").iterdir()}

    assert run("check", "--site", site, "--study", study) == 0
    assert run("prepare", "--site", site, "--study", study) == 0

    assert "7 of them were in the cache" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (site.parent / "cache" / "exams").iterdir()} == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["check", "--site", "absent.yaml", "--study", "{study}"], "absent.yaml: cannot be", id="no site"),
        pytest.param(["check", "--site", "{site}", "--study", "absent.yaml"], "--study absent.yaml", id="no study"),
        pytest.param(
            ["prepare", "--site", "{site}", "--study", "{study}", "--workers", "0"], "--workers 0", id="no workers"
        ),
        pytest.param([], "--site FILE is missing", id="nothing"),
        pytest.param(["--site", "{site}"], "server needs address, ca_certificate", id="join without a server"),
    ],
)
def test_what_the_user_has_to_mend_is_one_message(
    arguments: list[str], message: str, site: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(*(argument.format(site=site, study=study) for argument in arguments))

    err = capsys.readouterr().err
    assert status == 2
    assert err.count("gliorn-client: ") == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(KeyboardInterrupt(), "gliorn-client: stopped; ", id="Ctrl-C"),
        pytest.param(OSError(5, "Input/output error", "/disk/memo"), "/disk/memo: Input/output error; ", id="disk"),
    ],
)
def test_an_interruption_ends_in_one_line(
    error: BaseException,
    message: str,
    site: Path,
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("client.prepare.prepare_site", interrupted)

    status = run("prepare", "--site", site, "--study", study)

    err = capsys.readouterr().err
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


@contextmanager
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def test_what_the_programs_of_a_site_read_is_its_owners_alone_whatever_the_umask(
    site: Path, study: Path, tmp_path: Path
) -> None:
    for name in ("ca.pem", "site.key"):
        (tmp_path / name).touch()
    server = ServerSpec(address="127.0.0.1:1", ca_certificate=tmp_path / "ca.pem", private_key=tmp_path / "site.key")
    config = read_site_config(site).model_copy(update={"server": server})

    with open_umask():
        FlowerCommands(kit_of(config, origin=site), config, site, os.environ).prepare()

    home = tmp_path / "flower"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir() if path.is_file()} == {0o600}


JOINS = """
import sys
from client import cli
from client.commands import accept
def says(arguments):
    print("a line " * 20000, flush=True)
    return 0
def fails(arguments):
    raise BrokenPipeError(32, "the coordinator hung up")
if sys.argv[1] == "join":
    cli.join = says
    sys.exit(cli.main([]))
accept._accept = says if sys.argv[1] == "accept" else fails
sys.exit(cli.main(["accept", "--site", "site.yaml"]))
"""


@pytest.mark.parametrize(
    ("what", "reads", "status"),
    [
        pytest.param("accept", False, 0, id="short command whose reader has enough"),
        pytest.param("join", False, 1, id="site whose log's reader died"),
        pytest.param("connection", True, 1, id="pipe that is not stdout"),
    ],
)
def test_broken_pipe_is_a_good_end_for_a_short_command_s_output_alone(what: str, reads: bool, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", JOINS, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if not reads:
        process.stdout.close()
    said = process.stderr.read()
    ended = process.wait()
    process.stderr.close()
    if reads:
        process.stdout.close()

    assert (ended != 0) == (status != 0)
    assert (b"BrokenPipeError" in said) == (status != 0)
