"""Tables of counts: what is sent is what is read, what has another shape is refused, and sites add up cell by cell."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cohort_statistics import HIDDEN, CohortStatistics, PooledCell, layout_of, pooled_rows
from common.errors import ProtocolError
from common.study import Sequence

SEQUENCES: tuple[Sequence, ...] = ("t1", "t1ce")


def site(cell: int) -> CohortStatistics:
    """A site with the same count in every cell."""
    return CohortStatistics(
        {(table.name, row): (cell,) * len(table.columns) for table in layout_of(SEQUENCES) for row in table.rows}
    )


@given(st.data())
def test_what_is_written_is_read(data: st.DataObject) -> None:
    rows = {
        (table.name, row): tuple(data.draw(st.lists(st.integers(HIDDEN, 99), min_size=size, max_size=size)))
        for table in layout_of(SEQUENCES)
        for row in table.rows
        for size in [len(table.columns)]
    }

    read = CohortStatistics.from_integers(CohortStatistics(rows).to_integers(), SEQUENCES)

    assert read == CohortStatistics(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda rows: rows.pop("sex/necrosis"), "sex/necrosis", id="row missing"),
        pytest.param(lambda rows: rows.update({"sex/nobody": [1]}), "sex/nobody", id="row unknown"),
        pytest.param(lambda rows: rows["age/necrosis"].append(1), "age/necrosis has 10 cells, expected 9", id="long"),
        pytest.param(lambda rows: rows["exams/patients"].pop(), "has 3 cells, expected 4", id="short"),
        pytest.param(lambda rows: rows["exams/patients"].__setitem__(0, -2), "no count", id="below hidden"),
        pytest.param(lambda rows: rows["exams/patients"].__setitem__(0, 2**60), "no count", id="too large"),
    ],
)
def test_another_shape_is_refused(change: Callable[[dict[str, list[int]]], object], message: str) -> None:
    rows = site(1).to_integers()
    change(rows)

    with pytest.raises(ProtocolError, match=message):
        CohortStatistics.from_integers(rows, SEQUENCES)


def test_cells_add_up_over_the_sites_that_show_them() -> None:
    pooled = pooled_rows([site(3), site(HIDDEN), site(4)], SEQUENCES)

    assert set(pooled["spacing", "t1ce"]) == {PooledCell(7, 2)}
    assert set(pooled_rows([site(HIDDEN)], SEQUENCES)["sex", "necrosis"]) == {PooledCell(0, 0)}
    assert len(pooled) == 4 * 2 + 1 + 2 * 2
