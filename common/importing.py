"""Importing many modules at once, as a program does at its start."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed_imports() -> Iterator[None]:
    """Within the block, nothing looks for garbage; what was made in it is not looked at later either.

    Imports make many objects and no garbage to speak of. Python looks through all of them again and again meanwhile,
    which took a quarter of the time in which torch, MONAI, Flower and this program are imported.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
