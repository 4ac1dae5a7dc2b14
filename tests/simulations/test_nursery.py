"""Programs of sites that are started as copies of one process."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.flower_programs import free_port
from client.processes import descendants
from simulations.engines.nursery import Copy, Nursery, nursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux makes copies")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with (tmp_path_factory.mktemp("nursery") / "log").open("ab") as log, nursery(log) as made:
        assert made is not None
        yield made


def started(copies: Nursery, folder: Path, *arguments: str, module: str = "client.supernode", keep: int = 2) -> Copy:
    command = [sys.executable, "-P", "-m", module, *arguments]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "log").open("ab") as log:
        return copies.start(command, environment=environment, folder=folder, log=log, keep=(keep,))


def test_copy_is_a_child_with_folder_environment_log_and_descriptors_of_its_own(
    copies: Nursery, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    options = ["--parent", str(os.getpid()), "--events", str(writing)]
    # A SuperNode without arguments of Flower's has nowhere to connect to: it says so, and ends.
    copy = started(copies, tmp_path, *options, "--", "--superlink", "127.0.0.1:1", "--host", "127.0.0.1", keep=writing)
    os.close(writing)
    try:
        assert os.getpgid(copy.pid) == copy.pid
        end = time.monotonic() + 30
        while Path(f"/proc/{copy.pid}/cwd").resolve() != tmp_path.resolve() and time.monotonic() < end:
            time.sleep(0.01)
        status = Path(f"/proc/{copy.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        assert int(status[1]) == os.getpid()
        assert Path(f"/proc/{copy.pid}/cwd").resolve() == tmp_path.resolve()
        assert Path(f"/proc/{copy.pid}/fd/1").resolve() == (tmp_path / "log").resolve()
        assert Path(f"/proc/{copy.pid}/fd/{writing}").readlink() == Path(f"/proc/self/fd/{reading}").readlink()
    finally:
        copy.send_signal(signal.SIGKILL)
        copy.wait()
        os.close(reading)
    assert copy.poll() == -signal.SIGKILL


def test_status_and_output_are_those_of_the_program(copies: Nursery, tmp_path: Path) -> None:
    copy = started(copies, tmp_path, "--no-such-option")
    assert copy.wait() == 2
    assert "client.supernode: error" in (tmp_path / "log").read_text(encoding="utf-8")


def test_copies_do_not_change_one_another_nor_the_nursery(copies: Nursery, tmp_path: Path) -> None:
    several = [started(copies, tmp_path, "--no-such-option") for _ in range(4)]
    assert len({copy.pid for copy in several}) == 4
    assert [copy.wait() for copy in several] == [2] * 4


def test_installed_program_runs_to_its_end_with_output_and_errors_apart(copies: Nursery) -> None:
    flwr = str(Path(sys.executable).parent / "flwr")
    wrong = copies.run([flwr, "no-such-command"], os.environ)
    right = copies.run([flwr, "--version"], {**os.environ, "FLWR_DISABLE_UPDATE_CHECK": "1"})

    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no-such-command" in wrong.stderr
    assert (right.returncode, right.stderr) == (0, "")
    assert "1.41." in right.stdout


def test_copy_is_known_by_the_name_of_its_program_and_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    asking, told = os.pipe()
    asks = os.fork()
    if asks == 0:
        with (tmp_path / "log").open("ab") as log, nursery(log) as copies:
            assert copies is not None
            command = [str(Path(sys.executable).parent / "flower-superlink"), "--insecure", "--port", str(free_port())]
            environment = {**os.environ, "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"}
            started_copy = copies.start(command, environment=environment, folder=tmp_path, log=log, keep=())
            os.write(told, str(started_copy.pid).encode())
            time.sleep(60)
        os._exit(1)
    copy = int(os.read(asking, 20))
    name = Path(f"/proc/{copy}/comm")
    end = time.monotonic() + 30
    while name.read_text(encoding="utf-8") != "flower-superlin\n" and time.monotonic() < end:
        time.sleep(0.01)
    assert name.read_text(encoding="utf-8") == "flower-superlin\n"

    os.kill(asks, signal.SIGKILL)
    os.waitpid(asks, 0)
    end = time.monotonic() + 10
    while Path(f"/proc/{copy}/stat").exists() and not is_zombie(copy) and time.monotonic() < end:
        time.sleep(0.01)

    assert not Path(f"/proc/{copy}/stat").exists() or is_zombie(copy)


def test_nursery_that_has_ended_starts_nothing(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log, nursery(log) as copies:
        assert copies is not None
        assert started(copies, tmp_path, "--no-such-option").wait() == 2
        mine = descendants(os.getpid())
        (running,) = [each for each in mine if is_nursery(each) and not is_zombie(each)][-1:]
        os.kill(running, signal.SIGKILL)
        with pytest.raises(OSError, match=r"ended|Broken pipe|Connection reset"):
            started(copies, tmp_path, "--no-such-option")


def is_nursery(process: int) -> bool:
    return b"simulations.engines.nursery" in Path(f"/proc/{process}/cmdline").read_bytes()


def is_zombie(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
