"""The table: published figures and those of the phantoms for every model and its sequences, each with an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table as TerminalTable

from common.metrics.estimate import Estimate, not_estimable, without_interval
from server.report.reading import Record
from server.report.wording import NOT_ESTIMABLE
from simulations.paper.cells import Arm, Cell
from simulations.paper.published import (
    MODEL_NAMES,
    SEQUENCE_NAMES,
    PaperModel,
    PublishedRow,
    SequenceSet,
    published_row,
)

Measure = Literal["auc", "sensitivity", "specificity", "accuracy"]
MEASURES: tuple[Measure, ...] = ("auc", "sensitivity", "specificity", "accuracy")
MEASURE_NAMES: Mapping[Measure, str] = {
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "accuracy": "accuracy",
}

SHORT_ARM_NAMES: Mapping[Arm, str] = {"one": "one hospital", "five": "five hospitals"}

WHAT_IT_IS_NOT = (
    "Phantoms are not patients: this does not reproduce the clinical result and says nothing about how well a model "
    "tells necrosis from recurrence in people."
)


@dataclass(frozen=True)
class CellFigures:
    """The four figures of a cell on its test patients, or of several seeds of it.

    Attributes:
        num_patients: Test patients with recurrence and with necrosis; of one seed.
        figures: By measure.
        num_seeds: Seeds behind it.
    """

    num_patients: tuple[int, int]
    figures: Mapping[Measure, Estimate]
    num_seeds: int = 1


@dataclass(frozen=True)
class TableRow:
    """A model and its sequences.

    Attributes:
        published: What the paper has; None where it has nothing.
        tested: By arm; None where no cell of it has a result.
    """

    model: PaperModel
    sequences: SequenceSet
    published: PublishedRow | None
    tested: Mapping[Arm, CellFigures | None]

    @property
    def name(self) -> str:
        """Model and sequences as the paper writes them."""
        return f"{MODEL_NAMES[self.model]}, {SEQUENCE_NAMES[self.sequences]}"


def tested_by(record: Record) -> CellFigures:
    """The pooled test figures of a cell's run."""
    test = record.evaluated("test")
    if test is None or test.figures is None:
        reason = "no test figures were pooled" if test is None else str(test.not_pooled)
        return CellFigures((0, 0), {measure: not_estimable(reason, 0) for measure in MEASURES})
    pooled = test.figures.pooled
    num = pooled.num_recurrence + pooled.num_necrosis
    figures: dict[Measure, Estimate] = {"auc": pooled.auc.estimate}
    at = pooled.at_threshold
    if at is None:
        reason = (record.operating_point.reason if record.operating_point else None) or "no threshold was chosen"
        figures |= {measure: not_estimable(reason, num) for measure in MEASURES[1:]}
    else:
        figures |= {"sensitivity": at.sensitivity, "specificity": at.specificity, "accuracy": at.accuracy}
    return CellFigures((pooled.num_recurrence, pooled.num_necrosis), figures)


def mean_over_seeds(seeds: Sequence[CellFigures]) -> CellFigures:
    """Several seeds of a cell as one row: the means of the figures and of the ends of their intervals.

    Seeds share patients, so their figures are not independent. The standard error of a mean is at most the mean of
    the standard errors, however the figures hang together: the interval is as wide as that of one seed on average,
    and repetition does not make it narrower.
    """
    if len(seeds) == 1:
        return seeds[0]
    figures = {measure: _mean([seed.figures[measure] for seed in seeds]) for measure in MEASURES}
    return CellFigures(seeds[0].num_patients, figures, num_seeds=len(seeds))


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    num = estimates[0].num
    values = [estimate.value for estimate in estimates if estimate.value is not None]
    if len(values) < len(estimates):
        reasons = [estimate.reason for estimate in estimates if estimate.value is None]
        return not_estimable(f"with {len(reasons)} of {len(estimates)} seeds: {reasons[0]}", num)
    value = sum(values) / len(values)
    lows = [estimate.low for estimate in estimates if estimate.low is not None]
    highs = [estimate.high for estimate in estimates if estimate.high is not None]
    if len(lows) < len(estimates):
        reasons = [estimate.reason for estimate in estimates if estimate.low is None]
        return without_interval(value, f"with {len(reasons)} of {len(estimates)} seeds: {reasons[0]}", num)
    return Estimate(value, sum(lows) / len(lows), sum(highs) / len(highs), num)


def table_rows(cells: Sequence[Cell], records: Mapping[Cell, Record]) -> list[TableRow]:
    """A row for every model and sequences among the cells, in the order in which they first come."""
    arms: dict[tuple[PaperModel, SequenceSet], dict[Arm, list[Cell]]] = {}
    for cell in cells:
        arms.setdefault((cell.model, cell.sequences), {}).setdefault(cell.arm, []).append(cell)
    rows = []
    for (model, sequences), by_arm in arms.items():
        tested: dict[Arm, CellFigures | None] = {}
        for arm, some in by_arm.items():
            ended = [tested_by(records[cell]) for cell in some if cell in records]
            tested[arm] = mean_over_seeds(ended) if ended else None
        rows.append(TableRow(model, sequences, published_row(model, sequences), tested))
    return rows


def published_cell(row: PublishedRow, measure: Measure) -> tuple[str, Estimate]:
    """A published figure as it is printed, and the figure with its interval."""
    estimate: Estimate = getattr(row, measure)
    return f"{getattr(row.printed, measure):.2f}", estimate


def terminal_table(rows: Sequence[TableRow]) -> TerminalTable:
    """The table for a terminal, with two decimals: a section for each model and its sequences."""
    num_seeds = max((tested.num_seeds for row in rows for tested in row.tested.values() if tested), default=1)
    seeds = f"; phantoms: means of {num_seeds} seeds" if num_seeds > 1 else ""
    table = TerminalTable(title=f"Test patients (N necrosis + recurrence), 95 % intervals{seeds}")
    table.add_column("model, sequences")
    table.add_column("what")
    table.add_column("N", justify="right", no_wrap=True)
    for heading in MEASURE_NAMES.values():
        table.add_column(heading, justify="right", min_width=len("[0.00, 0.00]"))  # else a narrow terminal cuts figures
    for row in rows:
        lines = []
        if row.published is not None:
            cells = [published_cell(row.published, measure) for measure in MEASURES]
            lines.append(("published", "9 + 49", *(f"{printed} {_interval(each)}" for printed, each in cells)))
        for arm, tested in row.tested.items():
            what = SHORT_ARM_NAMES[arm]
            if tested is None:
                lines.append((what, "", *("no result",) * len(MEASURES)))
            else:
                recurrence, necrosis = tested.num_patients
                shown = (_in_short(tested.figures[measure]) for measure in MEASURES)
                lines.append((what, f"{necrosis} + {recurrence}", *shown))
        for number, line in enumerate(lines):
            table.add_row(row.name if number == 0 else "", *line)
        table.add_section()
    return table


def _in_short(estimate: Estimate) -> str:
    return NOT_ESTIMABLE if estimate.value is None else f"{estimate.value:.2f} {_interval(estimate)}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "(no interval)"
    return f"[{estimate.low:.2f}, {estimate.high:.2f}]"


def json_rows(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """The table as plain values."""
    return [
        {
            "model": row.model,
            "sequences": row.sequences,
            "published": None if row.published is None else asdict(row.published),
            "phantoms": {arm: None if tested is None else asdict(tested) for arm, tested in row.tested.items()},
        }
        for row in rows
    ]
