"""Puts together what keeps a site in a federation."""

import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import httpx

from client.config import SiteConfig
from client.coordinator import site_key
from client.flower_private import deactivate_node
from client.flower_programs import FlowerCommands
from client.greeting import Greeter
from client.kit import Kit, kit_of
from client.private_files import make_private_folder, write_atomically
from client.processes import ProcessLock
from client.rehearsal.route import route_to
from client.supervisor import Once, Pace, Site, Supervisor
from client.working_hours import parse_working_hours
from common.errors import ConfigError


def stay_joined(
    config: SiteConfig,
    config_path: Path,
    *,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    now: Callable[[], datetime],
    generator: random.Random,
    once: Once | None = None,
    pace: Pace | None = None,
) -> None:
    """Keep a site in its federation until this process is asked to end. Works in a process's main thread.

    Args:
        config: The site's configuration.
        config_path: Where it lies; the ClientApp reads it again for every task.
        environment: Environment to begin from; proxies that it names are used.
        say: Takes the lines that a person reads.
        now: The site's clock, with time zone.
        generator: Spreads the pauses between attempts.
        once: Leave after one round; None stays.
        pace: How patient to be.

    Raises:
        ConfigError: If the site cannot join, another process has joined with the same key, or the environment names a
            proxy that is no HTTP proxy.
    """
    kit = kit_of(config, origin=config_path)
    route_to(kit.address, environment)  # refuses a proxy of a kind that neither Flower nor this program can use
    make_private_folder(kit.flower_home)
    lock = ProcessLock(kit.client_lock)
    if not lock.take():
        raise ConfigError(
            f"{kit.folder}: another gliorn-client on this machine is connected with this site's key; end it first, or "
            "leave it to its work"
        )
    say(f"{config.name}: joining the federation at {kit.address}; Ctrl-C leaves")
    say(f"what leaves this site: {kit.journal}; Flower's own output: {kit.flower_log}")
    greeter = Greeter(kit, config, installed_version=version("gliorn"), environment=environment, now=now)
    site = Site(
        name=config.name,
        commands=FlowerCommands(kit, config, config_path, environment),
        journal=kit.journal,
        log=kit.flower_log,
        greet=greeter.greet,
        free_node=lambda: free_node(kit),
        remember_node=lambda node: remember_node(kit, node),
        hours=None if config.working_hours is None else parse_working_hours(config.working_hours),
    )
    Supervisor(site, say=say, generator=generator, now=now, pace=pace, once=once).run()
    lock.close()


def remember_node(kit: Kit, node: int | None) -> None:
    """Keep the coordinator's number for this site while it is connected; None forgets it."""
    if node is None:
        kit.node.unlink(missing_ok=True)
    else:
        write_atomically(kit.node, json.dumps({"node": node}).encode())


def free_node(kit: Kit) -> None:
    """Tell the coordinator that the node of an earlier process is gone, if one is remembered and it can be reached."""
    try:
        node = int(json.loads(kit.node.read_bytes())["node"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    # Where it does not come through, the coordinator finds out by itself, within a minute.
    with suppress(httpx.HTTPError, OSError, ConfigError):
        deactivate_node(kit.address, kit.ca_certificate, site_key(kit), node)
        remember_node(kit, None)
