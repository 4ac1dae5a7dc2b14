"""The run of `gliorn-simulate`: gathers study and sites, shows the run while it goes on, and sums it up."""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from client.config import SiteConfig
from common.errors import ConfigError, GliornError
from common.study import Study
from server.initial_weights import require_weights
from server.run_folder import RUN_NAME, RunFolder
from simulations.compare.allowed import withheld_tests
from simulations.display import RunWatcher, interval, progress_bar, result_table
from simulations.engines.nursery import Nursery
from simulations.faults import Fault, parse_fault
from simulations.phantom_sites import PHANTOM_OPTIONS, hospital_names, phantom_sites, positive
from simulations.processors import default_workers
from simulations.single_machine import (
    ENGINES,
    EngineName,
    carry,
    open_run,
    prepare_sites,
    read_record,
    read_sites,
    require_fitting,
    sites_of_run,
)
from simulations.studies import study_of_command, study_yaml

DEMO_SPACING_MM = 2.0
Sites = Mapping[str, tuple[Path, SiteConfig]]


def run_command(arguments: argparse.Namespace, console: Console, copies: Nursery | None = None) -> int:
    """Begin a run, or continue one, and show its end. Returns 0, or 2 for a run that ended INVALID."""
    workers = positive("--workers", arguments.workers) or default_workers()
    faults = [parse_fault(text) for text in arguments.fault]
    if arguments.resume is not None:
        folder, study, engine, sites = _begun_run(arguments)
        require_faults_fit(faults, sites, engine=engine)
        ended = read_record(folder)
        if ended is not None and ended["outcome"] != "INVALID":
            console.print(f"{folder.path}: this run has ended; nothing is left to do")
            _sum_up(ended, folder, console, as_json=arguments.json)
            return 0
        _prepare(study, sites, console, workers)
    else:
        study = study_of_command(arguments, default="demo_study.yaml")
        engine = arguments.engine or "in-process"
        weights = require_weights(study, arguments.initial_weights)
        out = new_folder(arguments.out or Path("runs") / f"{study.name}-{datetime.now():%Y%m%d-%H%M%S}")
        sites = read_sites(arguments.site or _phantoms(arguments, study, console, workers))
        require_fitting(study, sites, engine=engine)
        require_faults_fit(faults, sites, engine=engine)
        _prepare(study, sites, console, workers)
        for line in withheld_tests(study, {name: config for name, (_, config) in sites.items()}):
            console.print(f"Warning: {line}", style="yellow")
        folder = open_run(out, study_text=study_yaml(study), sites=sites, engine=engine, initial_weights=weights)
    method = "FedAvg" if study.training.fedprox_mu == 0 else f"FedProx, mu {study.training.fedprox_mu:g}"
    console.print(f"{len(sites)} sites, {study.rounds} rounds, {method}, engine {engine}; run folder {folder.path}")
    with RunWatcher(console, folder) as watcher:
        record = carry(
            folder, sites, engine=engine, workers=workers, faults=faults, while_running=watcher.look, copies=copies
        )
    _sum_up(record, folder, console, as_json=arguments.json)
    return 2 if record["outcome"] == "INVALID" else 0


def new_folder(out: Path) -> Path:
    """Check that a run can be begun in a folder, long before it is."""
    out = out.resolve()
    if not re.fullmatch(RUN_NAME, out.name):
        raise ConfigError(
            f"--out {out}: the folder's name is the run's name; write letters, digits, '.', '_' and '-', 100 at most, "
            "beginning with a letter or digit"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there already; name another folder, or continue with --resume {out}")
    parent = next(folder for folder in out.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: nothing can be written into {parent}; name another folder")
    return out


def _phantoms(arguments: argparse.Namespace, study: Study, console: Console, workers: int) -> list[Path]:
    num_sites = len(hospital_names(arguments))
    if num_sites < study.participation.min_sites:
        raise ConfigError(
            f"--sites: {num_sites} hospitals, the study needs {study.participation.min_sites} "
            "(participation.min_sites); name more, or write a study that needs fewer"
        )
    return phantom_sites(arguments, console, seed=study.seed, spacing_mm=DEMO_SPACING_MM, workers=workers)


def _begun_run(arguments: argparse.Namespace) -> tuple[RunFolder, Study, EngineName, Sites]:
    for option in ("study", "rounds", "fedprox_mu", "engine", "out", "seed", "initial_weights", *PHANTOM_OPTIONS):
        if getattr(arguments, option) is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')} cannot be given with --resume: "
                "a run keeps what it began with; leave it out, or begin a new run"
            )
    folder = RunFolder(arguments.resume.resolve())
    study, engine = folder.read_study(), folder.read_participants().engine
    known: dict[str, EngineName] = {name: name for name in ENGINES}
    if engine not in known:
        raise ConfigError(f"{folder.participants}: engine is {engine!r}, which does not run on one machine")
    return folder, study, known[engine], read_sites(arguments.site or sites_of_run(folder))


def require_faults_fit(faults: Sequence[Fault], sites: Sites, *, engine: EngineName) -> None:
    """Refuse faults that the engine cannot make, or at a site that is not there; raises ConfigError."""
    if faults and engine == "network":
        raise ConfigError("--fault: the network engine runs the sites' own programs; use --engine in-process or ray")
    if engine == "in-process" and any(fault.kind == "crash" for fault in faults):
        raise ConfigError("--fault crash: ends a site's process, and in-process sites have none; use --engine ray")
    for fault in faults:
        if fault.site not in sites:
            raise ConfigError(f"--fault: {fault.site!r} is not among the sites {', '.join(sites)}")


def _prepare(study: Study, sites: Sites, console: Console, workers: int) -> None:
    from client.cohort import load_cohort

    total = 0
    faults = []
    for _, config in sites.values():
        try:
            total += len(load_cohort(config, study).exams)
        except GliornError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    done: dict[str, int] = {}
    with progress_bar(console, "exams to prepare", total) as bar:

        def on_exam(site: str, count: int, _: int) -> None:
            bar.advance(count - done.get(site, 0))
            done[site] = count

        prepare_sites(study, sites, workers=workers, on_exam=on_exam)


def _sum_up(record: Mapping[str, Any], folder: RunFolder, console: Console, *, as_json: bool) -> None:
    console.print()
    console.print(f"{record['outcome']}", style="bold" if record["outcome"] == "COMPLETE" else "bold red")
    for problem in record["problems"]:
        console.print(f"  {problem}")
    summary: dict[str, Any] = {
        "outcome": record["outcome"],
        "problems": record["problems"],
        "run": str(folder.path),
        "record": str(folder.record),
        "report": str(folder.report),
    }
    if record["outcome"] == "INVALID":
        console.print(f"No result. Once the sites are mended: gliorn-simulate --resume {folder.path}")
    else:
        test = record["figures"]["test"]["figures"]
        console.print(result_table(record))
        if test is not None:
            own_models = "rounds" in record["selection"]
            auc = test["within_site_auc"] if own_models else test["pooled"]["auc"]
            bins = (
                "" if auc["bin_error"] is None else f"; counting in bins changes it by at most {auc['bin_error']:.4f}"
            )
            kind = "Test AUC within sites" if own_models else "Pooled test AUC"
            console.print(f"{kind} {interval(auc['estimate'])}{bins}.")
        summary["test"] = None if test is None else test["pooled"]
    console.print(f"{record['notice']}\nReport: {folder.report}")
    if as_json:
        print(json.dumps(summary, indent=1))  # noqa: T201 - what --json is for
