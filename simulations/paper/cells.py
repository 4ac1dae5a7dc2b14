"""The cells of the table: which model is trained on which sequences, where, and the study that says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from common.errors import ConfigError
from common.study import Sequence as SequenceName
from common.study import Study, parse_study
from simulations.paper.published import PaperModel, SequenceSet

Arm = Literal["one", "five"]
ARM_NAMES: Mapping[Arm, str] = {"one": "one phantom hospital", "five": "five phantom hospitals, federated"}
HOSPITALS_OF_ARM: Mapping[Arm, tuple[str, ...]] = {"one": ("P",), "five": ("A", "B", "C", "D", "E")}
MIN_POOLED_SITES: Mapping[Arm, int] = {"one": 1, "five": 3}

SEQUENCES_OF: Mapping[SequenceSet, tuple[SequenceName, ...]] = {
    "t1": ("t1",),
    "t1ce": ("t1ce",),
    "t2": ("t2",),
    "all": ("t1", "t2", "t1ce"),
}


@dataclass(frozen=True)
class Cell:
    """One training: a model, its sequences, where the patients are, and the seed of weights, order and split."""

    arm: Arm
    model: PaperModel
    sequences: SequenceSet
    seed: int

    @property
    def name(self) -> str:
        """What its run folder is called."""
        return f"{self.arm}-{self.model}-{self.sequences}-seed-{self.seed}"


def cells_of(
    *,
    arms: Sequence[Arm],
    models: Sequence[PaperModel],
    sequences: Sequence[SequenceSet],
    seeds: Sequence[int],
) -> list[Cell]:
    """All cells, the first seed's first, so that an interrupted table is whole before it is repeated."""
    return [Cell(arm, model, some, seed) for seed in seeds for arm in arms for model in models for some in sequences]


def study_of(cell: Cell, base: Study, *, rounds: int | None = None, width: float | None = None) -> Study:
    """The study of a cell: the base with its sequences, model and seed, and as many sites as there are.

    Where groups of channels do not divide a model's layers at this width, there are half as many, and so on.

    Args:
        cell: The cell.
        base: Says how all cells are trained.
        rounds: Instead of the base's.
        width: Instead of the base's.

    Raises:
        ConfigError: If such a study cannot be.
    """
    values = base.model_dump(mode="json")
    values |= {"name": f"paper-{cell.name}", "seed": cell.seed, "sequences": list(SEQUENCES_OF[cell.sequences])}
    values["participation"]["min_sites"] = len(HOSPITALS_OF_ARM[cell.arm])
    values["evaluation"]["min_pooled_sites"] = MIN_POOLED_SITES[cell.arm]
    values["model"]["name"] = cell.model
    if rounds is not None:
        values["rounds"] = rounds
    if width is not None:
        values["model"]["width"] = width
    groups = base.model.num_groups
    while True:
        values["model"]["num_groups"] = groups
        try:
            return _parsed(values, cell)
        except ConfigError:
            if groups == 1 or base.model.norm != "group":
                raise
        groups //= 2


def _parsed(values: Mapping[str, Any], cell: Cell) -> Study:
    return parse_study(yaml.safe_dump(dict(values)), origin=f"the study of cell {cell.name}")
