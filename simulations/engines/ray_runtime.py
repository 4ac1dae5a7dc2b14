"""Flower's simulation runtime on Ray, in a process of its own.

Nodes of that runtime know only their number, so the number is mapped to a site's configuration here, and the server
takes the sites' names from their manifests.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import SITE_CONFIG_KEY
from common.flower_environment import flower_environment
from server.processes import stop_group
from server.run_folder import RUN_KEY, RUNS_VARIABLE, RunFolder
from simulations.engines.launch import EngineError, Launch
from simulations.faults import Fault, FaultyClientApp

MODULE = "simulations.engines.ray_runtime"


class PartitionedClientApp(ClientApp):
    """The ClientApp of site k of a list on Flower's partition k.

    Args:
        inner: What answers.
        paths: Site configurations in the order of the partitions.
    """

    def __init__(self, inner: Callable[[Message, Context], Message], paths: list[str]) -> None:
        super().__init__()
        self._inner = inner
        self._paths = paths

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message as the partition's site."""
        partition = context.node_config["partition-id"]
        assert isinstance(partition, int)
        context.node_config[SITE_CONFIG_KEY] = self._paths[partition]
        return self._inner(message, context)


def run_ray(launch: Launch) -> None:
    """Carry a run on Ray; returns when the ServerApp is done.

    Raises:
        EngineError: If the process failed; its output is in `engine.log` of the run.
    """
    values = {
        "folder": str(launch.folder.path.resolve()),
        "sites": {name: str(path) for name, path in launch.sites.items()},
        "workers": launch.workers,
        "faults": [[fault.site, fault.kind, fault.first_round] for fault in launch.faults],
    }
    home = launch.folder.path / "flower"
    home.mkdir(exist_ok=True)
    environment = flower_environment(os.environ, home=str(home), programs=str(Path(sys.executable).parent))
    environment[RUNS_VARIABLE] = str(launch.folder.path.resolve().parent)
    log_path = launch.folder.path / "engine.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(values).encode())
        finally:
            stop_group(process)
    if process.returncode != 0:
        raise EngineError(f"the ray engine ended with status {process.returncode}; its output is in {log_path}")


def _main() -> None:
    """Entry of the process: the launch comes on standard input."""
    from flwr.simulation import run_simulation

    from client.app import app as client_app
    from server.app import app as server_app

    values = json.load(sys.stdin)
    names = sorted(values["sites"])
    paths = [values["sites"][name] for name in names]
    inner: Callable[[Message, Context], Message] = client_app
    if values["faults"]:
        faults = [Fault(*fault) for fault in values["faults"]]
        inner = FaultyClientApp(client_app, {values["sites"][fault.site]: fault for fault in faults})
    folder = RunFolder(Path(values["folder"]))
    outer = ServerApp()

    @outer.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config[RUN_KEY] = folder.name
        server_app(grid, context)

    run_simulation(
        outer,
        PartitionedClientApp(inner, paths),
        num_supernodes=len(paths),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": values["workers"], "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    _main()
    sys.stdout.flush()
    # A hanging site leaves a thread that Python would wait for.
    os._exit(0)
