"""A comparison of models as one self-contained page: figures of each, paired differences, what every site gained."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
from markupsafe import Markup

from common.metrics.estimate import Estimate
from server.record import RESEARCH_USE_ONLY
from server.report.drawing import ACCENT, GRID, INK, SOFT, new_figure, style, svg_of
from server.report.environment import page_environment
from server.report.table import Cell, Notes, Row, Table, estimate_cell, words
from server.report.wording import percent_name, shortened, with_interval

_NAME_LENGTH = 40


@dataclass(frozen=True)
class ArmRow:
    """One model, or the mean over repeated runs of one method.

    Attributes:
        name: Of the run or the method.
        auc: Pooled test AUC.
        within_site_auc: AUC over the pairs inside a site.
        sensitivity: At its own frozen threshold; None where it has none.
        specificity: Likewise.
        spread: Standard deviation of the pooled AUC between repeated runs; None for a single one.
        remark: What has to be known to read it; becomes a note.
    """

    name: str
    auc: Estimate | None
    within_site_auc: Estimate | None
    sensitivity: Estimate | None
    specificity: Estimate | None
    spread: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class DifferenceRow:
    """Paired differences of AUC, first minus second.

    Attributes:
        first: Name of one model.
        second: Name of the other.
        pooled: Over all pairs of patients; None where it would compare scores without a common scale.
        within_site: Over the pairs inside a site.
    """

    first: str
    second: str
    pooled: Estimate | None
    within_site: Estimate | None


@dataclass(frozen=True)
class GainRow:
    """Paired difference of AUC at one site, first minus second.

    Attributes:
        site: The hospital.
        first: Name of one model.
        second: Name of the other.
        first_auc: AUC of the first on this hospital's test patients.
        second_auc: Likewise of the second.
        gain: First minus second.
        num_recurrence: Test patients with recurrence.
        num_necrosis: Test patients with necrosis.
    """

    site: str
    first: str
    second: str
    first_auc: float | None
    second_auc: float | None
    gain: Estimate
    num_recurrence: int
    num_necrosis: int


@dataclass(frozen=True)
class ComparisonContents:
    """What a comparison found.

    Attributes:
        title: Its name.
        confidence: Coverage of all intervals.
        arms: Figures of each model.
        differences: Paired differences.
        gains: By site.
        remarks: Sentences that have to be read with the figures, such as what was not fair.
        tables: Further tables.
    """

    title: str
    confidence: float
    arms: Sequence[ArmRow]
    differences: Sequence[DifferenceRow]
    gains: Sequence[GainRow]
    remarks: Sequence[str] = ()
    tables: Sequence[Table] = field(default=())


def render_comparison(contents: ComparisonContents) -> str:
    """The page as HTML. Every text is escaped; only figures drawn here are markup."""
    environment = page_environment()
    within = [
        (f"{row.first} − {row.second}", row.within_site) for row in contents.differences if row.within_site is not None
    ]
    pooled = [(f"{row.first} − {row.second}", row.pooled) for row in contents.differences if row.pooled is not None]
    figures = [
        draw_differences(lines, key=key, title=title)
        for lines, key, title in (
            (within, "figure-within", "Difference of the within-site AUC"),
            (pooled, "figure-pooled", "Difference of the pooled AUC"),
        )
        if lines
    ]
    gain_figures = [
        draw_differences(
            [(row.site, row.gain) for row in contents.gains if (row.first, row.second) == pair],
            key=f"figure-gain-{number}",
            title=f"{pair[0]} − {pair[1]}",
        )
        for number, pair in enumerate(dict.fromkeys((row.first, row.second) for row in contents.gains))
    ]
    return environment.get_template("comparison.html.j2").render(
        title=contents.title,
        notice=RESEARCH_USE_ONLY,
        remarks=contents.remarks,
        arms=arm_table(contents),
        differences=difference_table(contents),
        gains=gain_table(contents),
        figures=figures,
        gain_figures=gain_figures,
        tables=contents.tables,
    )


def arm_table(contents: ComparisonContents) -> Table:
    """The figures of each model."""
    notes, rows = Notes(), []
    for arm in contents.arms:
        cells = [
            estimate_cell(estimate, notes, key=f"{arm.name}.{key}")
            for key, estimate in (
                ("auc", arm.auc),
                ("within_site_auc", arm.within_site_auc),
                ("sensitivity", arm.sensitivity),
                ("specificity", arm.specificity),
            )
        ]
        spread = Cell("–" if arm.spread is None else f"{arm.spread:.3f}")
        rows.append(Row(Cell(arm.name, mark=notes.mark(arm.remark)), (*cells[:2], spread, *cells[2:])))
    return Table(
        f"Test figures with {percent_name(contents.confidence)} intervals",
        ("Model", "Pooled AUC", "Within-site AUC", "SD of AUC over seeds", "Sensitivity", "Specificity"),
        tuple(rows),
        notes.pairs(),
    )


def difference_table(contents: ComparisonContents) -> Table | None:
    """Paired differences; None where there are none."""
    notes = Notes()
    rows = [
        Row(
            Cell(f"{row.first} − {row.second}"),
            (
                estimate_cell(row.within_site, notes, key=f"{row.first}-{row.second}.within_site"),
                estimate_cell(row.pooled, notes, key=f"{row.first}-{row.second}.pooled"),
            ),
        )
        for row in contents.differences
    ]
    if not rows:
        return None
    caption = f"Paired differences of AUC with {percent_name(contents.confidence)} intervals"
    return Table(caption, ("Difference", "Within sites", "Pooled"), tuple(rows), notes.pairs())


def gain_table(contents: ComparisonContents) -> Table | None:
    """What every site gained; None where nothing is known by site."""
    notes = Notes()
    rows = [
        Row(
            Cell(row.site),
            (
                words(f"{row.first} − {row.second}"),
                Cell(str(row.num_recurrence)),
                Cell(str(row.num_necrosis)),
                Cell("–" if row.first_auc is None else f"{row.first_auc:.3f}"),
                Cell("–" if row.second_auc is None else f"{row.second_auc:.3f}"),
                estimate_cell(row.gain, notes, key=f"gain.{row.site}.{row.first}-{row.second}"),
            ),
        )
        for row in contents.gains
    ]
    if not rows:
        return None
    return Table(
        f"AUC at each hospital and what it gained, with {percent_name(contents.confidence)} intervals",
        ("Hospital", "Models", "Recurrence", "Necrosis", "AUC of the first", "AUC of the second", "Gain"),
        tuple(rows),
        notes.pairs(),
    )


def draw_differences(lines: Sequence[tuple[str, Estimate]], *, key: str, title: str) -> Markup:
    """A forest plot of differences about 0.

    Args:
        lines: Name and difference.
        key: Of the figure within the page.
        title: What the differences are of.
    """
    ends = [abs(end) for _, each in lines for end in (each.value, each.low, each.high) if end is not None]
    limit = 1.1 * max([0.05, *ends])
    with matplotlib.rc_context(style()):
        figure = new_figure(560, 62 + 27 * len(lines))
        axes = figure.add_subplot(xlim=(-limit, limit), ylim=(len(lines) - 0.4, -0.6))
        axes.grid(True, axis="x")
        axes.axvline(0.0, color=SOFT, lw=1.2)
        for place, (_, estimate) in enumerate(lines):
            axes.axhline(place + 0.5, color=GRID, lw=0.5)
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [place, place], color=INK, lw=1.7, solid_capstyle="butt")
            if estimate.value is not None:
                axes.plot([estimate.value], [place], "s", color=ACCENT, mec="white", mew=0.8, ms=7, zorder=4)
            axes.text(
                1.02, place, with_interval(estimate), transform=axes.get_yaxis_transform(), va="center", fontsize=9.5
            )
        axes.set_yticks(range(len(lines)), [shortened(name, _NAME_LENGTH) for name, _ in lines])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel("second is better        difference of AUC        first is better", fontsize=9.5)
        said = "; ".join(f"{name}: {with_interval(estimate)}" for name, estimate in lines)
        return svg_of(figure, key=key, title=title, description=f"{said}.")
