"""`gliorn-client prepare`: builds the cache before round 1 does, or looks whether it is still whole."""

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from client.config import read_site_config
from common.errors import ConfigError, DataError, list_of_faults
from common.study import Study, parse_study

PREPARE = """\
Prepares all exams of the site for a study and keeps every stage in the cache: registration, shading, crop. What is
there already is not done again, so a stopped command goes on where it was, and a changed setting costs only what
depends on it. Several processes may fill one cache. With --verify: reads every file of the site and of the cache to its
last byte instead, and names what is not as it was."""

_LINE_EVERY_S = 30.0
_RECENT = 20


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    prepare = commands.add_parser("prepare", help="prepare all exams now, not in round 1", description=PREPARE)
    prepare.add_argument("--site", type=Path, required=True, metavar="FILE", help="this hospital's site.yaml")
    prepare.add_argument("--study", type=Path, required=True, metavar="FILE", help="the federation's study.yaml")
    prepare.add_argument("--workers", type=int, default=1, metavar="N", help="exams worked on side by side (1)")
    prepare.add_argument("--verify", action="store_true", help="prepare nothing: compare all bytes with their digests")
    prepare.set_defaults(command=_prepare)


def _prepare(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: expected a whole number of at least 1")
    study = _read_study(arguments.study)
    if arguments.verify:
        return _verify(arguments, study)
    from client.acceleration.ahead import measure_ahead
    from client.prepare import prepare_site

    config = read_site_config(arguments.site)
    with shown_progress(sys.stderr.isatty()) as on_exam:
        prepared = prepare_site(config, study, workers=arguments.workers, on_exam=on_exam)
    choice = measure_ahead(config, study, num_exams=prepared.splits["train"].num_exams)
    total = sum(split.num_exams for split in prepared.splits.values())
    print(f"{total} exams prepared, {prepared.num_from_cache} of them were in the cache already")
    if prepared.stages_computed:
        counts = ", ".join(f"{stage} {count}" for stage, count in sorted(prepared.stages_computed.items()))
        print(f"computed now: {counts}")
    if choice.seconds:
        print(f"training will use {choice.plan.name}, {choice.speed_up:.2f} times as fast here as fp32")
    print(f"Next: gliorn-client check --site {arguments.site} --study {arguments.study}")
    return 0


def _verify(arguments: argparse.Namespace, study: Study) -> int:
    from client.verification import verify_site

    with shown_progress(sys.stderr.isatty()) as on_exam:
        found = verify_site(read_site_config(arguments.site), study, workers=arguments.workers, on_exam=on_exam)
    print(
        f"{found.num_exams} exams looked at; {found.num_files} of their files compared with their digest in the cache"
    )
    again = f"gliorn-client prepare --site {arguments.site} --study {arguments.study}"
    faults = list(found.faults) + [f"{name}: is not in the cache as it is now; prepare it" for name in found.unprepared]
    if faults:
        raise DataError(f"{list_of_faults(str(arguments.site), faults)}\nNext: mend these, then {again}")
    print("Everything is as it was prepared.")
    return 0


@contextmanager
def shown_progress(
    on_terminal: bool, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int], None]]:
    """How far it is and how long it will take: a bar on a terminal, a line now and then in a log.

    Args:
        on_terminal: Whether a person watches.
        clock: Seconds.
    """
    if not on_terminal:
        yield _Lines(clock).tell
        return
    columns = (
        TextColumn("exams"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("exams", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Lines:
    """A line every half minute and one at the end. The time left follows from the pace of the last exams."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told = clock()
        self._recent: deque[float] = deque([self._told], maxlen=_RECENT)

    def tell(self, done: int, total: int) -> None:
        now = self._clock()
        self._recent.append(now)
        if done < total and now - self._told < _LINE_EVERY_S:
            return
        self._told = now
        pace = (self._recent[-1] - self._recent[0]) / (len(self._recent) - 1)
        left = f", about {_in_words(pace * (total - done))} left" if done < total else ""
        print(f"{done} of {total} exams{left}", file=sys.stderr, flush=True)


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _read_study(path: Path) -> Study:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {path}: cannot be read ({error}); name a study.yaml in UTF-8") from None
    return parse_study(text, origin=str(path))
