"""Runs Flower's SuperExec, which starts a ClientApp for every task, as a child that ends with its parent.

Run as `python -m client.superexec PARENT ARGUMENT…`, with the arguments of `flower-superexec`.
"""

import sys

from client.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    from client.flower_private import run_superexec

    run_superexec(sys.argv[2:])
