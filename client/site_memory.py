"""What a site keeps of a run from one round to the next: on disk, for its owner alone, never in a message.

It lies in the site's cache folder and not in a process, since an engine may give every task to a new process.
"""

import logging
import time
from pathlib import Path

from client.private_files import make_private_folder, write_atomically
from client.retention import clean_up
from common.errors import ProtocolError
from common.model_state import Array, ModelState, decode_state, encode_state, state_digest
from common.tasks import DAMAGES, Damage

log = logging.getLogger(__name__)

Part = Damage
"""What is kept: the entries of the model that stay here, Ditto's model, the fine-tuned last block, SCAFFOLD's control
variate, the optimisers' states, what coded updates have lost, and of a site that trains by itself its best round so
far."""

_FOR_THE_NEXT_ROUND = ("control", "optimizer", "personal-optimizer", "residual")
"""Parts that training alone needs; the others are evaluated, also those of the best round."""


class SiteMemory:
    """Named parts of a site by round, of one run of one study.

    What follows a round is kept beside what it began from, so that a round that is run again begins alike.

    Args:
        cache: The site's cache folder.
        run: Name of the run.
        study_digest: Of the run's study, so that a run of the same name of another study has a memory of its own.
        run_id: Of the run, so that so has another run of the same name and study.

    Attributes:
        damaged: Parts that were there and could not be read, so far.
    """

    def __init__(self, cache: Path, *, run: str, study_digest: str, run_id: str = "") -> None:
        self._cache = cache
        self._folder = cache / "kept" / folder_name(run, study_digest, run_id)
        self.damaged: set[Part] = set()

    def keep(self, part: Part, values: ModelState, *, round: int) -> None:
        """Write a part as it is after a round.

        Raises:
            ConfigError: If it cannot be written, for example because the disk is full.
        """
        self._write(self._path(part, round), values)

    def _write(self, path: Path, values: ModelState) -> None:
        if not self._folder.is_dir():  # the run begins here
            clean_up(self._cache, now=time.time())
        make_private_folder(self._folder)
        write_atomically(path, encode_state(values))

    def keep_global(self, state: ModelState, digest: str) -> None:
        """Write the global state that was sent last, in place of the one before; raises like `keep`.

        Args:
            state: The state.
            digest: Its SHA-256.
        """
        path = self._global_path(digest)
        self._write(path, state)
        for other in set(self._folder.glob("global-*.safetensors")) - {path}:
            other.unlink(missing_ok=True)

    def read_global(self, digest: str) -> dict[str, Array] | None:
        """The global state of this SHA-256; None if it is not the one that is kept, or, with a warning, damaged."""
        try:
            state = decode_state(self._global_path(digest).read_bytes(), origin="the global state at this site")
            is_whole = state_digest(state) == digest
        except FileNotFoundError:
            return None
        except ProtocolError:
            is_whole = False
        if not is_whole:
            log.warning("the global state that this site kept is damaged and counts as not there")
            return None
        return state

    def _global_path(self, digest: str) -> Path:
        return self._folder / f"global-{digest}.safetensors"

    def read(self, part: Part, *, round: int) -> dict[str, Array] | None:
        """A part as it was after exactly this round; None if there is none, or, with a warning, a damaged one."""
        try:
            return decode_state(self._path(part, round).read_bytes(), origin=f"what this site kept of round {round}")
        except FileNotFoundError:
            return None
        except ProtocolError:
            log.warning("what this site kept of round %d is damaged and counts as not there", round)
            self.damaged.add(part)
            return None

    def latest(self, part: Part, *, round: int) -> dict[str, Array] | None:
        """A part as it was after this round or, where the site missed it, after the last one before it."""
        for kept in reversed(self._rounds(part)):
            if kept <= round and (values := self.read(part, round=kept)) is not None:
                return values
        return None

    def forget(self, *, round: int, best_round: int) -> None:
        """Drop all but what `latest` gives for this round, the one before and the best one.

        Later rounds than this one were lost at the coordinator and are run again.
        """
        for part in DAMAGES:
            rounds = self._rounds(part)
            wanted = (round - 1, round) if part in _FOR_THE_NEXT_ROUND else (round - 1, round, best_round)
            if part == "best":  # of the round before is made in this one, from that of the round before it
                wanted = (round - 2, round - 1, round)
            needed = {max((kept for kept in rounds if kept <= each), default=0) for each in wanted}
            for kept in set(rounds) - needed:
                self._path(part, kept).unlink(missing_ok=True)

    def _rounds(self, part: Part) -> list[int]:
        """The rounds a part is kept of, in order."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self._folder.glob(f"{part}-[0-9]*.safetensors"))

    def _path(self, part: Part, round: int) -> Path:
        return self._folder / f"{part}-{round:05d}.safetensors"


def folder_name(run: str, study_digest: str, run_id: str) -> str:
    """The name of the folder in which a site keeps something of a run."""
    return "-".join(filter(None, (run, study_digest[:12], run_id)))
