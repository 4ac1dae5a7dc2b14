"""Starts and stops Flower's SuperNode for a site: the process that fetches tasks and starts the ClientApp."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import IO

from client.app import SITE_CONFIG_KEY
from client.cache import make_private_folder, write_atomically
from client.config import SiteConfig
from common.errors import ConfigError
from common.flower_environment import flower_environment

STOP_GRACE_S = 20.0
"""Seconds that Flower's programs have to end before they are killed."""


def start_supernode(
    config: SiteConfig,
    config_path: Path,
    *,
    port: int,
    environment: Mapping[str, str],
    log: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the SuperNode as the leader of its own process group.

    Args:
        config: The site's configuration, with a server section.
        config_path: Where it lies; the ClientApp reads it again.
        port: Free port of this machine, reached only from it, over which SuperNode and ClientApp speak.
        environment: Environment to begin from.
        log: Where the output of Flower's programs goes; to this process's own by default.

    Raises:
        ConfigError: If the configuration names no server, CA certificate or key.
    """
    server = config.server
    if server is None or server.ca_certificate is None or server.private_key is None:
        raise ConfigError(
            f"{config_path}: server needs address, ca_certificate and private_key to join a federation; "
            "ask the coordinator for them"
        )
    home = config.cache / "flower"
    make_private_folder(home)
    # Flower reads node settings as TOML; JSON's quoting of a text is valid TOML.
    node_settings = home / "node.toml"
    write_atomically(node_settings, f"{SITE_CONFIG_KEY} = {json.dumps(str(config_path.resolve()))}\n".encode())
    programs = Path(sys.executable).parent
    command = [
        *(str(programs / "flower-supernode"), "--superlink", server.address),
        *("--root-certificates", str(server.ca_certificate)),
        *("--auth-supernode-private-key", str(server.private_key)),
        *("--port", str(port), "--node-config", str(node_settings)),
    ]
    return subprocess.Popen(
        command,
        env=flower_environment(environment, home=str(home), programs=str(programs)),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def run_until_stopped(start: Callable[[], subprocess.Popen[bytes]], *, grace_s: float = STOP_GRACE_S) -> int | None:
    """Start a process group and wait for its end; SIGTERM or SIGINT to this process ends it.

    The signals are caught before the start, so that none of them leaves a process behind. Works in a process's main
    thread.

    Args:
        start: Starts the leader of a new process group.
        grace_s: Seconds between asking the group to end and killing it.

    Returns:
        The leader's exit status if it ended by itself; None if it was stopped.
    """
    stopped_at: float | None = None

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped_at
        stopped_at = time.monotonic() if stopped_at is None else stopped_at

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        process = start()
        asked = False
        try:
            while process.poll() is None:
                if stopped_at is not None and not asked:
                    _signal_group(process, signal.SIGTERM)
                    asked = True
                if stopped_at is not None and time.monotonic() - stopped_at > grace_s:
                    break
                time.sleep(0.2)
        finally:
            _signal_group(process, signal.SIGKILL)  # a ClientApp that is blocked outlives its SuperNode
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if stopped_at is None else None


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def free_port() -> int:
    """A port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
