"""What a run is doing right now, as a small file that others may read at any time."""

from collections.abc import Callable, Sequence
from typing import Literal

from server.disk import once_there_is_room
from server.run_folder import RunFolder, write_json

Phase = Literal["joining", "round", "validation", "test", "statistics", "paused", "finished"]


class StatusBoard:
    """Writes `status.json` whenever something changes."""

    def __init__(self, folder: RunFolder, *, num_rounds: int) -> None:
        self._folder = folder
        self._num_rounds = num_rounds
        self._phase: Phase = "joining"
        self._round = 0
        self._asked: list[str] = []
        self._answered: list[str] = []

    def begin(self, phase: Phase, *, round: int, asked: Sequence[str]) -> Callable[[str], None]:
        """Begin a phase; returns what to call with each site that has answered."""
        self._phase, self._round, self._asked, self._answered = phase, round, sorted(asked), []
        self._write()

        def answered(site: str) -> None:
            self._answered.append(site)
            self._write()

        return answered

    def _write(self) -> None:
        values = {
            "phase": self._phase,
            "round": self._round,
            "num_rounds": self._num_rounds,
            "asked": self._asked,
            "answered": sorted(self._answered),
        }
        once_there_is_room(lambda: write_json(self._folder.status, values))
