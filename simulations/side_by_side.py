"""Runs side by side, each in a process of its own with one torch thread; a run that was killed goes on."""

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml

from common.errors import ConfigError, GliornError
from common.study import Study
from server.run_folder import RunFolder
from simulations.single_machine import EngineName, carry, open_run, read_record, read_sites, require_fitting

ENGINE: EngineName = "in-process"


class NoResultError(GliornError):
    """A run ended without a result."""

    code = "no-result"


@dataclass(frozen=True)
class PlannedRun:
    """A run that is wanted.

    Attributes:
        path: Its folder, whose name is the run's.
        study: Its study.
        sites: The site.yaml of each of its sites.
    """

    path: Path
    study: Study
    sites: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def record(self) -> dict[str, Any] | None:
        """The record of a run that has ended with a result; None for one that has to begin or go on.

        Raises:
            ConfigError: If the folder holds a run of another study.
        """
        if not self.path.exists():
            return None
        folder = RunFolder(self.path)
        if folder.read_study().digest != self.study.digest:
            raise ConfigError(
                f"{self.path}: was begun with other settings; give the same options as at first, or another --out"
            )
        record = read_record(folder)
        return None if record is None or record["outcome"] == "INVALID" else record


def carry_side_by_side(
    runs: Sequence[PlannedRun], *, workers: int, on_end: Callable[[PlannedRun, str | None], None]
) -> None:
    """Carry runs to their end, several at a time; leaving early ends those that are under way.

    Args:
        runs: Those without a result.
        workers: How many at a time.
        on_end: Told of every run that has ended, and why without a result where it has none.
    """
    # Spawned, not forked: this process has threads of torch. One process a run, since Flower keeps a run's identity
    # for a whole process, and since memory is given back.
    context = multiprocessing.get_context("spawn")
    waiting = list(runs)
    under_way: dict[int, tuple[PlannedRun, BaseProcess, Connection]] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < workers:
                run = waiting.pop(0)
                told, tells = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_carry_in_process, args=(run, tells), name=run.name)
                process.start()
                tells.close()
                under_way[process.sentinel] = (run, process, told)
            for sentinel in wait(list(under_way)):
                assert isinstance(sentinel, int)
                ended, its_process, its_words = under_way.pop(sentinel)
                its_process.join()
                on_end(ended, _reason(its_process.exitcode, its_words))
    finally:
        for _, left, _ in under_way.values():
            left.kill()  # a run goes on from its last finished round however it ended
        for _, left, _ in under_way.values():
            left.join()


def _reason(exit_code: int | None, told: Connection) -> str | None:
    if exit_code == 0:
        return None
    try:
        return str(told.recv())
    except EOFError:
        return (
            f"its process ended with code {exit_code} and said nothing, perhaps for want of memory; "
            "give the same command again with fewer --workers"
        )


def _carry_in_process(run: PlannedRun, tells: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    logging.basicConfig(format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.ERROR)  # a run has its own log; its lines would stand among those of other runs
    torch.set_num_threads(1)
    try:
        carry_run(run, while_running=_end_with_parent)
    except GliornError as error:
        tells.send(str(error))
        raise SystemExit(2) from None


def _end_with_parent() -> None:
    """End this process where the main one was killed, so that its lock on the run does not outlive the command."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(3)


def carry_run(run: PlannedRun, *, while_running: Callable[[], None]) -> None:
    """Begin a run, or go on with it, and carry it to its end in this process.

    Raises:
        GliornError: If it has no result at its end.
    """
    sites = read_sites(run.sites)
    require_fitting(run.study, sites, engine=ENGINE)
    if not run.path.exists():
        # Under another name until it is whole: a kill in between leaves nothing that looks like a run.
        run.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = run.path.with_name(f"{run.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        text = yaml.safe_dump(run.study.model_dump(mode="json"), sort_keys=False)
        open_run(unfinished, study_text=text, sites=sites, engine=ENGINE).path.rename(run.path)
    record = carry(RunFolder(run.path), sites, engine=ENGINE, workers=1, faults=(), while_running=while_running)
    if record["outcome"] == "INVALID":
        raise NoResultError(f"{run.path}: ended INVALID: {'; '.join(record['problems'])}")
