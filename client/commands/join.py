"""`gliorn-client --site FILE`, without a command: joins the federation and stays."""

import argparse
import logging
import os
import random
from datetime import datetime

from client.config import read_site_config
from common.errors import ConfigError

DEFAULT_PATIENCE_S = 900.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what joining takes besides the site's configuration."""
    parser.add_argument(
        "--once", action="store_true", help="take part in one round and leave, for programs that run at given times"
    )
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=DEFAULT_PATIENCE_S,
        metavar="SECONDS",
        help=f"with --once: leave if no round came in this time (default {DEFAULT_PATIENCE_S:.0f})",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def join(arguments: argparse.Namespace) -> int:
    """Join the federation that the site configuration names and stay until stopped."""
    from client.join import stay_joined
    from client.supervisor import Once

    if arguments.site is None:
        raise ConfigError("--site FILE is missing; name this hospital's site.yaml")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every call
    config = read_site_config(arguments.site)
    stay_joined(
        config,
        arguments.site.resolve(),
        environment=os.environ,
        say=_say,
        now=lambda: datetime.now().astimezone(),
        generator=random.Random(),
        once=Once(arguments.patience) if arguments.once else None,
    )
    return 0


def _say(line: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}", flush=True)
