"""Stands where Flower looks for its programs at the coordinator, so that no code that is submitted ever runs.

The SuperLink takes a run from whoever reaches its port, which is every user of the coordinator's machine, and Flower's
SuperExec would run the submitted code as the coordinator. It starts `flwr-serverapp` and its other programs by bare
name. The first folder on its PATH holds ours: a `flwr-serverapp` that runs the installed ServerApp if the app bundle is
the one of this installation, and refuses otherwise; and stubs in place of all programs that a coordinator does not
need. The bundle is never unpacked.

Run as `python -m server.guard flwr-serverapp`, with the arguments of `flwr-serverapp`; its name there is for the person
who reads a list of processes.
"""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path

from server.run_folder import write_atomically

log = logging.getLogger("server.guard")

GUARD_LOG_VARIABLE = "GLIORN_GUARD_LOG"
"""Environment variable with the path of the file that tells of refused bundles."""

GUARD_LOG_BYTES = 1_000_000

REFUSED_PROGRAMS = ("flwr-agentapp", "flwr-model", "flwr-connector", "flwr-clientapp", "flwr-simulation")
"""Programs of Flower that a submitted run could have started at the coordinator, and that never are."""

EXIT_REFUSED = 77
"""Exit status of a program that is refused."""


def write_guard(folder: Path) -> None:
    """Write the programs that Flower is to find; the folder then goes first on the PATH of its SuperExec.

    Raises:
        OSError: If they cannot be written.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    ours = f"exec {shlex.quote(sys.executable)} -P -m server.guard flwr-serverapp"
    programs = {"flwr-serverapp": f'{ours} "$@"'}
    for name in REFUSED_PROGRAMS:
        refusal = f"{name}: refused; a coordinator runs its own ServerApp alone"
        programs[name] = f"echo '{refusal}' >&2\nexit {EXIT_REFUSED}"
    for stale in folder.iterdir():
        if stale.name not in programs:
            stale.unlink()
    for name, body in programs.items():
        write_atomically(folder / name, f"#!/bin/sh\n{body}\n".encode())
        (folder / name).chmod(0o700)


def main(arguments: Sequence[str]) -> None:
    """Carry one run, as `flwr-serverapp` does."""
    path = os.environ.get(GUARD_LOG_VARIABLE)
    if path:
        handler = RotatingFileHandler(path, maxBytes=GUARD_LOG_BYTES, backupCount=1, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    from flwr.serverapp import ServerApp

    from server.flower_private import run_serverapp
    from server.packed_grid import PackedGrid

    def load() -> ServerApp:
        from server.app import app

        return app

    run_serverapp(arguments, check=require_installed_bundle, load=load, through=PackedGrid)


def require_installed_bundle(bundle: bytes) -> None:
    """Check that an app bundle is the one of this installation.

    Raises:
        ProtocolError: If it is not, with the digests of both. Nothing of the bundle has been unpacked or run.
    """
    from common.bundle import bundle_digest, installed_bundle
    from common.errors import ProtocolError

    offered, installed = bundle_digest(bundle), bundle_digest(installed_bundle())
    if offered == installed:
        return
    text = f"refused an app bundle that is not the installed one: installed {installed}, offered {offered}"
    log.error("%s", text)
    raise ProtocolError(text)


if __name__ == "__main__":
    main(sys.argv[2:])
