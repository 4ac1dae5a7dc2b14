"""Starts the programs of a federation on one machine as copies of one process that has imported what they need.

Every one of them would import Flower, most of them torch and MONAI too, which takes longer than a round. A
copy (`fork`) shares the memory of what is imported, leads a session of its own, and becomes a child of the process that
asked for it, as a program would that it had started itself; it ends with that process. Linux alone has what that needs.

Run as `python -m simulations.engines.nursery PARENT DESCRIPTOR`.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, NoReturn

from client.processes import end_with_parent, name_process
from common.flower_environment import flower_environment
from common.importing import undisturbed_imports
from simulations.engines.loopback import on_loopback

PROGRAMS = ("client.supernode", "client.superexec", "server.superlink_program", "simulations.engines.server_apps")
"""Modules whose `main` is run in a copy. Other commands are installed programs, which are run by their names."""

_NEEDED = (
    *(*PROGRAMS, "client.forked_tasks", "flwr.supernode.start_client_internal", "flwr.supercore.superexec"),
    *("flwr.cli.app", "flwr.cli.build", "flwr.superlink.main", "flwr.superlink.cli.flower_superlink"),
    *("server.app", "server.guard", "server.packed_grid", "flwr.superlink.runtime.run_serverapp", "server.report"),
)
_PR_SET_CHILD_SUBREAPER = 36
_MOST_BYTES, _MOST_DESCRIPTORS, _FIRST_FREE = 2**17, 16, 200
_ADOPTION_S = 10.0


class Copy:
    """A process that was started as a copy and is a child of this one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self._status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self) -> int:
        """The exit status, once it has ended."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class Nursery:
    """The process that the copies are made of, as the one that asks for them sees it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log: IO[bytes],
        keep: tuple[int, ...],
    ) -> Copy:
        """Start a program; see `client.flower_programs.Starter`. Its output and its errors go to the log.

        Raises:
            OSError: If there is no room for it, or the nursery has ended.
        """
        return self._start(command, environment=environment, folder=folder, output=log, errors=log, keep=keep)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end.

        Raises:
            OSError: If there is no room for it, or the nursery has ended.
        """
        with TemporaryFile() as output, TemporaryFile() as errors:
            copy = self._start(
                command, environment=environment, folder=Path.cwd(), output=output, errors=errors, keep=()
            )
            status = copy.wait()
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(command, status, *texts)

    def _start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        output: IO[bytes],
        errors: IO[bytes],
        keep: tuple[int, ...],
    ) -> Copy:
        begin = command.index("-m") + 1 if "-m" in command else 0
        program, *arguments = command[begin:]
        request = {
            "program": program if begin else Path(program).name,
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(folder),
            "parent": os.getpid(),
            "keep": keep,
        }
        _adopt_orphans(True)  # for as long as the process between the nursery and the copy ends
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [output.fileno(), errors.fileno(), *keep])
            answer = self._channel.recv(_MOST_BYTES)
        finally:
            _adopt_orphans(False)
        if not answer:
            raise ChildProcessError("the process that starts the programs of this run has ended")
        return Copy(int(answer))


@contextmanager
def nursery(log: IO[bytes] | None = None) -> Iterator[Nursery | None]:
    """A nursery that imports what it needs from now on; None where the system cannot have one.

    Modules that read settings when they are imported find those of the network engine; a copy has an environment of its
    own afterwards.

    Args:
        log: Where it writes; by default where this process writes its errors.
    """
    if sys.platform != "linux":
        yield None
        return
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-m", "simulations.engines.nursery", str(os.getpid()), str(its.fileno())]
    with ours, TemporaryDirectory(prefix="gliorn-") as home:
        with its:
            process = subprocess.Popen(
                command,
                env=on_loopback(flower_environment(os.environ, home=home, programs="")),
                stdin=subprocess.DEVNULL,
                stdout=2 if log is None else log,  # the number of the errors
                stderr=log,
                pass_fds=(its.fileno(),),
                start_new_session=True,
            )
        try:
            yield Nursery(ours)
        finally:
            process.kill()
            process.wait()


def nursery_for(engine: str | None) -> AbstractContextManager[Nursery | None]:
    """A nursery that imports while this process still prepares a run, if it is one of the network engine."""
    return nursery() if engine == "network" else nullcontext()


def _adopt_orphans(adopt: bool) -> None:
    """Have the system give this process the children of those below it that end, or no longer."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


# --- the nursery itself -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """A program that is asked for; descriptors are output, errors and those to keep, under the numbers in `keep`."""

    program: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    parent: int
    keep: list[int]


def main(arguments: Sequence[str]) -> None:
    """Start copies until nobody is there to ask for them."""
    parent, descriptor = map(int, arguments)
    end_with_parent(parent)
    with undisturbed_imports():  # nor is what is imported looked at in a copy, which would copy all of its memory
        for module in _NEEDED:
            import_module(module)
        import_module("client.forked_tasks").import_for_tasks()
    with socket.socket(fileno=descriptor) as channel:
        while True:
            text, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, _MOST_DESCRIPTORS)
            if not text:
                return
            child = _start(_Request(**json.loads(text)), descriptors, channel)
            for each in descriptors:
                os.close(each)
            channel.send(str(child).encode())


def _start(request: _Request, descriptors: Sequence[int], channel: socket.socket) -> int:
    """Start a copy by way of a process that ends at once, so that whoever asked gets the copy as a child."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        os.close(reading)
        if os.fork() > 0:
            os._exit(0)
        os.setsid()  # before anybody knows it, who might end it by its session
        os.write(writing, str(os.getpid()).encode())
        os.close(writing)
        channel.close()
        _become(request, descriptors)
    os.close(writing)
    os.waitpid(between, 0)
    with os.fdopen(reading) as told:
        return int(told.read())


def _become(request: _Request, descriptors: Sequence[int]) -> NoReturn:
    status: Any = 1
    try:
        _wait_for_adoption(request.parent)
        end_with_parent(request.parent)
        name_process(request.program.rpartition(".")[2])
        for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(ending, signal.SIG_DFL)
        moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for each in descriptors]
        for each in descriptors:
            os.close(each)
        for each, number in zip(moved[2:] + moved[:2], (*request.keep, 1, 2), strict=True):
            os.dup2(each, number)
            os.close(each)
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update(request.environment)
        _run(request.program, request.arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, which must not go on as the copy of another one
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # without the exit handlers of the process that this is a copy of


def _run(program: str, arguments: list[str]) -> None:
    if program in PROGRAMS:
        import_module(program).main(arguments)
        return
    (script,) = entry_points(group="console_scripts", name=program)
    sys.argv = [program, *arguments]
    script.load()()


def _wait_for_adoption(parent: int) -> None:
    end = time.monotonic() + _ADOPTION_S
    while os.getppid() != parent:
        if time.monotonic() > end:
            raise ChildProcessError("the process that asked for this one has ended")
        time.sleep(0.002)


if __name__ == "__main__":
    main(sys.argv[1:])
