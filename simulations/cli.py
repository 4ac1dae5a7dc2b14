"""`gliorn-simulate`: a federation on one machine, over phantom hospitals or over a user's own site configurations."""

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common.errors import GliornError
from common.importing import undisturbed_imports
from simulations.benchmark.options import add_benchmark
from simulations.compare.options import add_compare, add_folds

LOG_WIDTH = 140
"""Characters in a line where no terminal says how many fit."""

DESCRIPTION = """\
Hospitals on this machine train a 3D ResNet10 together and are evaluated together. Without arguments: phantom
hospitals A to E are made, five sites train by FedAvg, and a report is written. Research use only."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when the run is done, also DEGRADED; 1 for a fault of this program; 2 for what the user has to mend.
    """
    arguments = _parser().parse_args(argv)
    # Without markup: brackets in a path or in a peer's text are no instructions.
    console = Console(stderr=arguments.json, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    # Being asked to stop is an interruption like Ctrl-C, so that what was started is stopped too.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(arguments.run(arguments, console))
    except GliornError as error:
        print(f"gliorn-simulate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gliorn-simulate: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "gliorn-simulate: stopped; a run that has begun goes on with --resume RUN, a comparison, a "
            "cross-validation or a table with the same command",
            file=sys.stderr,
        )
        return 2
    except Exception:  # noqa: BLE001 - the outermost border: our own fault is shown whole
        traceback.print_exc()
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gliorn-simulate", description=DESCRIPTION)
    parser.set_defaults(run=_simulate)
    _add_common(parser, sites="A,B,C,D,E")
    run = parser.add_argument_group("the run")
    run.add_argument("--study", type=Path, metavar="FILE", help="study.yaml; the demo's study if absent")
    run.add_argument(
        "--site", type=Path, action="append", metavar="FILE", help="site.yaml of a site; repeat it. Replaces phantoms"
    )
    run.add_argument("--rounds", type=int, metavar="N", help="rounds of training, instead of the study's")
    run.add_argument(
        "--fedprox-mu", type=float, metavar="MU", help="strength of FedProx, instead of the study's; 0: FedAvg"
    )
    run.add_argument(
        "--engine", choices=("in-process", "ray", "network"), help="what carries the messages (in-process)"
    )
    run.add_argument(
        "--initial-weights", type=Path, metavar="FILE", help="file of MedicalNet weights that the study names"
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (runs/NAME-DATE)")
    run.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    run.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="SITE:KIND[:ROUND]",
        help="let a site go wrong from a round on: nan, shape, no-patients, many-patients, missing-key, exception, "
        "hang, crash",
    )
    commands = parser.add_subparsers(title="other commands", metavar="")
    hospitals = commands.add_parser(
        "hospitals",
        help="only write the phantom hospitals, with a picture of each",
        argument_default=argparse.SUPPRESS,  # else its defaults would undo what stands before its name
    )
    hospitals.set_defaults(run=_hospitals)
    hospitals.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    hospitals.add_argument(
        "--spacing",
        default=None,
        type=float,
        metavar="MM",
        help="finest voxel edge; the scanners' own if absent, at full size",
    )
    _add_common(hospitals, sites="A,B,C,D,E,F")
    _add_paper(commands)
    _add_statistics(commands)
    add_compare(commands).set_defaults(run=_compare)
    add_folds(commands).set_defaults(run=_folds)
    add_benchmark(commands).set_defaults(run=_benchmark)
    return parser


def _add_paper(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    paper = commands.add_parser(
        "paper",
        help="the source paper's table: its six models on phantoms, beside the published figures",
        description="Trains the six models of the source paper on each sequence and on all three, at one phantom "
        "hospital of 234 patients and at five federated ones, and shows the figures beside the published ones. The "
        "same command goes on with a table that was interrupted. Phantoms are not patients: this does not reproduce "
        "the clinical result. Research use only.",
        argument_default=argparse.SUPPRESS,
    )
    paper.set_defaults(run=_paper)
    paper.add_argument(
        "--models",
        default=None,
        metavar="NAMES",
        help="out of resnet10, densenet121, resnet50, vgg11, mresnet, vgg16 (all)",
    )
    paper.add_argument("--sequences", default=None, metavar="NAMES", help="out of t1, t1ce, t2 and all (each of them)")
    paper.add_argument("--seeds", default=None, type=int, metavar="N", help="seeds of weights, order and split (1)")
    paper.add_argument("--patients", type=int, metavar="N", help="at the one hospital, the five in proportion (234)")
    paper.add_argument("--rounds", type=int, metavar="N", help="rounds of training (20)")
    paper.add_argument("--width", default=None, type=float, metavar="X", help="factor on the models' channels (1)")
    paper.add_argument(
        "--federated",
        default=True,
        action=argparse.BooleanOptionalAction,
        help="whether the five hospitals are trained too (yes)",
    )
    paper.add_argument(
        "--study", type=Path, metavar="FILE", help="what all cells train with; the paper's study if absent"
    )
    paper.add_argument("--separation", type=float, metavar="X", help="how far apart the classes are (1.5)")
    paper.add_argument("--seed", type=int, metavar="N", help="seed of the phantoms, and the first of the cells (0)")
    paper.add_argument("--data", type=Path, metavar="DIR", help="where the phantoms lie (hospitals)")
    paper.add_argument("--out", type=Path, metavar="DIR", help="folder of the table (runs/paper)")
    paper.add_argument("--workers", type=int, metavar="N", help="cells trained side by side, a thread each (all cores)")
    paper.add_argument("--dry-run", default=False, action="store_true", help="only say what it would cost")
    paper.add_argument("--json", action="store_true", help="print the table as JSON on standard output")


def _add_statistics(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    statistics = commands.add_parser(
        "statistics",
        help="statistics of the cohorts before any training",
        description="The sites show statistics of their cohorts: classes, ages, sexes, voxels, missing sequences, "
        "intensities. Small counts are hidden at the sites, and nothing is trained. Research use only.",
        argument_default=argparse.SUPPRESS,
    )
    statistics.set_defaults(run=_statistics)
    statistics.add_argument("--study", type=Path, metavar="FILE", help="study.yaml; the demo's study if absent")
    statistics.add_argument(
        "--site", type=Path, action="append", metavar="FILE", help="site.yaml of a site; repeat it. Replaces phantoms"
    )
    statistics.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (runs/NAME-statistics-DATE)")
    statistics.add_argument(
        "--engine", default=None, choices=("in-process", "network"), help="what carries the messages (in-process)"
    )
    _add_common(statistics, sites="A,B,C,D,E")


def _add_common(parser: argparse.ArgumentParser, *, sites: str) -> None:
    phantoms = parser.add_argument_group("phantom hospitals")
    phantoms.add_argument("--sites", metavar="LETTERS", help=f"hospitals out of A to F, or P ({sites})")
    phantoms.add_argument("--patients", type=int, metavar="N", help="patients per hospital; its own number if absent")
    phantoms.add_argument(
        "--separation", type=float, metavar="X", help="how far apart the classes are: 1 realistic (1.5)"
    )
    phantoms.add_argument("--seed", type=int, metavar="N", help="seed of phantoms and study (0, or the study's)")
    phantoms.add_argument("--data", type=Path, metavar="DIR", help="where they lie (hospitals)")
    parser.add_argument("--workers", type=int, metavar="N", help="sites and exams worked on side by side (all cores)")
    absent = argparse.SUPPRESS if parser.argument_default is argparse.SUPPRESS else False
    parser.add_argument(
        "--json", action="store_true", default=absent, help="print the result as JSON on standard output"
    )


def _simulate(arguments: argparse.Namespace, console: Console) -> int:
    # Late, so that --help and wrong arguments are answered before torch is loaded.
    from simulations.engines.nursery import nursery_for

    with nursery_for(arguments.engine) as copies:
        with undisturbed_imports():
            from simulations.run_command import run_command

        return run_command(arguments, console, copies)


def _hospitals(arguments: argparse.Namespace, console: Console) -> int:
    from simulations.hospitals_command import hospitals_command

    return hospitals_command(arguments, console)


def _paper(arguments: argparse.Namespace, console: Console) -> int:
    from simulations.paper.command import paper_command

    return paper_command(arguments, console)


def _statistics(arguments: argparse.Namespace, console: Console) -> int:
    from simulations.engines.nursery import nursery_for

    with nursery_for(arguments.engine) as copies:
        from simulations.statistics_command import statistics_command

        return statistics_command(arguments, console, copies)


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from simulations.compare.command import compare_command

    return compare_command(arguments, console)


def _folds(arguments: argparse.Namespace, console: Console) -> int:
    from simulations.compare.folds_command import folds_command

    return folds_command(arguments, console)


def _benchmark(arguments: argparse.Namespace, console: Console) -> int:
    from simulations.benchmark.command import benchmark_command

    return benchmark_command(arguments, console)
