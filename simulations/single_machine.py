"""A federation on one machine: check the sites, prepare their exams, carry the run by an engine, wait for its end."""

import fcntl
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from client.acceleration.ahead import measure_ahead
from client.config import SiteConfig, read_site_config
from client.prepare import prepare_site
from client.site import require_allowed
from common.errors import ConfigError, GliornError, list_of_faults
from common.importing import undisturbed_imports
from common.study import Study, parse_study
from server.initial_weights import require_weights
from server.run_folder import Participants, RunFolder, create_run_folder
from simulations.engines.launch import EngineError, Launch
from simulations.engines.nursery import Nursery
from simulations.faults import Fault

EngineName = Literal["in-process", "ray", "network"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def engine_of(name: EngineName) -> Callable[[Launch], None]:
    """What carries a run; imported no sooner, since each needs other parts of Flower."""
    with undisturbed_imports():
        match name:
            case "in-process":
                import_module("torch._dynamo")  # torch does it when the first optimiser is made, while sites wait
                from simulations.engines.in_process import run_in_process

                return run_in_process
            case "ray":
                from simulations.engines.ray_runtime import run_ray

                return run_ray
            case "network":
                from simulations.engines.network import run_network

                return run_network


def read_sites(paths: Sequence[Path]) -> dict[str, tuple[Path, SiteConfig]]:
    """Read site configurations, by the sites' names.

    Raises:
        ConfigError: All faults of all of them at once, and two sites of one name.
    """
    sites: dict[str, tuple[Path, SiteConfig]] = {}
    faults = []
    for path in paths:
        try:
            config = read_site_config(path)
        except ConfigError as error:
            faults.append(str(error))
            continue
        if config.name in sites:
            faults.append(
                f"{path}: name is {config.name!r}, as in {sites[config.name][0]}; give every site a name of its own"
            )
        sites.setdefault(config.name, (path.resolve(), config))
    if faults:
        raise ConfigError("\n".join(faults))
    return dict(sorted(sites.items()))


def require_fitting(study: Study, sites: Mapping[str, tuple[Path, SiteConfig]], *, engine: EngineName) -> None:
    """Refuse what is bound to fail before anything is computed.

    Raises:
        ConfigError: All such faults at once.
    """
    faults = []
    held_out = study.participation.held_out
    if unknown := sorted(set(held_out) - sites.keys()):
        faults.append(
            f"participation.held_out names {', '.join(unknown)}, the sites are {', '.join(sites)}; "
            "name some of these, or none"
        )
    training = [site for site in sites if site not in held_out]
    if len(training) < study.participation.min_sites:
        faults.append(
            f"{len(training)} sites are given to train, the study needs participation.min_sites "
            f"{study.participation.min_sites}"
        )
    threads = {config.torch_threads for _, config in sites.values()}
    if engine == "in-process" and len(threads) > 1:
        faults.append(
            "the sites name different torch_threads, which one process cannot give them; "
            "make them equal or use --engine network"
        )
    if faults:
        raise ConfigError(list_of_faults("this federation", faults))


def prepare_sites(
    study: Study,
    sites: Mapping[str, tuple[Path, SiteConfig]],
    *,
    workers: int,
    on_exam: Callable[[str, int, int], None],
) -> None:
    """Prepare all exams of all sites, with every fault of every site told at once.

    Where the study leaves the precision to the sites, the ways to train are measured as well, once for all of one size.

    Args:
        study: Says how.
        sites: By name.
        workers: Processes.
        on_exam: Told the site, how many exams are done, and of how many.

    Raises:
        ConfigError: Faults of tables and images, by site.
    """
    faults = []
    for name, (_, config) in sites.items():

        def report(done: int, total: int, name: str = name) -> None:
            on_exam(name, done, total)

        try:
            cohort = prepare_site(config, study, workers=workers, on_exam=report)
            require_allowed(config, study, cohort)
            measure_ahead(config, study, num_exams=cohort.splits["train"].num_exams)
        except GliornError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))


def open_run(
    out: Path,
    *,
    study_text: str,
    sites: Mapping[str, tuple[Path, SiteConfig]],
    engine: EngineName,
    initial_weights: bytes | None = None,
    trains: bool = True,
) -> RunFolder:
    """Make the folder of a new run, with where the sites' configurations lie for a later `--resume`.

    With `trains` off the run needs no file of weights; it is yet to be made one of statistics.

    Raises:
        ConfigError: If the folder is in use, or the study begins from a file of weights and none is given.
    """
    if trains and initial_weights is None:
        require_weights(parse_study(study_text, origin=str(out)), None)
    participants = Participants(tuple(sites), "claimed" if engine == "ray" else "registered", engine)
    folder = create_run_folder(out, study_text=study_text, participants=participants, initial_weights=initial_weights)
    _sites_file(folder).write_text(
        json.dumps({name: str(path) for name, (path, _) in sites.items()}, indent=1) + "\n", encoding="utf-8"
    )
    return folder


def sites_of_run(folder: RunFolder) -> list[Path]:
    """The site configurations of a run that was begun on this machine.

    Raises:
        ConfigError: If they are not noted in the folder.
    """
    try:
        return [Path(path) for path in json.loads(_sites_file(folder).read_text(encoding="utf-8")).values()]
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{_sites_file(folder)}: unreadable ({type(error).__name__}); name the sites with --site, or start afresh"
        ) from None


def _sites_file(folder: RunFolder) -> Path:
    return folder.path / "sites.json"


def carry(
    folder: RunFolder,
    sites: Mapping[str, tuple[Path, SiteConfig]],
    *,
    engine: EngineName,
    workers: int,
    faults: Sequence[Fault],
    while_running: Callable[[], None],
    copies: Nursery | None = None,
) -> dict[str, Any]:
    """Carry a run to its end and return its record.

    Args:
        folder: The run.
        sites: By name.
        engine: What carries the messages.
        workers: Sites that work side by side.
        faults: What goes wrong on purpose.
        while_running: Called several times a second, from another thread.
        copies: See `Launch`.

    Raises:
        ConfigError: If another process carries this run.
        GliornError: If the run ended without a record.
    """
    launch = Launch(folder, {name: path for name, (path, _) in sites.items()}, workers, tuple(faults), copies)
    with _locked(folder), _called_often(while_running):
        try:
            # In the main thread, so that an interruption unwinds it and what it started is stopped.
            engine_of(engine)(launch)
        except GliornError:
            record = read_record(folder)
            if record is None or record["outcome"] != "INVALID":
                raise
            return record
    record = read_record(folder)
    if record is None:
        raise EngineError(f"{folder.path}: the run ended without a record; see engine.log there")
    return record


def read_record(folder: RunFolder) -> dict[str, Any] | None:
    """The record of a run that has ended; None for one that has not."""
    if not folder.record.is_file():
        return None
    record: dict[str, Any] = json.loads(folder.record.read_text(encoding="utf-8"))
    return record


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Keep a second command out of a run's folder; the lock ends with the process that holds it."""
    with (folder.path / "run.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder.path}: another process carries this run; wait for its end, or stop it first"
            ) from None
        yield


@contextmanager
def _called_often(action: Callable[[], None]) -> Iterator[None]:
    """Call something several times a second, in a thread of its own, as long as the block runs."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.2):
            action()

    thread = threading.Thread(target=work, name="watcher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
