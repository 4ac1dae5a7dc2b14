"""A ClientApp as a copy of a process that has imported everything: as separate as a new program."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from client import forked_tasks
from client.forked_tasks import ForkedTasks
from client.guard import TASK_NAME
from client.processes import ProcessLock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux alone")


def wait_until(holds: Callable[[], bool], *, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


def test_task_runs_in_a_process_of_its_own_under_its_own_name(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def answer(arguments: Sequence[str]) -> None:
        name = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
        (tmp_path / "part").write_text(f"{arguments} {os.getppid()} {name}", encoding="utf-8")
        (tmp_path / "part").rename(told)

    tasks = ForkedTasks(answer)

    assert tasks.start(["--token", "t"])

    wait_until(told.exists)
    assert told.read_text(encoding="utf-8") == f"{['--token', 't']} {os.getpid()} {TASK_NAME}"
    wait_until(lambda: not has_running(tasks))


def has_running(tasks: ForkedTasks) -> bool:
    tasks.tend()
    return bool(tasks._running)


def test_death_of_a_task_frees_its_lock_and_harms_neither_its_parent_nor_the_next_task(tmp_path: Path) -> None:
    lock = ProcessLock(tmp_path / "lock")

    def hang(arguments: Sequence[str]) -> None:
        mine = ProcessLock(tmp_path / "lock")
        mine.take(wait=True)
        time.sleep(60)

    tasks = ForkedTasks(hang)
    tasks.start([])
    wait_until(lock.is_held)

    os.kill(next(iter(tasks._running)), signal.SIGKILL)

    wait_until(lambda: not lock.is_held(), seconds=2.0)
    wait_until(lambda: not has_running(tasks))
    assert tasks.start([])
    wait_until(lock.is_held)
    os.kill(next(iter(tasks._running)), signal.SIGKILL)
    wait_until(lambda: not has_running(tasks))


def test_task_never_returns_into_the_program_it_is_a_copy_of(tmp_path: Path) -> None:
    def fail(arguments: Sequence[str]) -> None:
        raise RuntimeError("a fault")

    tasks = ForkedTasks(fail)
    mine = os.getpid()

    tasks.start([])

    assert os.getpid() == mine
    wait_until(lambda: not has_running(tasks))


def test_program_that_was_replaced_on_the_disk_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ForkedTasks(lambda arguments: None)
    monkeypatch.setattr(forked_tasks, "installed_bundle", lambda: b"another version")

    assert not tasks.start([])


def test_process_that_has_touched_a_gpu_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ForkedTasks(lambda arguments: None)
    monkeypatch.setattr(forked_tasks, "_has_touched_gpu", lambda: True)

    assert not tasks.start([])


def test_no_import_of_a_task_touches_a_gpu() -> None:
    assert ForkedTasks.prepared() is not None

    assert not forked_tasks._has_touched_gpu()
