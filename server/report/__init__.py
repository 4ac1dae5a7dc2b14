"""`report.html`: the figures of a run as one self-contained page, for a screen, a phone and paper."""

from pathlib import Path

from server.report.environment import page_environment
from server.report.page import Page, page_of
from server.report.reading import read_record, read_round_lines
from server.run_folder import RunFolder, write_atomically

__all__ = ["render", "write_report"]


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` of a run that has ended, also of one that ended INVALID.

    Args:
        folder: The run, with `record.json` and `rounds.jsonl`.

    Returns:
        The path of the report.

    Raises:
        ConfigError: If the record or the rounds are absent, damaged or of another version.
    """
    record = read_record(folder)
    rounds = read_round_lines(folder, at_most=record.rounds_done)
    write_atomically(folder.report, render(page_of(record, rounds)).encode())
    return folder.report


def render(page: Page) -> str:
    """The page as HTML. Every text is escaped; only figures drawn here are markup."""
    environment = page_environment()
    return environment.get_template("report.html.j2").render(page=page)
