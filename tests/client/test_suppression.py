"""Hidden cells: whoever knows the rule, the totals and all that is shown cannot tell of any cell that it is small."""

import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.cohort_statistics import with_hidden
from client.suppression import Cell, of_patients, suppressed
from common.cohort_statistics import BY_CLASS, HIDDEN, TableName, layout_of
from common.study import Sequence

SEQUENCES: tuple[Sequence, ...] = ("t1", "t2")


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        pytest.param((5, 0, 20), (5, 0, 20), id="nothing is small"),
        pytest.param((3, 9, 20), (HIDDEN, HIDDEN, 20), id="the smallest of the others hides it"),
        pytest.param((3, 9, 9, 20), (HIDDEN, HIDDEN, HIDDEN, 20), id="equal ones are treated alike"),
        pytest.param((3, 0, 9, 20), (HIDDEN, HIDDEN, HIDDEN, 20), id="zeros are hidden where one is small"),
        pytest.param((1, 2, 0), (HIDDEN, HIDDEN, HIDDEN), id="all small"),
        pytest.param((0, 0, 0), (0, 0, 0), id="nobody"),
    ],
)
def test_row_is_shown_by_the_rule(row: tuple[int, ...], shown: tuple[int, ...]) -> None:
    assert suppressed(of_patients(row), 5) == shown


@given(st.lists(st.integers(0, 40), min_size=2, max_size=9), st.integers(0, 12))
def test_subtraction_leaves_every_hidden_cell_between_zero_and_the_limit(row: list[int], min_cell: int) -> None:
    total = sum(row)

    shown = suppressed(of_patients(row), min_cell)

    assert all(cell == HIDDEN or cell == 0 or cell >= min_cell for cell in shown)
    assert all(cell in (HIDDEN, true) for cell, true in zip(shown, row, strict=True))
    num_hidden = shown.count(HIDDEN)
    left = total - sum(cell for cell in shown if cell != HIDDEN)
    assert num_hidden != 1
    if num_hidden:
        assert left >= min(min_cell, total)


@pytest.mark.parametrize("min_cell", [2, 3, 4])
@pytest.mark.parametrize("num_cells", [3, 4])
def test_no_small_cell_follows_from_what_is_shown_for_who_knows_the_rule(min_cell: int, num_cells: int) -> None:
    """Every row up to 5 above the limit: those that look alike do not agree in any small cell.

    No table has rows of fewer than three cells.
    """
    assert all(len(table.columns) >= 3 for table in layout_of(SEQUENCES))
    alike = defaultdict(list)
    for row in itertools.product(range(min_cell + 6), repeat=num_cells):
        alike[suppressed(of_patients(row), min_cell), sum(row)].append(row)

    for (shown, total), rows in alike.items():
        for place in range(num_cells):
            values = {row[place] for row in rows}
            if shown[place] == HIDDEN:
                assert len(values) > 1, (shown, total)
                if total >= min_cell * num_cells:
                    assert max(values) >= min_cell, (shown, total)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 9)), min_size=2, max_size=8), st.integers(2, 6))
def test_voxels_of_few_patients_are_hidden_and_never_alone(pairs: list[tuple[int, int]], min_cell: int) -> None:
    row = [Cell(max(voxels, patients) if patients else 0, patients) for voxels, patients in pairs]

    shown = suppressed(row, min_cell)

    assert all(cell == HIDDEN for cell, true in zip(shown, row, strict=True) if 0 < true.num_patients < min_cell)
    assert shown.count(HIDDEN) != 1


def test_small_class_hides_all_tables_by_class() -> None:
    rows = rows_of(recurrence=36, necrosis=4)

    shown = with_hidden(rows, 5)

    assert all(set(cells) == {HIDDEN} for (table, _), cells in shown.items() if table in BY_CLASS)
    assert shown["exams", "patients"] == (40, 0, 0, 0)


def test_intensities_are_hidden_where_the_number_of_patients_who_lack_the_sequence_is() -> None:
    rows = rows_of(recurrence=20, necrosis=20, lacking_t2=2)

    shown = with_hidden(rows, 5)

    assert set(shown["intensity", "t2"]) == {HIDDEN}
    assert HIDDEN not in shown["intensity", "t1"]
    assert shown["spacing", "t2"][-1] == HIDDEN


def rows_of(*, recurrence: int, necrosis: int, lacking_t2: int = 0) -> dict[tuple[TableName, str], tuple[Cell, ...]]:
    """Cohort whose patients of a class are all in the first bin of every table."""
    of_class = {"recurrence": recurrence, "necrosis": necrosis}
    num = recurrence + necrosis
    rows = {}
    for table in layout_of(SEQUENCES):
        for row in table.rows:
            rest = (0,) * (len(table.columns) - 1)
            lacking = lacking_t2 if row == "t2" else 0
            cells = of_patients((of_class.get(row, num - lacking), *rest))
            if table.name == "spacing":
                cells = (*cells[:-1], Cell(lacking, lacking))
            rows[table.name, row] = cells
    return rows
