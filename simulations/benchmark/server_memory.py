"""How much memory a coordinator needs.

A real SuperLink and a real ServerApp carry a run with sites that are reduced to their protocol. For each process the
peak and the size after each round are read from the system. The claim to check: whatever the number of sites, the
ServerApp needs no more than its imports and three copies of the model, and many rounds need no more than a few.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from common.flower_private import take_server_identity
from server.processes import descendants
from server.run_folder import Participants, RunFolder, create_run_folder
from server.superlink import SuperLink
from simulations.benchmark.coordinator import START_TIMEOUT_S, coordinator
from simulations.benchmark.fleet_site import FleetSite, MadeUpSite
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options

MIB = 2**20
IMPORTS = "import flwr.superlink.runtime.run_serverapp, server.app; print(open('/proc/self/status').read())"
MOST_COPIES = 3.0
GROWTH_WIDTH = 0.125
SERVER_APP = "flwr-serverapp"
_LOOK_EVERY_S = 0.1
_MODELS_AT_A_TIME = 2


@dataclass
class Memory:
    """What a process was seen to use, in bytes.

    Attributes:
        peak: The most it ever used.
        rounds: Its size after each round.
    """

    peak: int = 0
    rounds: dict[int, int] = field(default_factory=dict)

    def growth_a_round(self, *, first: int) -> float | None:
        """Bytes by which it grew in each round after the first one given; None if there were too few rounds."""
        later = {round: size for round, size in self.rounds.items() if round >= first}
        if len(later) < 2:
            return None
        begin, end = min(later), max(later)
        return (later[end] - later[begin]) / (end - begin)


@dataclass(frozen=True)
class MeasuredRun:
    """One run.

    Attributes:
        num_sites: Sites that took part.
        model: Bytes of one model state.
        imports: Bytes of a ServerApp that has imported everything and done nothing.
        processes: By the program's name.
        seconds: From the first look to the end of the run.
    """

    num_sites: int
    num_rounds: int
    model: int
    imports: int
    processes: Mapping[str, Memory]
    seconds: float

    @property
    def model_copies(self) -> float:
        """Copies of the model that the ServerApp held at its peak, beyond its imports."""
        return (self.processes[SERVER_APP].peak - self.imports) / self.model


def measure_run(home: Path, *, num_sites: int, num_rounds: int, width: float) -> MeasuredRun:
    """Carry one run and measure it.

    Args:
        home: An empty folder for everything that is written.
        num_sites: Sites that take part.
        num_rounds: Rounds of the run.
        width: Of the model; 1 is the full ResNet10.
    """
    names = [f"site-{number:02d}" for number in range(num_sites)]
    folder = create_run_folder(
        home / "runs" / "measured",
        study_text=_study(num_sites, num_rounds, width),
        participants=Participants(tuple(names), "registered", "federation"),
    )
    with coordinator(home, runs=folder.path.parent) as made:
        sites = [(name, made.register(name)) for name in names]
        with _at_work(made.link, sites):
            started = time.monotonic()
            made.link.submit(folder.name)
            processes = _watch(folder, [program.pid for program in made.programs.values()])
            seconds = time.monotonic() - started
    return MeasuredRun(
        num_sites=num_sites,
        num_rounds=_rounds_done(folder),
        model=max(path.stat().st_size for path in folder.checkpoints.iterdir()),
        imports=_imports(),
        processes=processes,
        seconds=seconds,
    )


def _study(num_sites: int, num_rounds: int, width: float) -> str:
    return yaml.safe_dump(
        {
            "name": "memory",
            "seed": 1,
            "rounds": num_rounds,
            "preprocessing": {"spacing_mm": [1.0, 1.0, 1.0], "size_voxels": [64, 64, 64], "crop": "lesion"},
            "model": {"width": width, "num_groups": 4},
            "training": {"learning_rate": 1e-3, "batch_size": 4, "local_epochs": 1},
            "evaluation": {"min_pooled_sites": 1},
            "participation": {"min_sites": num_sites, "round_timeout_s": 3600, "join_timeout_s": 600},
        }
    )


@contextmanager
def _at_work(link: SuperLink, sites: Sequence[tuple[str, bytes]]) -> Iterator[None]:
    """The sites answer, each on a thread of its own, with few models in memory at a time."""
    take_server_identity(run_id=1, node_id=1)  # this process makes messages outside Flower's own programs
    working, stop = threading.Semaphore(_MODELS_AT_A_TIME), threading.Event()
    authority = link.authority.read_bytes()
    fleet = [FleetSite(link.address, authority, key, MadeUpSite(name).answer, working=working) for name, key in sites]
    threads = [threading.Thread(target=site.run, args=(stop,), daemon=True) for site in fleet]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(20.0)


def _watch(folder: RunFolder, roots: Sequence[int]) -> dict[str, Memory]:
    """Look at all processes from the begin of the ServerApp to its end."""
    seen: dict[str, Memory] = {}
    _look_on(folder, roots, seen)
    if not folder.record.is_file():
        raise RuntimeError(f"the run came to no end: {folder.log.read_text()[-1000:]}")
    return seen


def _look_on(folder: RunFolder, roots: Sequence[int], seen: dict[str, Memory]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    is_alive = False
    while is_alive or (SERVER_APP not in seen and time.monotonic() < end):
        round = _rounds_done(folder)
        is_alive = False
        for process in [*roots, *(below for root in roots for below in descendants(root))]:
            sizes = _sizes(process)
            name = _program_name(process)
            if sizes is None or not name:
                continue
            is_alive = is_alive or name == SERVER_APP
            memory = seen.setdefault(name, Memory())
            memory.peak = max(memory.peak, sizes["VmHWM"])
            if round:
                memory.rounds[round] = sizes["VmRSS"]
        time.sleep(_LOOK_EVERY_S)


def _rounds_done(folder: RunFolder) -> int:
    return len(folder.rounds.read_bytes().splitlines()) if folder.rounds.is_file() else 0


def _program_name(process: int) -> str:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((Path(word.decode()).name for word in words if Path(word.decode()).name.startswith(_PREFIXES)), "")


_PREFIXES = ("flower-superlink", "flower-superexec", SERVER_APP)


def _sizes(process: int) -> dict[str, int] | None:
    try:
        return _parse_sizes(Path(f"/proc/{process}/status").read_text())
    except (OSError, KeyError):  # it ended while we looked
        return None


def _parse_sizes(status: str) -> dict[str, int]:
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {name: int(values[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS")}


def _imports() -> int:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    return _parse_sizes(done.stdout)["VmHWM"]


def measure(options: Options) -> BenchmarkResult:
    """Measure 4, 32 and 128 sites in one round each, and 200 rounds of a small model; far less if quick."""
    numbers, width, num_rounds = ((2, 4), 0.25, 10) if options.quick else ((4, 32, 128), 1.0, 200)
    measurements: list[Measurement] = []
    for num_sites in numbers:
        home = options.work / f"{num_sites}-sites"
        home.mkdir()
        run = measure_run(home, num_sites=num_sites, num_rounds=1, width=width)
        server = run.processes[SERVER_APP]
        measurements += [
            Measurement(f"ServerApp's peak, {num_sites} sites", server.peak / MIB, "MiB"),
            Measurement(
                f"copies of the model beyond its imports, {num_sites} sites",
                run.model_copies,
                "x",
                target=f"<= {MOST_COPIES:g}",
                reached=run.model_copies <= MOST_COPIES,
                note=f"imports {run.imports / MIB:.0f} MiB, a model {run.model / MIB:.1f} MiB",
            ),
            Measurement(f"SuperLink's peak, {num_sites} sites", run.processes["flower-superlink"].peak / MIB, "MiB"),
        ]
    home = options.work / "rounds"
    home.mkdir()
    run = measure_run(home, num_sites=2, num_rounds=num_rounds, width=GROWTH_WIDTH)
    for name, memory in sorted(run.processes.items()):
        growth = memory.growth_a_round(first=num_rounds // 4)
        if growth is not None:
            measurements.append(
                Measurement(
                    f"growth of {name} a round, {num_rounds} rounds",
                    growth / MIB,
                    "MiB",
                    target="< 1 MiB",
                    reached=growth < MIB,
                    note=f"from round {num_rounds // 4} on, 2 sites, a model of {run.model / MIB:.2f} MiB",
                )
            )
    return BenchmarkResult(
        "server-memory", tuple(measurements), {"sites": ", ".join(map(str, numbers)), "width": width}
    )


BENCHMARK = Benchmark("server-memory", "Memory of a coordinator with many sites and over many rounds", measure)
