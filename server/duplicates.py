"""How many patients two sites have in common: asks the sites to blind their images, then each other's, and counts.

The coordinator sees points that at least one site has blinded, and compares those that two have. Whoever follows the
protocol learns the counts and nothing of a patient; docs/statistics.md says what one could learn who does not.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.duplicates import BlindedPatients
from common.errors import DisclosureError
from common.messages import read_duplicates_reply
from common.study import Study
from common.tasks import SPLITS, DuplicatesTask, SiteManifest
from server.asking import ask_each, require_of_study

log = logging.getLogger(__name__)

NOT_COMPARED = "does not let its patients be compared"


@dataclass(frozen=True)
class SharedPatients:
    """What two sites have in common.

    Attributes:
        sites: Both.
        num_patients: Patients of the first that the second has too, and of the second that the first has too. They
            differ where a site has one patient under two identifiers.
    """

    sites: tuple[str, str]
    num_patients: tuple[int, int]


@dataclass(frozen=True)
class Duplicates:
    """The comparison of all pairs.

    Attributes:
        sites: Those that were compared.
        pairs: Every two of them.
        missing: For each other site, the reason.
    """

    sites: tuple[str, ...]
    pairs: tuple[SharedPatients, ...]
    missing: Mapping[str, str]

    def to_values(self) -> dict[str, Any]:
        """As `statistics.json` has it."""
        return {
            "sites": list(self.sites),
            "missing": dict(self.missing),
            "pairs": [{"sites": list(pair.sites), "patients": list(pair.num_patients)} for pair in self.pairs],
        }


def count_duplicates(
    grid: Grid,
    study: Study,
    *,
    run: str,
    nodes: Mapping[str, int],
    manifests: Mapping[str, SiteManifest],
    not_joined: Mapping[str, str],
    begin: Callable[[Sequence[str]], Callable[[str], None]],
) -> Duplicates:
    """Compare the patients of every two sites that agreed to that.

    Args:
        grid: Flower's Grid.
        study: The study that the sites agreed to.
        run: Name of the run; the sites' secrets are of this run alone.
        nodes: Flower's node of each site that has joined.
        manifests: What each registered.
        not_joined: For each expected site that has not joined, the reason.
        begin: Called with the sites that are asked, before each of the two steps; gives what to call with
            each that answers.
    """
    own, missing = _ask(grid, DuplicatesTask(study, run), nodes, begin(sorted(nodes)))
    problems = dict(not_joined) | missing
    for site, sets in sorted(own.items()):
        registered = sum(sum(manifests[site].num_patients[split]) for split in SPLITS)
        if len(sets) != 1 or len(sets[0].groups) != registered:
            found = [len(patients.groups) for patients in sets]
            problems[site] = f"duplicates: shows {found} patients, registered {registered}"
    blinded = {site: sets[0] for site, sets in sorted(own.items()) if site not in problems}
    task = DuplicatesTask(study, run, tuple(blinded.values()))
    by_both: dict[str, Mapping[str, BlindedPatients]] = {}
    if len(blinded) > 1:
        again, missing = _ask(grid, task, {site: nodes[site] for site in blinded}, begin(sorted(blinded)))
        problems |= missing
        for site, sets in again.items():
            if [_shape(patients) for patients in sets] != [_shape(patients) for patients in task.patients or ()]:
                problems[site] = "duplicates: gave back other numbers of patients than it was sent"
            else:
                by_both[site] = dict(zip(blinded, sets, strict=True))
    compared = tuple(sorted(by_both if len(blinded) > 1 else blinded))
    pairs = tuple(
        SharedPatients(
            (first, second),
            (
                by_both[second][first].num_shared_with(by_both[first][second]),
                by_both[first][second].num_shared_with(by_both[second][first]),
            ),
        )
        for first, second in combinations(compared, 2)
    )
    for site, reason in sorted(problems.items()):
        log.warning("duplicates, %s: %s", site, reason)
    return Duplicates(compared, pairs, dict(sorted(problems.items())))


def _ask(
    grid: Grid, task: DuplicatesTask, nodes: Mapping[str, int], answered: Callable[[str], None]
) -> tuple[dict[str, tuple[BlindedPatients, ...]], dict[str, str]]:
    """What each site answers, and why the others do not."""

    def read(_: str, records: RecordDict) -> tuple[BlindedPatients, ...]:
        reply = read_duplicates_reply(records)
        return require_of_study(reply, task.study, failures={DisclosureError.code: NOT_COMPARED}).patients

    return ask_each(grid, task, read, nodes=nodes, group="duplicates", enough=0, answered=answered)


def _shape(patients: BlindedPatients) -> tuple[int, int]:
    return len(patients.groups), patients.num_points
