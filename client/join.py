"""Starts Flower's SuperNode for a site: the process that fetches tasks and starts the ClientApp."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from client.app import SITE_CONFIG_KEY
from client.config import SiteConfig
from common.errors import ConfigError
from common.flower_environment import flower_environment


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
    home.mkdir(parents=True, exist_ok=True)
    # Flower reads node settings as TOML; JSON's quoting of a text is valid TOML.
    node_settings = home / "node.toml"
    node_settings.write_text(f"{SITE_CONFIG_KEY} = {json.dumps(str(config_path.resolve()))}\n", encoding="utf-8")
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


def free_port() -> int:
    """A port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
