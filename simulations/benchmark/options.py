"""The options of `gliorn-simulate benchmark`."""

import argparse
from pathlib import Path

from simulations.benchmark.registry import MODULES


def add_benchmark(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Describe `benchmark`."""
    parser = commands.add_parser(
        "benchmark",
        help="how fast this program is on this machine",
        description="Measures this program on this machine, shows the figures beside their targets and writes "
        "results.json and results.md. A missed target is told and is no failure. Research use only.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=f"out of {', '.join(MODULES)} (all)")
    parser.add_argument("--quick", default=False, action="store_true", help="small sizes, to see that they work")
    parser.add_argument("--repeats", default=3, type=int, metavar="N", help="how often each side is measured (3)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the figures (runs/benchmark-DATE)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on standard output")
    return parser
