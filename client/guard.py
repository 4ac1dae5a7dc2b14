"""Stands where Flower looks for its programs at a site, so that nothing the coordinator sends is ever run.

Flower's SuperExec starts `flwr-clientapp` and its other programs by bare name. The first folder on its PATH holds ours:
a `flwr-clientapp` that runs the installed ClientApp if the app bundle is the one of this installation, and refuses
otherwise; and stubs in place of all programs that a site does not need. The bundle is never unpacked.

Run as `python -m client.guard`, with the arguments of `flwr-clientapp`.
"""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from client.journal import JOURNAL_VARIABLE, Entry, append
from client.processes import ProcessLock, end_with_parent, name_process

if TYPE_CHECKING:
    from flwr.app import Context, Message

log = logging.getLogger(__name__)

TASK_LOCK_VARIABLE = "GLIORN_TASK_LOCK"
"""Environment variable with the path of the lock that a ClientApp holds while it lives."""

TASK_NAME = "flwr-clientapp"
"""What the system calls a process that answers a task; `ps -o comm` shows it."""

REFUSED_PROGRAMS = ("flwr-agentapp", "flwr-model", "flwr-connector", "flwr-serverapp", "flwr-simulation")
"""Programs of Flower that a coordinator could have started at a site, and that never are."""

EXIT_REFUSED = 77
"""Exit status of a program that is refused."""


def write_guard(folder: Path) -> None:
    """Write the programs that Flower is to find; the folder then goes first on the PATH of its SuperExec.

    Raises:
        OSError: If they cannot be written.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    ours = f"exec {shlex.quote(sys.executable)} -P -m client.guard"
    _write_program(folder / "flwr-clientapp", f'{ours} --parent-of-guard "$PPID" "$@"')
    for name in REFUSED_PROGRAMS:
        _write_program(
            folder / name, f"echo '{name}: refused; a site runs its own ClientApp alone' >&2\nexit {EXIT_REFUSED}"
        )


def _write_program(path: Path, body: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{body}\n")


def main(arguments: Sequence[str]) -> None:
    """Answer one task of the coordinator, as `flwr-clientapp` does."""
    if arguments[:1] == ["--parent-of-guard"]:
        end_with_parent(int(arguments[1]))
        arguments = arguments[2:]
    name_process(TASK_NAME)
    answer_task(arguments)


def answer_task(arguments: Sequence[str]) -> None:
    """Answer one task in this process, which ends with it; the arguments are those of `flwr-clientapp`."""
    lock_path = os.environ.get(TASK_LOCK_VARIABLE)
    if lock_path:
        lock = ProcessLock(Path(lock_path))
        lock.take(wait=True)  # until this process ends: by it the SuperNode sees that its ClientApp is alive
    from flwr.app import Context, Message

    from client.flower_private import run_clientapp

    def load() -> Callable[[Message, Context], Message]:
        from client.app import app

        return with_packed_arrays(app)

    run_clientapp(arguments, check=require_installed_bundle, load=load)


def with_packed_arrays(app: "Callable[[Message, Context], Message]") -> "Callable[[Message, Context], Message]":
    """The app for a run over the network, in which small arrays travel together."""
    from common.packing import pack, unpack

    def answer(message: "Message", context: "Context") -> "Message":
        message.content = unpack(message.content)
        reply = app(message, context)
        if reply.has_content():
            reply.content = pack(reply.content)
        return reply

    return answer


def require_installed_bundle(bundle: bytes) -> None:
    """Check that an app bundle is the one of this installation.

    Raises:
        ToldError: If it is not, with the digests of both. Nothing of the bundle has been unpacked or run.
    """
    from client.flower_private import ToldError
    from common.bundle import BundleRefusal, bundle_digest, installed_bundle

    offered, installed = bundle_digest(bundle), bundle_digest(installed_bundle())
    if offered == installed:
        return
    log.error("refused an app bundle that is not the installed one: installed %s, offered %s", installed, offered)
    journal = os.environ.get(JOURNAL_VARIABLE)
    if journal:
        append(
            Path(journal),
            Entry(
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                kind="bundle",
                failure="bundle",
                sent={"refusal": {"values": 2}},
                facts={"installed": installed, "offered": offered},
            ),
        )
    raise ToldError(BundleRefusal(installed=installed, offered=offered).to_text())


def log_to_stderr() -> None:
    """Have the process of a task write what it logs to its standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", force=True)
    for ours in ("client", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    logging.getLogger("flwr").propagate = False  # it has a handler of its own


if __name__ == "__main__":
    log_to_stderr()
    main(sys.argv[1:])
