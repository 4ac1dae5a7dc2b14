"""How long a site keeps what runs have left in its cache, and the deletion of the rest.

Prepared exams are not among it. A run's folder counts from the last time that the run wrote into it.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

DAY_S = 86_400.0
UNDER_WAY_S = 30 * DAY_S
"""A run that wrote within this time may be under way or paused, and nothing of it is deleted."""
MOST_KEPT = 8
"""Runs whose model parts are kept, beside those that may be under way. Each can take several times a model's size."""
KEPT_S = 180 * DAY_S
SCORES_S = 730 * DAY_S


def outdated(written: Mapping[Path, float], *, now: float, longest_s: float, most: int | None = None) -> list[Path]:
    """The folders that go: those written longest ago.

    Args:
        written: For each run's folder, when the run wrote into it last, in seconds of the epoch.
        now: Likewise.
        longest_s: Age beyond which a folder goes in any case; above `UNDER_WAY_S`.
        most: Folders that stay; older ones go unless they may be of a run under way. None: any number.
    """
    assert longest_s > UNDER_WAY_S
    newest_first = sorted(written, key=lambda folder: (-written[folder], folder.name))
    return [
        folder
        for place, folder in enumerate(newest_first)
        if (age := now - written[folder]) > longest_s or (most is not None and place >= most and age > UNDER_WAY_S)
    ]


def clean_up(cache: Path, *, now: float) -> None:
    """Delete what runs that are over have left in a site's cache, by the rules above.

    Args:
        cache: The site's cache folder.
        now: Seconds of the epoch.
    """
    for name, longest_s, most in (("kept", KEPT_S, MOST_KEPT), ("scores", SCORES_S, None)):
        written = {}
        for folder in (cache / name).glob("*"):
            try:
                if folder.is_dir() and not folder.is_symlink():
                    written[folder] = folder.stat().st_mtime
            except FileNotFoundError:  # another process of this site cleans up too
                continue
        gone = outdated(written, now=now, longest_s=longest_s, most=most)
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)  # what resists stays until the next time
        if gone:
            log.info("deleted what %d earlier runs had left in %s", len(gone), name)
