"""Figures of the test: ROC curve, calibration, and each site beside the pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup

from common.metrics.calibration import CalibrationTenth
from common.metrics.estimate import Estimate
from common.metrics.heterogeneity import BetweenSites
from common.metrics.pooled import Figures
from server.report.drawing import ACCENT, BAND, GRID, INK, NECROSIS, SOFT, new_figure, style, svg_of
from server.report.wording import NOT_ESTIMABLE, interval_text, percent_name, shortened, three, with_interval

SQUARE = (400, 400)
_NAME_LENGTH = 24
_NEW_HOSPITAL = "A new hospital"


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot: a site, or a summary over sites."""

    name: str
    estimate: Estimate
    num_patients: int


def draw_roc(roc: Sequence[tuple[float, float, object]], pooled: Figures, *, confidence: float) -> Markup:
    """The pooled ROC curve with the operating point and its two intervals.

    Args:
        roc: False positive rate, true positive rate, threshold; not empty.
        pooled: The pooled row.
        confidence: Coverage of the intervals.
    """
    auc, point = pooled.auc.estimate, pooled.at_threshold
    with matplotlib.rc_context(style()):
        figure = new_figure(*SQUARE)
        axes = figure.add_subplot(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            aspect="equal",
            xlabel="1 − specificity",
            ylabel="Sensitivity",
        )
        axes.grid(True)
        axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls=(0, (4, 3)), label="Chance (AUC 0.500)")
        axes.fill_between([x for x, _, _ in roc], [y for _, y, _ in roc], color=BAND, alpha=0.25, lw=0)
        axes.plot(
            [x for x, _, _ in roc],
            [y for _, y, _ in roc],
            color=ACCENT,
            lw=2,
            label=f"Pooled (AUC {with_interval(auc)})",
        )
        description = f"Pooled ROC curve on the test patients, AUC {with_interval(auc)}."
        if point is not None and point.sensitivity.value is not None and point.specificity.value is not None:
            sensitivity, specificity = point.sensitivity, point.specificity
            x, y = 1 - point.specificity.value, point.sensitivity.value
            if specificity.low is not None and specificity.high is not None:
                axes.plot([1 - specificity.high, 1 - specificity.low], [y, y], color=NECROSIS, lw=2)
            if sensitivity.low is not None and sensitivity.high is not None:
                axes.plot([x, x], [sensitivity.low, sensitivity.high], color=NECROSIS, lw=2)
            axes.plot(
                [x],
                [y],
                "o",
                color=NECROSIS,
                mec="white",
                mew=1.2,
                ms=9,
                zorder=5,
                label=f"Operating point, {percent_name(confidence)} intervals",
            )
            description += (
                f" Operating point at sensitivity {with_interval(sensitivity)}, "
                f"specificity {with_interval(specificity)}."
            )
        axes.legend(loc="lower right")
        return svg_of(figure, key="figure-roc", title="ROC curve of the pooled test patients", description=description)


def draw_calibration(tenths: Sequence[CalibrationTenth], *, confidence: float) -> Markup:
    """Observed share of necrosis against mean predicted probability in each tenth, with the patients in it."""
    held = [(tenth.mean_probability, tenth) for tenth in tenths if tenth.mean_probability is not None]
    with matplotlib.rc_context(style()):
        figure = new_figure(400, 440)
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="Observed share of necrosis")
        axes.grid(True)
        axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls=(0, (4, 3)), label="Perfect calibration")
        for x, tenth in held:
            if tenth.observed.low is not None and tenth.observed.high is not None:
                axes.plot([x, x], [tenth.observed.low, tenth.observed.high], color=ACCENT, lw=1.6, alpha=0.75)
        axes.plot(
            [x for x, _ in held],
            [tenth.observed.value for _, tenth in held],
            "o",
            color=ACCENT,
            mec="white",
            ms=8,
            label=f"Patients in a tenth, {percent_name(confidence)} intervals",
        )
        axes.legend(loc="upper left")
        counts = [tenth.observed.num for tenth in tenths]
        middles = [tenth.low + 0.05 for tenth in tenths]
        below.bar(middles, counts, width=0.092, color=BAND)
        for x, number in zip(middles, counts, strict=True):
            below.text(x, number, str(number), ha="center", va="bottom", fontsize=9.5)
        below.set(xlabel="Predicted probability of necrosis", ylabel="Patients", ylim=(0, 1.35 * max([1, *counts])))
        below.set_yticks([])
        below.spines["left"].set_visible(False)
        figure.align_ylabels()
        said = "; ".join(
            f"{tenth.observed.num} patients predicted {three(x)} on average: observed {with_interval(tenth.observed)}"
            for x, tenth in held
        )
        return svg_of(
            figure, key="figure-calibration", title="Calibration of the pooled test patients", description=f"{said}."
        )


def draw_forest(
    rows: Sequence[ForestRow],
    pooled: ForestRow,
    between: BetweenSites | None,
    *,
    measure: str,
    chance: float | None,
) -> Markup:
    """One figure of every site, of the pool, and what a new hospital should expect.

    Args:
        rows: The sites.
        pooled: All patients together.
        between: Mean over the sites and prediction interval; None leaves the two out.
        measure: The figure's name, such as "Sensitivity".
        chance: Where a model without skill would stand; None draws no line.
    """
    lines = [*rows, pooled]
    if between is not None:
        lines.append(ForestRow("Mean over sites", between.mean, 0))
        lines.append(ForestRow(_NEW_HOSPITAL, between.prediction, 0))
    with matplotlib.rc_context(style()):
        figure = new_figure(430, 58 + 27 * len(lines))
        axes = figure.add_subplot(xlim=(-0.03, 1.03), ylim=(len(lines) - 0.4, -0.6))
        axes.grid(True, axis="x")
        axes.axhline(len(rows) - 0.5, color=GRID, lw=1)
        if chance is not None:
            axes.axvline(chance, color=SOFT, lw=1, ls=(0, (4, 3)))
        if pooled.estimate.value is not None:
            axes.axvline(pooled.estimate.value, color=ACCENT, lw=0.9, alpha=0.5)
        largest = max([1, *(row.num_patients for row in rows)])
        for place, line in enumerate(lines):
            kind = "site" if place < len(rows) else ("pooled", "mean", "prediction")[place - len(rows)]
            _forest_line(axes, place, line, kind=kind, share=line.num_patients / largest)
        axes.set_yticks(range(len(lines)), [shortened(line.name, _NAME_LENGTH) for line in lines])
        for label in axes.get_yticklabels()[len(rows) :]:
            label.set_fontweight("bold" if label.get_text() == pooled.name else "normal")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_title(measure, loc="left", fontsize=12, fontweight="bold")
        said = "; ".join(f"{line.name}: {_forest_value(line)}" for line in lines)
        key = "figure-forest-" + measure.lower()
        return svg_of(figure, key=key, title=f"{measure} of every site and of the pool", description=f"{said}.")


def _forest_line(axes: matplotlib.axes.Axes, place: int, line: ForestRow, *, kind: str, share: float) -> None:
    estimate = line.estimate
    color = {"site": INK, "pooled": ACCENT, "mean": SOFT, "prediction": SOFT}[kind]
    if estimate.low is not None and estimate.high is not None:
        dashes = (0, (2, 1.5)) if kind == "prediction" else "-"
        axes.plot([estimate.low, estimate.high], [place, place], color=color, lw=1.7, ls=dashes, solid_capstyle="butt")
        for end in (estimate.low, estimate.high):
            axes.plot([end, end], [place - 0.13, place + 0.13], color=color, lw=1.4)
    if estimate.value is not None and kind != "prediction":
        marker = {"site": "s", "pooled": "D", "mean": "d"}[kind]
        size = 4.5 + 4 * share**0.5 if kind == "site" else 8.0
        axes.plot([estimate.value], [place], marker, color=color, mec="white", mew=0.8, ms=size, zorder=4)
    axes.text(
        1.02,
        place,
        _forest_value(line),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=9.5,
        color=INK if estimate.value is not None else SOFT,
    )


def _forest_value(line: ForestRow) -> str:
    return interval_text(line.estimate) or NOT_ESTIMABLE if line.name == _NEW_HOSPITAL else with_interval(line.estimate)


def forest_rows(per_site: Mapping[str, Figures], measure: str) -> list[ForestRow]:
    """A line for each site: "auc", "sensitivity" or "specificity"."""
    rows = []
    for name, figures in per_site.items():
        estimate = estimate_of(figures, measure)
        if estimate is not None:
            rows.append(ForestRow(name, estimate, figures.num_recurrence + figures.num_necrosis))
    return rows


def estimate_of(figures: Figures, measure: str) -> Estimate | None:
    """A row's figure by name; None for a figure at a threshold where there is none."""
    if measure == "auc":
        return figures.auc.estimate
    if figures.at_threshold is None:
        return None
    estimate: Estimate = getattr(figures.at_threshold, measure)
    return estimate
