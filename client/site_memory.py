"""What a site keeps of a run from one round to the next: on disk, for its owner alone, never in a message.

It lies in the site's cache folder and not in a process, since an engine may give every task to a new process.
"""

import logging
from pathlib import Path
from typing import Literal, get_args

from client.private_files import make_private_folder, write_atomically
from common.errors import ProtocolError
from common.model_state import Array, ModelState, decode_state, encode_state

log = logging.getLogger(__name__)

Part = Literal["own", "personal", "fine-tuned", "control", "optimizer", "personal-optimizer", "residual"]
"""What is kept: the entries of the model that stay here, Ditto's model, the fine-tuned last block, SCAFFOLD's control
variate, the optimisers' states, and what coded updates have lost."""

_PARTS: tuple[Part, ...] = get_args(Part)
_FOR_THE_NEXT_ROUND = ("control", "optimizer", "personal-optimizer", "residual")
"""Parts that training alone needs; the others are evaluated, also those of the best round."""


class SiteMemory:
    """Named parts of a site by round, of one run of one study.

    What follows a round is kept beside what it began from, so that a round that is run again begins alike.

    Args:
        cache: The site's cache folder.
        run: Name of the run.
        study_digest: Of the run's study, so that a run of the same name of another study has a memory of its own.
    """

    def __init__(self, cache: Path, *, run: str, study_digest: str) -> None:
        self._folder = cache / "kept" / f"{run}-{study_digest[:12]}"

    def keep(self, part: Part, values: ModelState, *, round: int) -> None:
        """Write a part as it is after a round.

        Raises:
            ConfigError: If it cannot be written, for example because the disk is full.
        """
        make_private_folder(self._folder)
        write_atomically(self._path(part, round), encode_state(values))

    def read(self, part: Part, *, round: int) -> dict[str, Array] | None:
        """A part as it was after exactly this round; None if there is none, or, with a warning, a damaged one."""
        try:
            return decode_state(self._path(part, round).read_bytes(), origin=f"what this site kept of round {round}")
        except FileNotFoundError:
            return None
        except ProtocolError:
            log.warning("what this site kept of round %d is damaged and counts as not there", round)
            return None

    def latest(self, part: Part, *, round: int) -> dict[str, Array] | None:
        """A part as it was after this round or, where the site missed it, after the last one before it."""
        for kept in reversed(self._rounds(part)):
            if kept <= round and (values := self.read(part, round=kept)) is not None:
                return values
        return None

    def forget(self, *, round: int, best_round: int) -> None:
        """Drop all but what `latest` gives for this round, the one before and the best one.

        Later rounds than this one are of an earlier run of the same name.
        """
        for part in _PARTS:
            rounds = self._rounds(part)
            wanted = (round - 1, round) if part in _FOR_THE_NEXT_ROUND else (round - 1, round, best_round)
            needed = {max((kept for kept in rounds if kept <= each), default=0) for each in wanted}
            for kept in set(rounds) - needed:
                self._path(part, kept).unlink(missing_ok=True)

    def _rounds(self, part: Part) -> list[int]:
        """The rounds a part is kept of, in order."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self._folder.glob(f"{part}-[0-9]*.safetensors"))

    def _path(self, part: Part, round: int) -> Path:
        return self._folder / f"{part}-{round:05d}.safetensors"
