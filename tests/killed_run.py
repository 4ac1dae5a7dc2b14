"""Carries a run in a process of its own that may be killed, as by `kill -9`, at a chosen moment."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.run_folder import RunFolder
from tests.tiny_federation import carry_on

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.killed_run"])


@dataclass(frozen=True)
class Moment:
    """When a process is killed.

    Attributes:
        when: "before" or "after" a file of this name is put in its place, or at a "call" of `module:function`.
        what: The file's name or the function.
        nth: At the n-th time, counted from 1.
    """

    when: Literal["before", "after", "call"]
    what: str
    nth: int = 1


def carry_on_in_a_process(folder: RunFolder, sites: Mapping[str, Path], *, kill: Moment | None = None) -> int | None:
    """Carry a run from where it stands; returns the exit status, which is −9 for a killed process."""
    process = _PROCESSES.Process(target=_carry_on, args=(folder.path, dict(sites), kill))
    process.start()
    process.join()
    return process.exitcode


def _carry_on(path: Path, sites: dict[str, Path], kill: Moment | None) -> None:
    if kill is not None:
        _arrange(kill)
    carry_on(RunFolder(path), sites, workers=2)


def _arrange(kill: Moment) -> None:
    if kill.when == "call":
        module, _, name = kill.what.partition(":")
        owner = importlib.import_module(module)
        setattr(owner, name, _killing(getattr(owner, name), kill, lambda *args: True))
    else:
        place: Any = Path.replace
        Path.replace = _killing(place, kill, lambda source, target: Path(target).name == kill.what)  # type: ignore[method-assign]


def _killing(function: Callable[..., Any], kill: Moment, counts: Callable[..., bool]) -> Any:
    times = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal times
        now = False
        if counts(*args):
            times += 1
            now = times == kill.nth
        if now and kill.when != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call
