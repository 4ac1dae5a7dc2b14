"""The options of `gliorn-simulate compare` and `gliorn-simulate folds`."""

import argparse
from pathlib import Path


def add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Describe `compare`."""
    parser = commands.add_parser(
        "compare",
        help="training together against training alone and in one place",
        description="Trains every hospital by itself, all patients in one place, each federated method, and the "
        "federation without each hospital in turn; then compares them patient by patient. The same command goes on "
        "with a comparison that was interrupted. Research use only.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--methods",
        default="fedavg,fedprox,fedbn,ditto",
        metavar="NAMES",
        help="federated methods (fedavg,fedprox,fedbn,ditto)",
    )
    parser.add_argument(
        "--arms",
        default="local,pooled,pooled_long,leave_one_out",
        metavar="NAMES",
        help="the others, out of local,pooled,pooled_long,leave_one_out (all)",
    )
    parser.add_argument("--seeds", default=1, type=int, metavar="N", help="seeds of splits, weights and order (1)")
    _add_common(parser, out="runs/compare")
    return parser


def add_folds(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Describe `folds`."""
    parser = commands.add_parser(
        "folds",
        help="cross-validation: every patient is tested once by a model new to him",
        description="Federated repeated k-fold: each hospital divides its patients into K parts, each of which is the "
        "test once. The same command goes on with a cross-validation that was interrupted. Research use only.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--folds", default=5, type=int, metavar="K", help="parts (5)")
    parser.add_argument("--repeats", default=1, type=int, metavar="R", help="divisions into parts (1)")
    parser.add_argument("--method", default="fedavg", metavar="NAME", help="what trains (fedavg)")
    _add_common(parser, out="runs/folds")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, out: str) -> None:
    parser.add_argument("--study", type=Path, metavar="FILE", help="study.yaml; the comparison's own if absent")
    parser.add_argument(
        "--site", type=Path, action="append", metavar="FILE", help="site.yaml of a site; repeat it. Replaces phantoms"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of training, instead of the study's")
    parser.add_argument("--sites", metavar="LETTERS", help="phantom hospitals out of A to F (A,B,C,D,E)")
    parser.add_argument("--patients", type=int, metavar="N", help="patients per hospital; its own number if absent")
    parser.add_argument("--separation", type=float, metavar="X", help="how far apart the classes are (1.5)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the phantoms, and the first of the studies")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the phantoms lie (hospitals)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder of what is made ({out})")
    parser.add_argument("--workers", type=int, metavar="N", help="runs side by side, one thread each (all cores)")
    parser.add_argument("--dry-run", default=False, action="store_true", help="only say what it would cost")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on standard output")
