"""`gliorn-client --site FILE`, without a command: joins the federation and stays."""

import argparse
import os

from client.config import read_site_config
from common.errors import ConfigError


def join(arguments: argparse.Namespace) -> int:
    """Join the federation that the site configuration names and stay until stopped."""
    from client.join import free_port, run_until_stopped, start_supernode

    if arguments.site is None:
        raise ConfigError("--site FILE is missing; name this hospital's site.yaml")
    config = read_site_config(arguments.site)
    if config.server is not None:
        print(f"{config.name}: joining the federation at {config.server.address}; Ctrl-C leaves", flush=True)
    status = run_until_stopped(
        lambda: start_supernode(config, arguments.site, port=free_port(), environment=os.environ)
    )
    if status is None:
        print(f"{config.name}: left the federation")
        return 0
    raise ConfigError(
        f"Flower's SuperNode ended with status {status}; its last lines above say why. Frequent reasons: the "
        "coordinator has not registered this site's key, or another process runs with the same key"
    )
