"""What the sites showed of their cohorts, as lines for a terminal and as one self-contained page with plots."""

from collections.abc import Sequence
from typing import Literal

import matplotlib
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from server.report.drawing import INK, LINE_COLORS, LINE_STYLES, NECROSIS, RECURRENCE, new_figure, style, svg_of
from server.report.environment import page_environment
from server.report.table import Cell, Row, Table
from server.report.wording import SEQUENCE_WORDS, count, moment
from server.run_folder import RunFolder
from server.statistics_note import statistics_file

HIDDEN_SIGN, NOBODY_SIGN = "hidden", "–"
CLASS_COLORS = {"recurrence": RECURRENCE, "necrosis": NECROSIS}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RowShown(_Part):
    """A row of a table.

    Attributes:
        pooled: Every cell added up over the sites that show it.
        num_sites: How many they are.
        per_site: The cells of each site; None where it hides one.
    """

    name: str
    pooled: list[int]
    num_sites: list[int]
    per_site: dict[str, list[int | None]]


class TableShown(_Part):
    """A table; see `common.cohort_statistics.TableLayout`."""

    name: str
    caption: str
    unit: Literal["patients", "voxels"]
    columns: list[str]
    rows: list[RowShown]


class PairShown(_Part):
    """Two sites, and how many of the patients of each the other has too."""

    sites: tuple[str, str]
    patients: tuple[int, int]


class DuplicatesShown(_Part):
    """Which sites were compared, and why the others were not."""

    sites: list[str] = []
    missing: dict[str, str] = {}
    pairs: list[PairShown] = []


class StatisticsShown(_Part):
    """`statistics.json`.

    Attributes:
        sites: Sites that show their statistics.
        missing: Why each other expected site does not.
    """

    schema_number: Literal[1] = Field(alias="schema")
    notice: str
    run: str
    study: str
    study_digest: str
    finished_at: str
    sites: list[str]
    missing: dict[str, str]
    tables: list[TableShown]
    duplicates: DuplicatesShown = DuplicatesShown()


def read_statistics(folder: RunFolder) -> StatisticsShown:
    """What a run of statistics found.

    Raises:
        ConfigError: If it has not ended, is no such run, or the file was damaged.
    """
    path = statistics_file(folder)
    try:
        return StatisticsShown.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: is not there, expected the folder of a run of statistics that has ended; "
            f"`gliorn-server status {folder.name}` says how far it is"
        ) from None
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: unreadable ({type(error).__name__}); begin the run of statistics afresh") from None


def statistics_lines(shown: StatisticsShown) -> list[str]:
    """The tables for a terminal; intensities are on the page alone."""
    lines = [f"{shown.run}: {count(len(shown.sites), 'site')} of {len(shown.sites) + len(shown.missing)}"]
    lines += [f"  {site}: {why}" for site, why in shown.missing.items()]
    for table in shown.tables:
        if table.unit == "voxels" or not shown.sites:
            continue
        header = [table.caption, *(_words(row.name) for row in table.rows)]
        body = [
            [column, *(_pooled_text(row, place) for row in table.rows)] for place, column in enumerate(table.columns)
        ]
        widths = [max(len(line[place]) for line in (header, *body)) for place in range(len(header))]
        lines.append("")
        for line in (header, *body):
            first, *others = (text.ljust(width) for text, width in zip(line, widths, strict=True))
            lines.append("  ".join([first, *(text.strip().rjust(len(text)) for text in others)]).rstrip())
    if shown.sites:
        lines += ["", f"n/s: n over the s sites that show the cell; {NOBODY_SIGN}: no site shows it."]
    return [*lines, "", *duplicates_lines(shown.duplicates), shown.notice]


def duplicates_lines(duplicates: DuplicatesShown) -> list[str]:
    """How many patients sites have in common."""
    if len(duplicates.sites) < 2:
        return ["Patients in common: not compared; two sites at least have to agree (disclosure.duplicates)."]
    found = [pair for pair in duplicates.pairs if any(pair.patients)]
    lines = [f"Patients in common, of {count(len(duplicates.pairs), 'pair')} of sites:"]
    lines += [f"  {pair_words(pair)}" for pair in found] or ["  none"]
    left = [site for site in duplicates.missing if site not in duplicates.sites]
    return [*lines, *([f"  not compared: {', '.join(left)}"] if left else [])]


def pair_words(pair: PairShown) -> str:
    """A pair of sites that has patients in common."""
    first, second = pair.patients
    whose = f"{first}" if first == second else f"{first} of the first, {second} of the second"
    return f"{pair.sites[0]} and {pair.sites[1]}: {whose}"


def render_statistics(shown: StatisticsShown) -> str:
    """The page as HTML. Every text is escaped; only figures drawn here are markup."""
    environment = page_environment()
    parts = [
        {
            "name": table.name,
            "caption": table.caption,
            "figures": _figures(table),
            "pooled": None if table.unit == "voxels" else pooled_table(table),
            "per_site": None if table.unit == "voxels" else site_table(table),
        }
        for table in shown.tables
        if shown.sites
    ]
    return environment.get_template("statistics.html.j2").render(
        shown=shown, ended=moment(shown.finished_at), parts=parts, in_common=duplicates_lines(shown.duplicates)
    )


def pooled_table(table: TableShown) -> Table:
    """Every cell over all sites, with the number of sites in it."""
    rows = tuple(
        Row(
            Cell(column),
            tuple(
                Cell(NOBODY_SIGN)
                if row.num_sites[place] == 0
                else Cell(f"{row.pooled[place]:,}", counts=count(row.num_sites[place], "site"))
                for row in table.rows
            ),
        )
        for place, column in enumerate(table.columns)
    )
    return Table(f"{table.caption}, all sites that show a cell", ("", *(_words(row.name) for row in table.rows)), rows)


def site_table(table: TableShown) -> Table:
    """Every cell of every site."""
    rows = tuple(
        Row(
            Cell(site if len(table.rows) == 1 else f"{site}, {_words(row.name)}"),
            tuple(Cell(HIDDEN_SIGN if cell is None else f"{cell:,}") for cell in cells),
        )
        for row in table.rows
        for site, cells in row.per_site.items()
    )
    return Table(f"{table.caption}, by site", ("", *table.columns), rows)


def _words(name: str) -> str:
    return SEQUENCE_WORDS.get(name, name)


def _pooled_text(row: RowShown, place: int) -> str:
    return NOBODY_SIGN if row.num_sites[place] == 0 else f"{row.pooled[place]}/{row.num_sites[place]}"


def _figures(table: TableShown) -> list[Markup]:
    if table.unit == "voxels":
        return [_curves(table, row, key=f"figure-{table.name}-{place}") for place, row in enumerate(table.rows)]
    return [_bars(table)]


def _bars(table: TableShown) -> Markup:
    """Patients of each bin, the rows beside each other; an empty place where no site shows the cell."""
    others = iter(LINE_COLORS)
    colors = {row.name: CLASS_COLORS.get(row.name) or next(others) for row in table.rows}
    width = 0.8 / len(table.rows)
    with matplotlib.rc_context(style()):
        figure = new_figure(620, 250)
        axes = figure.add_subplot()
        axes.grid(True, axis="y")
        for place, row in enumerate(table.rows):
            at = [bin + width * (place - (len(table.rows) - 1) / 2) for bin in range(len(table.columns))]
            axes.bar(at, row.pooled, 0.92 * width, color=colors[row.name], label=_words(row.name))
            for x, number, num_sites in zip(at, row.pooled, row.num_sites, strict=True):
                axes.text(
                    *(x, number, NOBODY_SIGN if num_sites == 0 else f"{number}"),
                    ha="center",
                    va="bottom",
                    fontsize=8,
                )
        axes.set_xticks(range(len(table.columns)), [_two_lines(column) for column in table.columns], fontsize=8.5)
        axes.set_ylabel("patients shown")
        axes.margins(y=0.12)
        axes.set_title(table.caption, loc="left", fontsize=12, fontweight="bold")
        if len(table.rows) > 1:
            axes.legend(ncols=len(table.rows), loc="upper right", bbox_to_anchor=(1, 1.17))
        said = "; ".join(
            f"{_words(row.name)}: "
            + ", ".join(f"{column} {_pooled_text(row, place)}" for place, column in enumerate(table.columns))
            for row in table.rows
        )
        return svg_of(figure, key=f"figure-{table.name}", title=table.caption, description=f"{said}.")


def _two_lines(text: str) -> str:
    """A name of a bin that fits below it."""
    words = text.split(" ")
    middle = (len(words) + 1) // 2
    return text if len(text) <= 9 else f"{' '.join(words[:middle])}\n{' '.join(words[middle:])}"


def _curves(table: TableShown, row: RowShown, *, key: str) -> Markup:
    """Share of the voxels that a site shows by bin, a line for each site; a gap where a bin is hidden."""
    title = f"{table.caption}: {_words(row.name)}"
    lows = [float(column.split(" to ")[0]) for column in table.columns]
    step = lows[1] - lows[0]
    edges = [*lows, lows[-1] + step]
    withheld = []
    with matplotlib.rc_context(style()):
        figure = new_figure(620, 270)
        axes = figure.add_subplot(xlim=(edges[0], edges[-1]))
        axes.grid(True)
        for place, (site, cells) in enumerate(row.per_site.items()):
            total = sum(cell for cell in cells if cell is not None)
            if total == 0:
                withheld.append(site)
                continue
            shares = [float("nan") if cell is None else 100 * cell / total for cell in cells]
            color, dashes = LINE_COLORS[place % len(LINE_COLORS)], LINE_STYLES[place % len(LINE_STYLES)]
            axes.stairs(shares, edges, baseline=None, color=color, ls=dashes, lw=1.5, label=site)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("z-score" + (f"; not shown: {', '.join(withheld)}" if withheld else ""))
        axes.set_ylabel("% of voxels shown")
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        if len(withheld) < len(row.per_site):
            axes.legend(loc="upper right")
        else:
            axes.text(0.5, 0.5, "no site shows these", transform=axes.transAxes, ha="center", color=INK)
        said = _shown_text(row) + (f"; not shown: {', '.join(withheld)}" if withheld else "")
        return svg_of(figure, key=key, title=title, description=f"{said}.")


def _shown_text(row: RowShown) -> str:
    hidden: Sequence[str] = [f"{site} hides {cells.count(None)} bins" for site, cells in row.per_site.items()]
    return "; ".join(hidden)
