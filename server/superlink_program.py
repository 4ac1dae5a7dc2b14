"""Runs Flower's SuperLink, which spends less on each call than as Flower starts it.

Run as `python -m server.superlink_program flower-superlink`, with the arguments of `flower-superlink`; its name there
is for the person who reads a list of processes.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Run the SuperLink until it is ended."""
    from server.flower_private import run_superlink

    run_superlink(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
