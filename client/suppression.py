"""Which counts of a row a site does not show, so that none below its `min_cell` can be had from those it shows.

The total of every row counts as known: the coordinator learns the numbers of patients when a site joins. So where one
cell must be hidden, others have to be hidden with it. The rule for a row, min_cell being m:

1. Where no cell is from 1 to m − 1, the whole row is shown.
2. Elsewhere every cell below m is hidden, zeros too, and with them all cells of the smallest count that is left.

What is hidden then adds up to m at least, where the row does, and subtraction says no more of a hidden cell than that
it is from 0 to that sum. The rule treats all cells alike and depends on nothing but their counts. So whoever knows it,
and the total, sees the same row whichever hidden cell has which of the hidden counts, and one of these is m or more
wherever the row has such a cell: of no cell can he tell that it is small. Rows have three cells at least: of two, a
row of 1 and 1 under m = 2 would give itself away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cohort_statistics import HIDDEN


@dataclass(frozen=True)
class Cell:
    """A cell before anything is hidden.

    Attributes:
        count: What it would show.
        num_patients: Patients behind it, which decide whether it may.
    """

    count: int
    num_patients: int


def of_patients(counts: Sequence[int]) -> tuple[Cell, ...]:
    """Cells that count patients."""
    return tuple(Cell(count, count) for count in counts)


def suppressed(row: Sequence[Cell], min_cell: int) -> tuple[int, ...]:
    """The row as the site shows it: counts, and HIDDEN by the rule above."""
    if not any(0 < cell.num_patients < min_cell for cell in row):
        return tuple(cell.count for cell in row)
    smallest = min((cell.count for cell in row if cell.num_patients >= min_cell), default=None)
    return tuple(HIDDEN if cell.num_patients < min_cell or cell.count == smallest else cell.count for cell in row)


def hidden_row(row: Sequence[Cell]) -> tuple[int, ...]:
    """The row where nothing of it may be shown."""
    return (HIDDEN,) * len(row)
