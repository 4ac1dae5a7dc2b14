"""A table of a report as values: the template draws every table in the same way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.metrics.estimate import Estimate
from server.report.wording import NOT_ESTIMABLE, interval_text, three

MARKS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: What it says.
        detail: A second, smaller line, such as an interval.
        counts: A third one, such as 14/18.
        mark: Letter of the note below the table; empty for none.
        key: Name of the figure, for readers of the page that are programs.
        bar: Value and interval, each 0 to 1, drawn beside the figure; None for none.
        span: Columns it takes.
        words: Whether it holds words, which stand on the left.
    """

    text: str
    detail: str = ""
    counts: str = ""
    mark: str = ""
    key: str = ""
    bar: tuple[float, float, float] | None = None
    span: int = 1
    words: bool = False
    code: bool = False


@dataclass(frozen=True)
class Row:
    """A row: its heading, then its cells. A strong row is a total or the pool."""

    heading: Cell
    cells: tuple[Cell, ...]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its notes.

    Attributes:
        caption: What it shows.
        header: Headings of all columns, the first one over the rows' headings.
        rows: The rows.
        notes: Letter and text of each note.
        words: Whether its columns hold words, which stand on the left.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...] = ()
    words: bool = False

    @property
    def word_columns(self) -> frozenset[int]:
        """Columns that hold words in every row, the rows' headings being column 0."""
        columns = zip(*(row.cells for row in self.rows if len(row.cells) == len(self.header) - 1), strict=True)
        return frozenset(place for place, cells in enumerate(columns, start=1) if all(cell.words for cell in cells))


@dataclass
class Notes:
    """The notes of a table while it is made: the same text has the same letter."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str | None) -> str:
        """The letter of a note; empty for no note."""
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        number = self.texts.index(text)
        return MARKS[number % 26] * (number // 26 + 1)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Letter and text of each note, in order."""
        return tuple((self.mark(text), text) for text in self.texts)


def words(text: str) -> Cell:
    """A cell of words."""
    return Cell(text, words=True)


def estimate_cell(
    estimate: Estimate | None, notes: Notes, *, counts: str = "", key: str = "", with_bar: bool = False
) -> Cell:
    """A figure with its interval; why it has none becomes a note.

    Args:
        estimate: The figure; None where it was not asked for.
        notes: The table's.
        counts: The patients behind it, such as 14/18.
        key: Its name.
        with_bar: Whether the interval is drawn too, on a scale from 0 to 1.
    """
    if estimate is None:
        return Cell("–", key=key)
    mark = notes.mark(estimate.reason)
    if estimate.value is None:
        return Cell(NOT_ESTIMABLE, counts=counts, mark=mark, key=key)
    bar = None
    if with_bar and estimate.low is not None and estimate.high is not None and 0 <= estimate.low <= estimate.high <= 1:
        bar = (estimate.value, estimate.low, estimate.high)
    return Cell(three(estimate.value), interval_text(estimate), counts, mark=mark, key=key, bar=bar)


def share_of(part: float, whole: float) -> str:
    """A share as a percentage without decimals; a dash of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "–"


def column_sums(rows: Sequence[Sequence[int]]) -> list[int]:
    """The sum of each column."""
    return [sum(column) for column in zip(*rows, strict=True)]
