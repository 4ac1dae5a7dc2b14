"""What a person sees of a run while it goes on and when it is done: bars and tables on a terminal, lines in a log."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from server.run_folder import RunFolder

Figure = Mapping[str, Any]


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator["Bar"]:
    """A bar on a terminal; elsewhere a line at the begin and at the end."""
    if not console.is_terminal:
        console.print(f"{what}: {total}")
        yield Bar(None, 0)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress, progress.add_task(what, total=total))


class Bar:
    """A bar that can be advanced, or nothing."""

    def __init__(self, progress: Progress | None, task: Any) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int = 1) -> None:
        """Count on."""
        if self._progress is not None:
            self._progress.advance(self._task, count)


class RunWatcher:
    """Follows a run's folder and shows every round once it is done; on a terminal also who is still awaited.

    Args:
        console: Where to.
        folder: The run.
    """

    def __init__(self, console: Console, folder: RunFolder) -> None:
        self._console = console
        self._folder = folder
        self._num_shown = _num_finished_rounds(folder)
        self._status = console.status("starting") if console.is_terminal else None

    def __enter__(self) -> "RunWatcher":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.look()
        if self._status is not None:
            self._status.stop()

    def look(self) -> None:
        """Show what is new."""
        lines = self._lines()
        for line in lines[self._num_shown :]:
            self._console.print(round_line(json.loads(line)), highlight=False)
        self._num_shown = len(lines)
        if self._status is not None:
            self._status.update(Text(status_line(self._folder)))

    def _lines(self) -> list[str]:
        try:
            return self._folder.rounds.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []


def _num_finished_rounds(folder: RunFolder) -> int:
    """Rounds that are committed; a line of one that is not will be written again."""
    try:
        return int(json.loads(folder.progress.read_text(encoding="utf-8"))["round"])
    except FileNotFoundError:
        return 0


def status_line(folder: RunFolder) -> str:
    """What the run is doing now."""
    try:
        status = json.loads(folder.status.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "starting"
    waiting = [site for site in status["asked"] if site not in status["answered"]]
    phase = f"round {status['round']} of {status['num_rounds']}" if status["phase"] == "round" else status["phase"]
    return f"{phase}: {len(status['answered'])} of {len(status['asked'])} sites" + (
        f", waiting for {', '.join(waiting)}" if waiting else ""
    )


def round_line(record: Mapping[str, Any]) -> str:
    """One line on one round."""
    auc, validation = record["validation"]["auc"], record["validation"]
    if auc is None:
        figure = f"no pooled figure ({validation['not_pooled']})"
    else:
        kind = "AUC within sites" if validation.get("kind") == "within_site" else "AUC"
        figure = f"{kind} {interval(auc)}, loss {validation['loss']:.3f}"
    accepted = [name for name, site in record["sites"].items() if site["status"] == "accepted"]
    line = (
        f"round {record['round']:>3}  {len(accepted)} of {len(record['sites'])} sites  "
        f"model before it on validation: {figure}  {record['seconds']:.1f} s"
    )
    missing = [
        f"\n           {name} {site['status']}: {site['reason']}"
        for name, site in sorted(record["sites"].items())
        if site["status"] != "accepted"
    ]
    return line + "".join(missing)


def interval(figure: Figure) -> str:
    """A figure with its interval, or why it has none."""
    if figure["value"] is None:
        return "not estimable"
    if figure["low"] is None:
        return f"{figure['value']:.3f} (no interval)"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def result_table(record: Mapping[str, Any]) -> Table | str:
    """Test figures by site and pooled."""
    test = record["figures"]["test"]
    if test["figures"] is None:
        return f"No pooled test figures: {test['not_pooled']}."
    figures = test["figures"]
    share = f"{100 * figures['confidence']:g} %"
    own_models = "rounds" in record["selection"]
    which = "every site's own model" if own_models else f"model after round {record['selection']['best']['round']}"
    table = Table(title=f"Test patients, {which}, {share} intervals")
    for heading in ("site", "necrosis + recurrence", "AUC", "sensitivity", "specificity"):
        table.add_column(heading, justify="left" if heading == "site" else "right", no_wrap=True)
    for name, row in figures["per_site"].items():
        table.add_row(*_cells(name, row))
    for name, reason in test["missing"].items():
        table.add_row(name, reason, "", "", "")
    table.add_section()
    last = figures["pooled"]
    if own_models:  # whose scores have no common scale
        last = {**last, "auc": figures["within_site_auc"]}
    table.add_row(*_cells("all, AUC within sites" if own_models else "pooled", last), style="bold")
    return table


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    at = row["at_threshold"]
    shares = ("no threshold",) * 2 if at is None else (interval(at["sensitivity"]), interval(at["specificity"]))
    return (name, f"{row['num_necrosis']} + {row['num_recurrence']}", interval(row["auc"]["estimate"]), *shares)
