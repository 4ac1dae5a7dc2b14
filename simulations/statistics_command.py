"""`gliorn-simulate statistics`: the sites on this machine show statistics of their cohorts, and nothing is trained."""

import argparse
import json
from datetime import datetime
from pathlib import Path

from rich.console import Console

from server.statistics_note import note_statistics, statistics_file, statistics_page
from server.statistics_page import read_statistics, statistics_lines
from simulations.display import progress_bar
from simulations.engines.nursery import Nursery
from simulations.phantom_sites import phantom_sites, positive
from simulations.processors import default_workers
from simulations.run_command import DEMO_SPACING_MM, new_folder
from simulations.single_machine import EngineName, carry, open_run, prepare_sites, read_sites, require_fitting
from simulations.studies import refuse_options, study_of_command, study_yaml

WITHOUT_MEANING = ("rounds", "fedprox_mu", "resume", "fault", "initial_weights")
"""Options of the plain command that statistics have no use for."""


def statistics_command(arguments: argparse.Namespace, console: Console, copies: Nursery | None = None) -> int:
    """Carry a run of statistics and show its end. Returns 0, or 2 where no site shows anything."""
    workers = positive("--workers", arguments.workers) or default_workers()
    refuse_options(arguments, WITHOUT_MEANING, place="statistics, which train nothing")
    study = study_of_command(arguments, default="demo_study.yaml")
    name = f"{study.name}-statistics-{datetime.now():%Y%m%d-%H%M%S}"
    out = new_folder(arguments.out or Path("runs") / name)
    paths = arguments.site or phantom_sites(
        arguments, console, seed=study.seed, spacing_mm=DEMO_SPACING_MM, workers=workers
    )
    sites = read_sites(paths)
    engine: EngineName = arguments.engine or "in-process"
    require_fitting(study, sites, engine=engine)
    with progress_bar(console, "sites to prepare", len(sites)) as bar:

        def on_exam(_: str, done: int, of: int) -> None:
            if done == of:
                bar.advance()

        prepare_sites(study, sites, workers=workers, on_exam=on_exam)
    folder = open_run(out, study_text=study_yaml(study), sites=sites, engine=engine, trains=False)
    note_statistics(folder)
    record = carry(folder, sites, engine=engine, workers=workers, faults=(), while_running=lambda: None, copies=copies)
    for line in statistics_lines(read_statistics(folder)):
        console.print(line)
    console.print(f"{record['outcome']}. Page: {statistics_page(folder)}")
    if arguments.json:
        print(json.dumps(json.loads(statistics_file(folder).read_text(encoding="utf-8")), indent=1))  # noqa: T201
    return 2 if record["outcome"] == "INVALID" else 0
