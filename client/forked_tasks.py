"""Starts a ClientApp for each task as a copy of a process that has imported everything already.

A new program imports Flower, torch and MONAI before it begins with its task, which takes seconds of processor time for
every message. A copy (`fork`) begins at once, and is as separate as a new program: it has memory of its own, which the
system takes back at its end, and its death harms nobody else. It is told from its parent by the name `flwr-clientapp`.

A copy must not come of a process that has touched a GPU, for CUDA cannot be used in the copy then; nor of one whose
program has been replaced on the disk meanwhile. In both cases, and where the system is not Linux, Flower starts a new
program.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from client.guard import TASK_NAME, answer_task, log_to_stderr
from client.processes import end_with_parent, name_process
from common.bundle import bundle_digest, installed_bundle
from common.importing import undisturbed_imports

log = logging.getLogger(__name__)

_NEEDED_BY_EVERY_TASK = ("flwr.supernode.cli", "monai.networks.nets", "client.app", "client.local_round")

_CHEAP_LOOK_AT_GPUS = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Environment variable by which torch looks for GPUs without touching them (torch 2.13, `torch.cuda.is_available`)."""


def import_for_tasks() -> None:
    """Import what every task needs, without a touch of a GPU.

    Raises:
        ImportError: If the installation is not whole.
    """
    os.environ.setdefault(_CHEAP_LOOK_AT_GPUS, "1")
    for module in _NEEDED_BY_EVERY_TASK:
        import_module(module)
    import torch

    if torch.version.cuda is None:  # its compiler, which every first step imports, might look for a GPU
        import_module("torch._dynamo")


class ForkedTasks:
    """Starts ClientApps as copies of this process, which does nothing else in other threads.

    Args:
        answer: Answers one task, given the arguments of `flwr-clientapp`; runs in the copy.
        name: What the system calls a copy.
    """

    def __init__(self, answer: Callable[[Sequence[str]], None] = answer_task, *, name: str = TASK_NAME) -> None:
        self._answer, self._name = answer, name
        self._running: set[int] = set()
        self._bundle = bundle_digest(installed_bundle())

    @classmethod
    def prepared(cls) -> "ForkedTasks | None":
        """Import what every task needs; None where copies cannot be made."""
        if sys.platform != "linux":
            return None
        try:
            with undisturbed_imports():  # nor is what is imported looked at in a copy, which would copy its memory
                import_for_tasks()
        except ImportError as error:
            log.error("this installation is not whole (%s); reinstall it", error.name)
            return None  # a new program finds the same and tells the coordinator by a code
        return cls()

    def start(self, arguments: Sequence[str]) -> bool:
        """Start a ClientApp; False if a new program should be started instead."""
        if _has_touched_gpu() or bundle_digest(installed_bundle()) != self._bundle:
            return False
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            child = os.fork()
        except OSError as error:
            log.error("a task's process cannot be started (%s)", error.strerror)
            return False
        if child == 0:
            self._become_task(parent, arguments)
        self._running.add(child)
        return True

    def _become_task(self, parent: int, arguments: Sequence[str]) -> NoReturn:
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            end_with_parent(parent)
            name_process(self._name)
            log_to_stderr()
            self._answer(arguments)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 - the end of a process, which must not go on as the copy of another one
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # without the exit handlers of the process that this is a copy of

    def tend(self) -> None:
        """Take note of the tasks that have ended."""
        for child in list(self._running):
            ended, _ = os.waitpid(child, os.WNOHANG)
            if ended:
                self._running.discard(child)


def _has_touched_gpu() -> bool:
    """Whether the driver of the GPU is part of this process, as it is once anything has asked for a device."""
    return "libcuda.so" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
