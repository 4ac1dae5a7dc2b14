"""Which runs show statistics of the cohorts and train nothing: a note in the run's folder says so."""

from pathlib import Path

from server.run_folder import RunFolder, write_json


def note_statistics(folder: RunFolder) -> None:
    """Make a run that has not begun one of statistics."""
    write_json(_note(folder), True)


def is_statistics_run(folder: RunFolder) -> bool:
    """Whether a run shows statistics and trains nothing."""
    return _note(folder).is_file()


def statistics_file(folder: RunFolder) -> Path:
    """Where a run of statistics keeps what the sites showed."""
    return folder.path / "statistics.json"


def statistics_page(folder: RunFolder) -> Path:
    """Where the same lies as a page."""
    return folder.path / "statistics.html"


def _note(folder: RunFolder) -> Path:
    return folder.path / "statistics_run.json"
