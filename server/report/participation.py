"""Who took part when: a grid of sites and rounds, told apart by a sign and not by colour alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from server.records import SiteStatus, ranges
from server.report.reading import Record, RoundLine
from server.report.wording import shortened

MAX_CELLS = 100
BLOCK = 25
NAME_LENGTH = 26

SIGNS: dict[SiteStatus, str] = {"accepted": "•", "refused": "×", "failed": "!", "absent": "–", "quarantined": "Q"}
MEANINGS: dict[SiteStatus, str] = {
    "accepted": "its update is part of the shared model",
    "refused": "its reply broke a rule and was left out",
    "failed": "it said so, or gave no reply",
    "absent": "it had not joined",
    "quarantined": "not asked, since it was refused before",
}


@dataclass(frozen=True)
class GridCell:
    """A site in a round, or in a stretch of rounds, where it shows what stands out."""

    status: SiteStatus
    sign: str
    rounds: str
    words: str


@dataclass(frozen=True)
class GridBlock:
    """Some rounds of the grid, narrow enough for a phone.

    Attributes:
        columns: Number of the last round of each column where it is written; else empty.
        rows: Each site, its name shortened, with its cells.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[GridCell, ...]], ...]


@dataclass(frozen=True)
class Grid:
    """The whole grid; `per_cell` rounds share a cell in a long run."""

    blocks: tuple[GridBlock, ...]
    per_cell: int
    legend: tuple[tuple[SiteStatus, str, str], ...]


@dataclass(frozen=True)
class Absence:
    """Why a site was missing, and in which rounds."""

    site: str
    rounds: str
    status: str
    reason: str


def participation_grid(record: Record, rounds: Sequence[RoundLine]) -> Grid:
    """The grid of a run."""
    sites = sorted({*record.training_sites, *(name for line in rounds for name in line.sites)})
    per_cell = max(1, -(-len(rounds) // MAX_CELLS))
    stretches = [rounds[start : start + per_cell] for start in range(0, len(rounds), per_cell)]
    blocks = []
    for start in range(0, len(stretches), BLOCK):
        part = stretches[start : start + BLOCK]
        numbers = tuple(_column_number(stretch, start + place, per_cell) for place, stretch in enumerate(part))
        rows = tuple((shortened(site, NAME_LENGTH), tuple(_cell(site, stretch) for stretch in part)) for site in sites)
        blocks.append(GridBlock(numbers, rows))
    seen = {cell.status for block in blocks for _, cells in block.rows for cell in cells}
    meanings = MEANINGS if record.no_model is None else MEANINGS | {"accepted": "it trained its own model"}
    legend = tuple((status, sign, meanings[status]) for status, sign in SIGNS.items() if status in seen)
    return Grid(tuple(blocks), per_cell, legend)


def _column_number(stretch: Sequence[RoundLine], place: int, per_cell: int) -> str:
    last = stretch[-1].round
    return str(last) if place == 0 or (place + 1) % 5 == 0 or (per_cell > 1 and place % BLOCK == 0) else ""


def _cell(site: str, stretch: Sequence[RoundLine]) -> GridCell:
    statuses: list[SiteStatus] = [line.sites[site].status if site in line.sites else "absent" for line in stretch]
    others: Counter[SiteStatus] = Counter(status for status in statuses if status != "accepted")
    status: SiteStatus = others.most_common(1)[0][0] if others else "accepted"
    rounds = ranges([line.round for line in stretch])
    words = f"{site}, round{'s' if len(stretch) > 1 else ''} {rounds}: {status}"
    if len(stretch) > 1 and others:
        words += f" in {others[status]} of {len(stretch)}"
    return GridCell(status, SIGNS[status], rounds, words)


def absences(rounds: Sequence[RoundLine]) -> list[Absence]:
    """Who was not accepted, in which rounds, and why; sites by name, reasons by their first round."""
    found: dict[tuple[str, SiteStatus, str], list[int]] = {}
    for line in rounds:
        for name, site in line.sites.items():
            if site.status != "accepted":
                found.setdefault((name, site.status, site.reason), []).append(line.round)
    return [
        Absence(name, ranges(numbers), status, reason)
        for (name, status, reason), numbers in sorted(found.items(), key=lambda item: (item[0][0], item[1][0]))
    ]
