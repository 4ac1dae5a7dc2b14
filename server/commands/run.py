"""`gliorn-server run`: has a study carried out by the federation, or a run go on that was left off."""

import argparse
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ConfigError, list_of_faults
from common.study import Study, parse_study
from server.commands.places import add_federation_argument, federation_folder, run_of_federation
from server.compare_with import find_models, note_models
from server.federation_folder import FederationFolder, admitted
from server.initial_weights import require_weights
from server.keeper import outcome_of
from server.locks import is_held
from server.run_folder import RUN_NAME, Participants, RunFolder, create_run_folder, write_json
from server.run_status import read_status, stand
from server.serving import is_served
from server.statistics_note import note_statistics

ENGINE = "federation"
LOOK_EVERY_S = 2.0
DONE, NO_RESULT = 0, 2


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "run",
        help="have a study carried out by the admitted sites, or continue a run",
        description="Have a study carried out by the admitted sites. The run belongs to `gliorn-server start`, not to "
        "this terminal; runs take their turn.",
    )
    add_federation_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("study", nargs="?", type=Path, metavar="STUDY", help="study.yaml that the sites agree to")
    what.add_argument(
        "--resume", metavar="RUN", help="continue a run that was paused or stopped, ended INVALID, or was given up on"
    )
    parser.add_argument("--name", help="the run's name; by default the study's with date and time")
    parser.add_argument(
        "--sites", metavar="A,B,…", help="names of the sites that are expected; by default all that are admitted"
    )
    parser.add_argument(
        "--compare-with",
        action="append",
        default=[],
        metavar="RUN",
        help="at the end, compare with this earlier run on the same test patients; RUN/personal means the sites' own "
        "models. Repeat it",
    )
    parser.add_argument(
        "--initial-weights",
        type=Path,
        metavar="FILE",
        help="file of MedicalNet weights that the study names (model.initial_weights)",
    )
    parser.add_argument(
        "--wait", action="store_true", help="stay until the run has ended, a line per change; 2 if without result"
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    federation = federation_folder(arguments)
    federation.read_config()
    if arguments.resume is None:
        folder = begin(
            federation,
            arguments.study,
            name=arguments.name,
            sites=arguments.sites,
            now=datetime.now(UTC),
            compare_with=arguments.compare_with,
            initial_weights=arguments.initial_weights,
        )
    else:
        if arguments.name is not None or arguments.sites is not None or arguments.compare_with:
            raise ConfigError(
                "--resume: a run keeps its name, its sites and what it is compared with; "
                "leave --name, --sites and --compare-with out"
            )
        if arguments.initial_weights is not None:
            raise ConfigError("--resume: a run keeps the weights it began from; leave --initial-weights out")
        folder = resume(federation, arguments.resume)
    if not is_served(federation):
        print("No server is running: the run begins when `gliorn-server start` does.")
    print(f"Next: `gliorn-server status {folder.name}` shows how far it is; `--watch` stays there.")
    return wait_for_end(folder) if arguments.wait else DONE


def begin(
    federation: FederationFolder,
    study_path: Path,
    *,
    name: str | None,
    sites: str | None,
    now: datetime,
    compare_with: Sequence[str] = (),
    initial_weights: Path | None = None,
    statistics: bool = False,
) -> RunFolder:
    """Make the folder of a new run, for the server to take up; with `statistics` one that trains nothing.

    Raises:
        ConfigError: If the study, the name, the sites, the runs to compare with or the initial weights do not fit.
    """
    try:
        text = study_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{study_path}: unreadable ({type(error).__name__}), expected a study.yaml") from None
    study = parse_study(text, origin=str(study_path))
    expected = require_sites(study, sorted(admitted(federation.read_register())), sites)
    name = name or f"{study.name}-{'statistics-' if statistics else ''}{now:%Y%m%d-%H%M%S}"
    if not re.fullmatch(RUN_NAME, name):
        raise ConfigError(f"--name is {name!r}, expected letters, digits, '.', '_' and '-', at most 100")
    path = federation.runs / name
    if path.exists():
        raise ConfigError(
            f"{path}: a run of that name is there; give another --name, or continue it with --resume {name}"
        )
    models = find_models(federation.runs, compare_with)
    weights = None if statistics else require_weights(study, initial_weights)
    folder = create_run_folder(
        path, study_text=text, participants=Participants(expected, "registered", ENGINE), initial_weights=weights
    )
    if models:
        note_models(folder, models)
    if statistics:
        note_statistics(folder)
    folder.write_wish("run")
    what = "statistics of the cohorts" if statistics else f"{study.rounds} rounds"
    print(f"Run {name}: study {study.name}, {what}, sites {', '.join(expected)}")
    print(f"Study digest {study.digest}")
    print("Each site must have consented to that digest: `gliorn-client accept`, or `studies` in its site.yaml.")
    return folder


def require_sites(study: Study, known: Sequence[str], chosen: str | None) -> tuple[str, ...]:
    """The sites that a run expects, in alphabetical order.

    Args:
        study: Says how many are needed.
        known: Admitted sites.
        chosen: Names between commas; None for all that are admitted.

    Raises:
        ConfigError: If they are too few, or one is not admitted.
    """
    sites = sorted(known) if chosen is None else sorted({name.strip() for name in chosen.split(",") if name.strip()})
    faults = [
        f"{site!r} is not admitted; admitted are {', '.join(known) or 'none'}" for site in sites if site not in known
    ]
    held_out = study.participation.held_out
    faults += [
        f"participation.held_out names {site!r}, which is not among the sites of this run; name one of "
        f"{', '.join(sites) or 'none'}"
        for site in held_out
        if site not in sites
    ]
    least, num_training = study.participation.min_sites, sum(site not in held_out for site in sites)
    if num_training < least:
        faults.append(
            f"{num_training} sites would train, the study needs participation.min_sites {least}; "
            "invite and admit more, or lower it"
        )
    if faults:
        raise ConfigError(list_of_faults("this run", faults))
    return tuple(sites)


def resume(federation: FederationFolder, name: str) -> RunFolder:
    """Have a run go on from its last round.

    Raises:
        ConfigError: If there is no such run, or it has a result.
    """
    folder = run_of_federation(federation, name)
    folder.read_study()
    folder.read_participants()
    outcome = outcome_of(folder)
    if folder.record.is_file() and outcome != "INVALID":
        raise ConfigError(f"{folder.path}: this run has ended {outcome}, nothing is left to do; start another one")
    if outcome is not None:
        write_json(folder.resumption, True)
    if not is_held(folder.server_app_lock):
        folder.submission.unlink(missing_ok=True)
    folder.trouble.unlink(missing_ok=True)
    folder.write_wish("run")
    print(f"Run {name}: goes on after round {read_status(folder).rounds_done}")
    return folder


def wait_for_end(folder: RunFolder) -> int:
    """Stay until a run has ended, and print a line per change; returns 0, or 2 if it has no result."""
    said = ""
    while True:
        status = read_status(folder)
        if (line := f"{folder.name}: {stand(status)}") != said:
            said = line
            print(line, flush=True)
        if folder.read_trouble() is not None:
            print(f"{folder.name}: {folder.read_trouble()}")
            return NO_RESULT
        if status.outcome is not None and not folder.resumption.is_file():
            return NO_RESULT if status.outcome == "INVALID" else DONE
        if folder.read_wish() != "run":
            print(f"{folder.name}: no longer wanted; `gliorn-server run --resume {folder.name}` continues it")
            return NO_RESULT
        time.sleep(LOOK_EVERY_S)
