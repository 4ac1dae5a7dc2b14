"""What a round adds to the sites' own computation: the network engine beside a plain Flower app, and in one process.

Both deployments run on loopback with TLS and authenticated SuperNodes, and send a ResNet10 of 57.6 MB to each site and
back. The plain app has FedAvg with its two messages a round, SQLite, and Flower's own subprocess isolation.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any

from common.flower_environment import flower_environment
from server.processes import free_ports, stop_group
from server.provisioning import make_site_key_pair
from server.run_folder import RunFolder
from server.superlink import CONNECTION, SuperLink
from simulations.benchmark.phantom_federation import Sites, phantom_federation, prepared_run, small_study
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options

SITES = ("A", "B", "C", "D")
SPACING_MM, SIZE = 4.0, 16
MOST_TIMES_LESS, MOST_SHARE = 3.0, 0.01
PATIENCE_S = 1800.0


def measure(options: Options) -> BenchmarkResult:
    """Measure both deployments in turns, and one run in one process whose rounds are long."""
    turns, rounds = (1, 2) if options.quick else (max(1, options.repeats - 1), 4)
    sites = phantom_federation(options.work / "hospitals", SITES, patients=15, spacing_mm=SPACING_MM, threads=1)
    study = small_study(
        rounds=rounds, seed=1, size=SIZE, spacing_mm=SPACING_MM, participation={"min_sites": len(SITES)}
    )
    ours: list[float] = []
    stock: list[float] = []
    for turn in range(turns):
        out = options.work / f"ours-{turn}"
        ours += _added(prepared_run(out, study, sites, engine="network", workers=1))
        stock += _stock_added(options.work / f"stock-{turn}", rounds=rounds)
    times_less = statistics.median(stock) / statistics.median(ours)
    share = _share_in_process(options, sites)
    return BenchmarkResult(
        "round",
        (
            Measurement("added to a round by a plain Flower app", statistics.median(stock), "s", note=_range(stock)),
            Measurement("added to a round by the network engine", statistics.median(ours), "s", note=_range(ours)),
            Measurement(
                "the plain app's added time over ours",
                times_less,
                "x",
                target=f">= {MOST_TIMES_LESS:g} x",
                reached=times_less >= MOST_TIMES_LESS,
            ),
            Measurement(
                "added to a round in one process",
                100 * share,
                "%",
                target=f"<= {100 * MOST_SHARE:g} % of the sites' computation",
                reached=share <= MOST_SHARE,
                note="one site after the other, so that the sum of their computations is the shortest time",
            ),
        ),
        {
            "sites": len(SITES),
            "megabytes a state": 57.6,
            "rounds a turn": rounds,
            "turns": turns,
            "first round": "left out",
        },
    )


def _range(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.1f} to {max(seconds):.1f} s in {len(seconds)} rounds"


def _rounds(folder: RunFolder) -> list[dict[str, Any]]:
    """The rounds after the first one, in which sites still connect."""
    rounds = [json.loads(line) for line in folder.rounds.read_text(encoding="utf-8").splitlines()]
    return rounds[1:]


def _added(folder: RunFolder) -> list[float]:
    """For each round its wall time less the longest computation of a site."""
    return [
        record["seconds"] - max(sum(site["seconds"]) for site in record["sites"].values()) for record in _rounds(folder)
    ]


def _share_in_process(options: Options, sites: Sites) -> float:
    """What a round adds, as a share of the sites' computations, which follow each other.

    The sites train as long as in a short study of this size, since it is a share that is asked for.
    """
    steps = 4 if options.quick else 100
    training = {"local_epochs": None, "local_steps": steps}
    study = small_study(rounds=2 if options.quick else 3, seed=1, size=SIZE, spacing_mm=SPACING_MM, training=training)
    folder = prepared_run(options.work / "in-process", study, sites, engine="in-process", workers=1)
    shares = []
    for record in _rounds(folder):
        computed = sum(sum(site["seconds"]) for site in record["sites"].values())
        shares.append(record["seconds"] / computed - 1)
    return float(statistics.median(shares))


# --- a plain Flower app -----------------------------------------------------------------------------------------------


def _stock_added(folder: Path, *, rounds: int) -> list[float]:
    """Wall time of each round but the first, less the longest computations of its two phases."""
    folder.mkdir()
    out = folder / "times.json"
    with _stock_deployment(folder) as link, as_file(files("simulations.benchmark") / "stock_flower") as app:
        settings = f'sites={len(SITES)} rounds={rounds} out="{out}"'
        _flwr(link, "run", str(app), CONNECTION, "--run-config", settings)
        end = time.monotonic() + PATIENCE_S
        while not out.exists():
            if time.monotonic() > end:
                raise RuntimeError("the plain Flower app did not end in time")
            time.sleep(1.0)
        time.sleep(1.0)
    told: Mapping[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    ends, longest = told["ends"], told["longest"]
    return [
        ends[round] - ends[round - 1] - longest["train"][round - 1] - longest["evaluate"][round - 1]
        for round in range(2, rounds + 1)
    ]


@contextmanager
def _stock_deployment(folder: Path) -> Iterator[SuperLink]:
    """A SuperLink and a SuperNode for each site, as `flower-superlink` and `flower-supernode` are by default."""
    ports = free_ports(1 + len(SITES))
    link = SuperLink(folder / "superlink", port=ports[0], runs=folder)
    link.prepare(now=datetime.now(UTC))
    tls = link.authority.parent
    programs = Path(sys.executable).parent
    with ExitStack() as stack:
        log = stack.enter_context((folder / "flower.log").open("ab"))

        def start(home: str, *command: str) -> None:
            environment = flower_environment(os.environ, home=str(folder / home), programs=str(programs))
            (folder / home).mkdir()
            stack.enter_context(_started([str(programs / command[0]), *command[1:]], environment, log))

        start(
            "server",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(link.port)),
            *("--ssl-ca-certfile", str(link.authority), "--ssl-certfile", str(tls / "server.crt")),
            *("--ssl-keyfile", str(tls / "server.key"), "--enable-supernode-auth"),
            *("--database", str(folder / "state.db")),
        )
        end = time.monotonic() + PATIENCE_S
        while not link.is_listening() and time.monotonic() < end:
            time.sleep(0.2)
        for site, port in zip(SITES, ports[1:], strict=True):
            key = _registered_key(link, folder / f"key-{site}", site)
            start(
                f"site-{site}",
                *("flower-supernode", "--superlink", link.address, "--root-certificates", str(link.authority)),
                *("--auth-supernode-private-key", str(key), "--port", str(port)),
            )
        yield link


def _registered_key(link: SuperLink, folder: Path, site: str) -> Path:
    folder.mkdir(mode=0o700)
    pair = make_site_key_pair()
    key, public = folder / "site.key", folder / "site.pub"
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pair.private_key)
    public.write_bytes(pair.public_key)
    link.register(public, name=site)
    return key


@contextmanager
def _started(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Iterator[None]:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield
    finally:
        stop_group(process, patience_s=0.0)


def _flwr(link: SuperLink, *arguments: str) -> None:
    """Flower's command line, with the configuration that `SuperLink.prepare` has written."""
    programs = Path(sys.executable).parent
    environment = flower_environment(os.environ, home=str(link.folder / "cli"), programs=str(programs))
    subprocess.run(
        [str(programs / "flwr"), *arguments, "--format", "json"], env=environment, check=True, capture_output=True
    )


BENCHMARK = Benchmark("round", "what a round adds to the sites' computation, beside a plain Flower app", measure)
