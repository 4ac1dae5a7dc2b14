"""Statistics of cohorts before any training: the tables that a site counts its patients in, and their sum over sites.

In every table but the last a patient stands in exactly one cell of one row for each thing that is counted, so that a
row adds up to patients. The bins are fixed: what sites count in the same bins can be added.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Literal

from common.errors import ProtocolError
from common.study import CLASS_NAMES
from common.study import Sequence as MriSequence

HIDDEN = -1
"""Stands in a cell that the site does not show."""

AGE_EDGES = (20, 30, 40, 50, 60, 70, 80)
"""Years at which the bins of age begin; the first and the last one are open, as very old ages identify."""

MONTHS_EDGES = (3, 6, 12, 24, 60)
SPACING_EDGES_MM = (0.75, 1.25, 2.25, 3.5, 5.5)
"""Between the distances that are common, such as 1, 3 and 5 mm."""

INTENSITY_LIMIT, INTENSITY_STEP = 6.0, 0.5
"""Prepared voxels are z-scores, clipped to ±6."""

NUM_INTENSITY_BINS = round(2 * INTENSITY_LIMIT / INTENSITY_STEP)
SPLIT_COLUMNS = ("train", "validation", "test")
SEX_COLUMNS = ("female", "male", "other", "unknown")
EXAMS_COLUMNS = ("1", "2", "3", "4 or more")
UNREADABLE, MISSING = "unreadable", "missing"
MAX_COUNT = 2**53

TableName = Literal["split", "age", "sex", "months", "exams", "spacing", "intensity"]
BY_CLASS: tuple[TableName, ...] = ("split", "age", "sex", "months")
"""Tables with a row for each class."""


@dataclass(frozen=True)
class TableLayout:
    """The shape of one table.

    Attributes:
        name: Its name on the wire.
        caption: What it counts.
        rows: Names of the rows.
        columns: Names of the cells of each row.
        unit: What is counted.
    """

    name: TableName
    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    unit: Literal["patients", "voxels"] = "patients"


def layout_of(sequences: Sequence[MriSequence]) -> tuple[TableLayout, ...]:
    """All tables of a study with these sequences."""
    spacing = (*_bin_names(SPACING_EDGES_MM, " mm"), UNREADABLE, MISSING)
    low = [-INTENSITY_LIMIT + INTENSITY_STEP * place for place in range(NUM_INTENSITY_BINS)]
    intensity = tuple(f"{edge:g} to {edge + INTENSITY_STEP:g}" for edge in low)
    return (
        TableLayout("split", "Patients by class and split", CLASS_NAMES, SPLIT_COLUMNS),
        TableLayout("age", "Age in years", CLASS_NAMES, (*_whole_bin_names(AGE_EDGES), "unknown")),
        TableLayout("sex", "Sex", CLASS_NAMES, SEX_COLUMNS),
        TableLayout("months", "Months since radiotherapy", CLASS_NAMES, (*_bin_names(MONTHS_EDGES, ""), "unknown")),
        TableLayout("exams", "Exams per patient", ("patients",), EXAMS_COLUMNS),
        TableLayout("spacing", "Coarsest voxel edge, and missing sequences", tuple(sequences), spacing),
        TableLayout("intensity", "Intensity of the prepared crops (z-score)", tuple(sequences), intensity, "voxels"),
    )


def _whole_bin_names(edges: Sequence[int]) -> tuple[str, ...]:
    middle = (f"{low} to {high - 1}" for low, high in pairwise(edges))
    return (f"under {edges[0]}", *middle, f"{edges[-1]} or more")


def _bin_names(edges: Sequence[float], unit: str) -> tuple[str, ...]:
    middle = (f"{low:g} to under {high:g}{unit}" for low, high in pairwise(edges))
    return (f"under {edges[0]:g}{unit}", *middle, f"{edges[-1]:g}{unit} or more")


@dataclass(frozen=True)
class CohortStatistics:
    """What one site shows of its cohort.

    Attributes:
        rows: The cells of each row by the names of table and row, in the order of `layout_of`; HIDDEN where the site
            does not show a cell.
    """

    rows: Mapping[tuple[TableName, str], tuple[int, ...]]

    def to_integers(self) -> dict[str, list[int]]:
        """The rows as lists of whole numbers, by name."""
        return {f"{table}/{row}": list(cells) for (table, row), cells in self.rows.items()}

    @classmethod
    def from_integers(
        cls, integers: Mapping[str, Sequence[int]], sequences: Sequence[MriSequence]
    ) -> "CohortStatistics":
        """Read what `to_integers` wrote.

        Raises:
            ProtocolError: If a row is missing, unknown or too short or long, or a cell is no possible count.
        """
        lengths = {(table.name, row): len(table.columns) for table in layout_of(sequences) for row in table.rows}
        names = {f"{table}/{row}": (table, row) for table, row in lengths}
        if integers.keys() != names.keys():
            wrong = sorted(names.keys() ^ integers.keys())
            raise ProtocolError(f"statistics: rows {', '.join(wrong)[:200]!r} are missing or unknown")
        rows = {}
        for name, key in names.items():
            cells = tuple(integers[name])
            if len(cells) != lengths[key]:
                raise ProtocolError(f"statistics: {name} has {len(cells)} cells, expected {lengths[key]}")
            if not all(HIDDEN <= cell <= MAX_COUNT for cell in cells):
                raise ProtocolError(f"statistics: {name} holds what is no count, expected 0 or more, or {HIDDEN}")
            rows[key] = cells
        return cls(rows)


@dataclass(frozen=True)
class PooledCell:
    """A cell added up over sites.

    Attributes:
        count: Sum over the sites that show it.
        num_sites: How many they are. Where they are not all, the true sum is larger, or the same.
    """

    count: int = 0
    num_sites: int = 0

    def __add__(self, other: "PooledCell") -> "PooledCell":
        """Both together."""
        return PooledCell(self.count + other.count, self.num_sites + other.num_sites)


def pooled_rows(
    sites: Iterable[CohortStatistics], sequences: Sequence[MriSequence]
) -> dict[tuple[TableName, str], tuple[PooledCell, ...]]:
    """Every cell added up over the sites that show it."""
    shown = [
        {
            key: tuple(PooledCell() if cell == HIDDEN else PooledCell(cell, 1) for cell in cells)
            for key, cells in site.rows.items()
        }
        for site in sites
    ]
    return {
        (table.name, row): tuple(
            reduce(add, (site[table.name, row][place] for site in shown), PooledCell())
            for place in range(len(table.columns))
        )
        for table in layout_of(sequences)
        for row in table.rows
    }
