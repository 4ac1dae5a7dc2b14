"""`gliorn-simulate` until a first step is to be taken: `python -m simulations.benchmark.first_step ARGUMENT…`.

How long that takes is how long a user waits until something is learnt.
"""

import os
import sys
from typing import Any

from common.importing import undisturbed_imports
from simulations.cli import main


def _end(*_: Any) -> None:
    os._exit(0)  # this program has shown what it was for; nothing of its run is kept


if __name__ == "__main__":
    with undisturbed_imports():  # as the command imports it
        from torch.optim.optimizer import register_optimizer_step_pre_hook
    register_optimizer_step_pre_hook(_end)
    main(sys.argv[1:])
    sys.exit("no step was taken")
