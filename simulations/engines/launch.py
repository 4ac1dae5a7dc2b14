"""What an engine needs to know to carry a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import GliornError
from server.run_folder import RunFolder
from simulations.engines.nursery import Nursery
from simulations.faults import Fault


class EngineError(GliornError):
    """Flower's processes did not do what was asked of them; their output is in `engine.log` of the run."""

    code = "engine"


@dataclass(frozen=True)
class Launch:
    """One run on one machine.

    Attributes:
        folder: The run's folder.
        sites: Path of each site's configuration, by the site's name.
        workers: Sites that work side by side, where the engine can tell.
        faults: What goes wrong at which site, on purpose.
        copies: What the network engine makes its programs of, where it was begun ahead.
    """

    folder: RunFolder
    sites: Mapping[str, Path]
    workers: int
    faults: tuple[Fault, ...] = field(default=())
    copies: Nursery | None = None
