"""`paper.html`: the table as one self-contained page, with a figure of the AUCs; drawn like the report of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup

from common.metrics.estimate import Estimate
from server.record import RESEARCH_USE_ONLY
from server.report.drawing import GRID, INK, LINE_COLORS, SOFT, new_figure, style, svg_of
from server.report.environment import page_environment
from server.report.page import Fact
from server.report.table import Cell, Notes, Row, Table, estimate_cell, words
from server.report.wording import interval_text, with_interval
from simulations.paper.cells import ARM_NAMES, Arm
from simulations.paper.published import (
    MODEL_NAMES,
    MRESNET_REMARK,
    SEQUENCE_NAMES,
    SOURCE,
    TEST_NECROSIS,
    TEST_RECURRENCE,
    SequenceSet,
)
from simulations.paper.table import (
    MEASURE_NAMES,
    MEASURES,
    WHAT_IT_IS_NOT,
    CellFigures,
    TableRow,
    published_cell,
)

PUBLISHED = "published"
_COLORS: Mapping[str, str] = {PUBLISHED: INK, "one": LINE_COLORS[0], "five": LINE_COLORS[1]}
_MARKERS: Mapping[str, str] = {PUBLISHED: "s", "one": "o", "five": "D"}


@dataclass(frozen=True)
class Legend:
    """What a colour stands for."""

    name: str
    color: str
    sign: str


@dataclass(frozen=True)
class PaperPage:
    """Everything on the page.

    Attributes:
        facts: What the table was made of.
        problems: Cells without a result, and why.
        figures: The AUCs, one figure for each set of sequences.
        table: All figures.
    """

    notice: str
    warning: str
    source: str
    facts: tuple[Fact, ...]
    problems: tuple[str, ...]
    legend: tuple[Legend, ...]
    figures: tuple[Markup, ...]
    table: Table
    num_seeds: int
    mresnet: str
    version: str


def page_of(
    rows: Sequence[TableRow], *, facts: Sequence[Fact], problems: Sequence[str], num_seeds: int, version: str
) -> PaperPage:
    """The page of a table."""
    arms: list[Arm] = [arm for arm in ARM_NAMES if any(arm in row.tested for row in rows)]
    legend = [Legend("Published", _COLORS[PUBLISHED], "■")]
    legend += [Legend(_sentence(ARM_NAMES[arm]), _COLORS[arm], "●" if arm == "one" else "◆") for arm in arms]
    shown = [sequences for sequences in SEQUENCE_NAMES if any(row.sequences == sequences for row in rows)]
    return PaperPage(
        notice=RESEARCH_USE_ONLY,
        warning=WHAT_IT_IS_NOT,
        source=SOURCE,
        facts=tuple(facts),
        problems=tuple(problems),
        legend=tuple(legend),
        figures=tuple(
            draw_aucs([row for row in rows if row.sequences == sequences], sequences, arms) for sequences in shown
        ),
        table=figure_table(rows),
        num_seeds=num_seeds,
        mresnet=MRESNET_REMARK if any(row.model == "mresnet" for row in rows) else "",
        version=version,
    )


def render(page: PaperPage) -> str:
    """The page as HTML, with the look of a run's report. Every text is escaped; only figures drawn here are markup."""
    environment = page_environment("simulations.paper")
    return environment.get_template("paper.html.j2").render(page=page)


def figure_table(rows: Sequence[TableRow]) -> Table:
    """All figures: for each model and its sequences the published line, then those of the phantoms."""
    notes = Notes()
    lines: list[Row] = []
    for row in rows:
        name = row.name
        if row.published is not None:
            counts = row.published.counts
            behind = {
                "sensitivity": f"{counts.true_positive}/{TEST_NECROSIS}",
                "specificity": f"{counts.true_negative}/{TEST_RECURRENCE}",
                "accuracy": f"{counts.num_right}/{TEST_NECROSIS + TEST_RECURRENCE}",
            }
            remark = row.published.remark
            cells = [words("published"), Cell(f"{TEST_NECROSIS} + {TEST_RECURRENCE}")]
            for measure in MEASURES:
                printed, estimate = published_cell(row.published, measure)
                key = f"published.{row.model}.{row.sequences}.{measure}"
                cells.append(
                    Cell(
                        printed,
                        interval_text(estimate),
                        behind.get(measure, ""),
                        mark=notes.mark(remark.text) if remark is not None and remark.measure == measure else "",
                        key=key,
                    )
                )
            lines.append(Row(Cell(name), tuple(cells), strong=True))
            name = ""
        for arm, tested in row.tested.items():
            lines.append(Row(Cell(name), _cells(row, arm, tested, notes), strong=bool(name)))
            name = ""
    header = ("Model, sequences", "What", "Necrosis + recurrence", *(_sentence(n) for n in MEASURE_NAMES.values()))
    return Table("Test figures with 95 % intervals", header, tuple(lines), notes.pairs())


def _cells(row: TableRow, arm: Arm, tested: CellFigures | None, notes: Notes) -> tuple[Cell, ...]:
    if tested is None:
        return (words(ARM_NAMES[arm]), Cell("no result", span=1 + len(MEASURES)))
    recurrence, necrosis = tested.num_patients
    seeds = f", mean of {tested.num_seeds} seeds" if tested.num_seeds > 1 else ""
    figures = (
        estimate_cell(tested.figures[measure], notes, key=f"{arm}.{row.model}.{row.sequences}.{measure}")
        for measure in MEASURES
    )
    return (words(ARM_NAMES[arm] + seeds), Cell(f"{necrosis} + {recurrence}"), *figures)


def draw_aucs(rows: Sequence[TableRow], sequences: SequenceSet, arms: Sequence[Arm]) -> Markup:
    """The AUCs of the models on a set of sequences: published, at one hospital, at five."""
    kinds: list[str] = [PUBLISHED, *arms]
    said = []
    with matplotlib.rc_context(style()):
        figure = new_figure(430, 66 + 22 * len(kinds) * len(rows))
        axes = figure.add_subplot(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.45, -0.55))
        axes.grid(True, axis="x")
        axes.axvline(0.5, color=SOFT, lw=1, ls=(0, (4, 3)))
        for place, row in enumerate(rows):
            if place:
                axes.axhline(place - 0.5, color=GRID, lw=1)
            for kind, estimate in _aucs(row, arms).items():
                height = place + 0.24 * (kinds.index(kind) - (len(kinds) - 1) / 2)
                _draw_estimate(axes, height, estimate, kind)
                said.append(f"{MODEL_NAMES[row.model]}, {_KIND_NAMES[kind]}: {with_interval(estimate)}")
        axes.set_yticks(range(len(rows)), [MODEL_NAMES[row.model] for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_title(f"AUC on {SEQUENCE_NAMES[sequences]}", loc="left", fontsize=12, fontweight="bold")
        return svg_of(
            figure,
            key=f"figure-auc-{sequences}",
            title=f"AUC of every model on {SEQUENCE_NAMES[sequences]}, published and on phantoms",
            description=f"{'; '.join(said)}.",
        )


_KIND_NAMES: Mapping[str, str] = {PUBLISHED: PUBLISHED, "one": ARM_NAMES["one"], "five": ARM_NAMES["five"]}


def _aucs(row: TableRow, arms: Sequence[Arm]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    if row.published is not None:
        found[PUBLISHED] = row.published.auc
    for arm in arms:
        tested = row.tested.get(arm)
        if tested is not None:
            found[arm] = tested.figures["auc"]
    return found


def _draw_estimate(axes: matplotlib.axes.Axes, height: float, estimate: Estimate, kind: str) -> None:
    color = _COLORS[kind]
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [height, height], color=color, lw=1.7, solid_capstyle="butt")
    if estimate.value is not None:
        axes.plot([estimate.value], [height], _MARKERS[kind], color=color, mec="white", mew=0.8, ms=7, zorder=4)
    axes.text(
        1.02,
        height,
        with_interval(estimate),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=9,
        color=color if estimate.value is not None else SOFT,
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
