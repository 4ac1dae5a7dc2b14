"""Figures of the training: pooled validation AUC and loss, and each site's training loss, round by round."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
from markupsafe import Markup

from server.report.drawing import (
    ACCENT,
    BAND,
    LINE_COLORS,
    LINE_STYLES,
    NECROSIS,
    SOFT,
    new_figure,
    style,
    svg_of,
)
from server.report.reading import Record, RoundLine, ValidationSummary
from server.report.wording import percent_name, shortened, three

WIDTH, HEIGHT = 430, 300


@dataclass(frozen=True)
class ValidatedState:
    """The pooled validation of the state after a round; round 0 is the initial state."""

    round: int
    validation: ValidationSummary

    @property
    def num_patients(self) -> int:
        """Patients behind the figures."""
        return sum(self.validation.num_patients or (0, 0))


def validated_states(record: Record, rounds: Sequence[RoundLine]) -> list[ValidatedState]:
    """The validation of every state, the last one included where the run came so far."""
    states = [ValidatedState(line.evaluated_round, line.validation) for line in rounds]
    if record.selection is not None:
        states.append(ValidatedState(record.rounds_done, record.selection.last_validation))
    return states


def _what(states: Sequence[ValidatedState]) -> str:
    """What the validation AUC is of: where sites train alone, of pairs of patients of the same site."""
    within = any(state.validation.kind == "within_site" for state in states)
    return "Within-site validation" if within else "Pooled validation"


def draw_validation_auc(states: Sequence[ValidatedState], *, chosen: int | None, confidence: float) -> Markup:
    """Pooled validation AUC of the state after each round, with its interval; hollow where patients were missing."""
    most = max((state.num_patients for state in states), default=0)
    points = [
        (state, state.validation.auc, state.validation.auc.value)
        for state in states
        if state.validation.auc is not None and state.validation.auc.value is not None
    ]
    with matplotlib.rc_context(style()):
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(xlabel="State after round", ylabel=f"{_what(states)} AUC")
        axes.grid(True)
        lows = [0.5]
        for stretch in _stretches([state.round for state, auc, _ in points if auc.low is not None]):
            within = [auc for state, auc, _ in points if state.round in stretch]
            low = [auc.low if auc.low is not None else 0.0 for auc in within]
            high = [auc.high if auc.high is not None else 1.0 for auc in within]
            lows += low
            label = f"{percent_name(confidence)} interval"
            if len(stretch) == 1:
                axes.plot(stretch * 2, [low[0], high[0]], color=BAND, lw=4)
            else:
                axes.fill_between(stretch, low, high, color=BAND, alpha=0.45, lw=0, label=label)
        for stretch in _stretches([state.round for state, _, _ in points]):
            axes.plot(stretch, [value for state, _, value in points if state.round in stretch], color=ACCENT, lw=1.8)
        if len(points) <= 40:
            _dots(axes, [(state.round, value) for state, _, value in points if state.num_patients == most], full=True)
        _dots(axes, [(state.round, value) for state, _, value in points if state.num_patients < most], full=False)
        _mark_chosen(axes, chosen, {state.round: value for state, _, value in points})
        axes.axhline(0.5, color=SOFT, lw=1, ls=(0, (4, 3)))
        axes.set_ylim(max(-0.02, min([*lows, *(value for _, _, value in points)]) - 0.04), 1.02)
        _round_axis(axes, states)
        _legend_once(axes)
        return svg_of(
            figure,
            key="figure-validation-auc",
            title=f"{_what(states)} AUC over the rounds",
            description=_said("AUC", {state.round: value for state, _, value in points}, chosen),
        )


def draw_validation_loss(states: Sequence[ValidatedState], *, chosen: int | None) -> Markup:
    """Mean validation loss per patient of the state after each round."""
    points = {state.round: state.validation.loss for state in states if state.validation.loss is not None}
    with matplotlib.rc_context(style()):
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_subplot(xlabel="State after round", ylabel="Pooled validation loss (nats)")
        axes.grid(True)
        for stretch in _stretches(list(points)):
            axes.plot(
                stretch,
                [points[round] for round in stretch],
                color=ACCENT,
                lw=1.8,
                marker="o" if len(points) <= 40 else None,
                mec="white",
                ms=5,
            )
        _mark_chosen(axes, chosen, points)
        _round_axis(axes, states)
        _legend_once(axes)
        return svg_of(
            figure,
            key="figure-validation-loss",
            title="Pooled validation loss over the rounds",
            description=_said("Loss", points, chosen),
        )


def draw_training_loss(rounds: Sequence[RoundLine], *, chosen: int | None) -> Markup:
    """Each site's mean training loss in each round it was accepted in."""
    names = sorted({name for line in rounds for name in line.sites})
    losses = {
        name: {
            line.round: site.train_loss
            for line in rounds
            if (site := line.sites.get(name)) is not None and site.status == "accepted" and site.train_loss is not None
        }
        for name in names
    }
    with matplotlib.rc_context(style()):
        shown = [name for name in names if losses[name]]
        num_columns = 1 if max(map(len, shown), default=0) > 18 else 2
        figure = new_figure(WIDTH, HEIGHT + 16 * -(-len(shown) // num_columns))
        axes = figure.add_subplot(xlabel="Round", ylabel="Training loss at the site (nats)")
        axes.grid(True)
        if chosen:
            axes.axvline(chosen, color=NECROSIS, lw=1, ls=(0, (4, 3)))
        for place, name in enumerate(shown):
            color, dashes = LINE_COLORS[place % len(LINE_COLORS)], LINE_STYLES[place // len(LINE_COLORS) % 4]
            label = shortened(name, 44 if num_columns == 1 else 18)
            for number, stretch in enumerate(_stretches(list(losses[name]))):
                axes.plot(
                    stretch,
                    [losses[name][round] for round in stretch],
                    color=color,
                    ls=dashes,
                    lw=1.6 if len(shown) <= 6 else 1.0,
                    label=label if number == 0 else None,
                    marker="o" if len(stretch) == 1 else None,
                    ms=4,
                )
        axes.locator_params(axis="x", integer=True)
        if shown:
            figure.legend(loc="outside lower left", ncols=num_columns, handlelength=3)
        ends = "; ".join(f"{name} {_first_and_last(losses[name])}" for name in shown)
        return svg_of(
            figure,
            key="figure-training-loss",
            title="Training loss of every site over the rounds",
            description=f"Training loss from first to last round: {ends}.",
        )


def _first_and_last(losses: dict[int, float]) -> str:
    return f"{three(losses[min(losses)])} to {three(losses[max(losses)])}"


def _stretches(rounds: Sequence[int]) -> list[list[int]]:
    """Rounds cut where one is missing, so that no line bridges a gap."""
    stretches: list[list[int]] = [[rounds[0]]] if rounds else []
    for before, after in pairwise(rounds):
        if after == before + 1:
            stretches[-1].append(after)
        else:
            stretches.append([after])
    return stretches


def _dots(axes: matplotlib.axes.Axes, points: Sequence[tuple[int, float]], *, full: bool) -> None:
    if points:
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            "o",
            color=ACCENT,
            ms=5,
            mec="white" if full else ACCENT,
            mfc=ACCENT if full else "white",
            label=None if full else "patients of a site missing",
        )


def _mark_chosen(axes: matplotlib.axes.Axes, chosen: int | None, points: dict[int, float]) -> None:
    if chosen is None:
        return
    axes.axvline(chosen, color=NECROSIS, lw=1, ls=(0, (4, 3)))
    if chosen in points:
        axes.plot(
            [chosen],
            [points[chosen]],
            "D",
            color=NECROSIS,
            mec="white",
            ms=8,
            zorder=5,
            label=f"chosen: round {chosen}",
        )


def _round_axis(axes: matplotlib.axes.Axes, states: Sequence[ValidatedState]) -> None:
    axes.locator_params(axis="x", integer=True)
    if states:
        last = max(1, *(state.round for state in states))
        axes.set_xlim(-0.02 * last, 1.02 * last)


def _legend_once(axes: matplotlib.axes.Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    if by_label:
        axes.legend(by_label.values(), by_label.keys(), loc="best")


def _said(what: str, points: dict[int, float], chosen: int | None) -> str:
    if not points:
        return "No round has this figure."
    first, last = min(points), max(points)
    text = f"{what} {three(points[first])} in the state after round {first}, {three(points[last])} after round {last}"
    return f"{text}; chosen: round {chosen}, {three(points[chosen])}." if chosen in points else f"{text}."
