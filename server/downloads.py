"""How a global state goes to each site: whole, as a coded difference, or not at all where the site keeps it already.

What a site keeps is what its last accepted reply said. Where nothing is known, as after a restart of this side, the
state goes whole, which is always right.
"""

import logging
from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import RecordDict

from common.errors import ProtocolError, StateMissingError
from common.messages import failure_code, task_records
from common.model_state import Array, ModelState
from common.study import Study
from common.tasks import EvaluateTask, SentState, TrainTask, Way
from common.update_codec import CodedUpdate, decode_update, encode_update
from server.aggregation import Memory
from server.exchange import Contents

log = logging.getLogger(__name__)

_CODES, _SCALES, _LOST = "difference", "scales", "lost"
"""Parts of the server's memory: the difference of the last two global states, as it is sent, and what it has lost."""


@dataclass(frozen=True)
class Difference:
    """A coded difference between two global states, by their digests; its arrays stay on disk."""

    reference: str
    digest: str
    update: CodedUpdate


@dataclass
class Holdings:
    """What is known of the sites.

    Attributes:
        digests: For each site the SHA-256 of the global state that it keeps.
        difference: Between the last two global states; None where the study sends none, and while there is none.
    """

    digests: dict[str, str] = field(default_factory=dict)
    difference: Difference | None = None

    def note(self, site: str, digest: str) -> None:
        """Note what a site's accepted reply says that it keeps."""
        self.digests[site] = digest


@dataclass
class Downloads:
    """One task with its global state on its way to several sites.

    Attributes:
        task: The task; its state may lie on disk.
        digest: SHA-256 of the state.
        holdings: What is known of the sites.
        ways: How the state went to each site, as often as it was sent.
        num_bytes: What each site was sent, likewise.
    """

    task: TrainTask | EvaluateTask
    digest: str
    holdings: Holdings
    ways: dict[str, tuple[Way, ...]] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def contents(self) -> Contents:
        """What the sites are sent."""
        return Contents(self._records, self._way, self._lacks_state)

    def note_sent(self, site: str, num_bytes: int) -> None:
        """Note that a site has been sent its content."""
        self.ways[site] = (*self.ways.get(site, ()), self._way(site))
        self.num_bytes[site] = self.num_bytes.get(site, 0) + num_bytes

    def _way(self, site: str) -> Way:
        held, difference = self.holdings.digests.get(site, ""), self.holdings.difference
        if held == self.digest:
            return "held"
        if difference is not None and (held, self.digest) == (difference.reference, difference.digest):
            return "difference"
        return "whole"

    def _records(self, way: str) -> RecordDict:
        sent = SentState(cast(Way, way), self.digest)
        if way == "difference":
            difference = self.holdings.difference
            assert difference is not None, "no site goes this way without"
            sent = replace(sent, reference=difference.reference, update=difference.update)
        return task_records(replace(self.task, sent=sent))

    def _lacks_state(self, site: str, reply: RecordDict) -> bool:
        """Whether a site says that it does not keep what we take it to keep; then nothing is known of it any more."""
        if self._way(site) == "whole":
            return False
        try:
            lacks = failure_code(reply) == StateMissingError.code
        except ProtocolError:  # of a reply like that the reader of replies says what is wrong
            return False
        if lacks:
            log.info("%s no longer keeps the global state that it was sent before and is sent it whole", site)
            del self.holdings.digests[site]
        return lacks


def as_sites_have_it(
    study: Study, state: ModelState, *, before: ModelState, memory: Memory, trained: Set[str]
) -> tuple[ModelState, Memory]:
    """The next global state as it travels: with coded differences, the state before and what the code says.

    It is the global state for everybody, also for sites that are sent it whole.

    Args:
        study: Says which code, if any.
        state: What the aggregation made.
        before: The global state before.
        memory: What the server remembers from the round before, among it what the code has lost so far.
        trained: Names of the trained parameters.

    Returns:
        The state, and what is to be remembered of it: the code and, where losses are carried on, what it has lost.

    Raises:
        DataError: If the difference cannot be coded.
    """
    scheme = study.communication.download
    if scheme == "fp32":
        return state, {}
    update, lost = encode_update(state, before, scheme, trained=trained, carried=memory.get(_LOST))
    made: dict[str, Array] = decode_update(update, before, scheme, trained=trained)
    remembered: dict[str, ModelState] = {_CODES: update.values, _SCALES: update.scales}
    if scheme == "int8_delta":
        remembered[_LOST] = lost
    return made, remembered


def remembered_difference(memory: Memory, *, reference: str, digest: str) -> Difference | None:
    """The difference that `as_sites_have_it` has left in the memory of a round; None if there is none.

    Args:
        memory: Of the round.
        reference: SHA-256 of the global state before the round.
        digest: SHA-256 of that after it.
    """
    if _CODES not in memory:
        return None
    return Difference(reference, digest, CodedUpdate(memory[_CODES], memory[_SCALES]))
