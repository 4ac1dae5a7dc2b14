"""A run without training: the sites join and show statistics of their cohorts, which are added up; then it ends.

A note in the run's folder makes it such a run. Sites join as for training, so that the counts can be held against the
patients that each site registered.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.cohort_statistics import (
    BY_CLASS,
    HIDDEN,
    CohortStatistics,
    PooledCell,
    TableName,
    layout_of,
    pooled_rows,
)
from common.errors import DisclosureError, ProtocolError
from common.messages import read_statistics_reply
from common.study import CLASS_NAMES, Study
from common.tasks import SPLITS, SiteManifest, StatisticsTask
from server.asking import ask_each, require_of_study
from server.duplicates import Duplicates, count_duplicates
from server.membership import Membership
from server.progress import Progress
from server.record import RESEARCH_USE_ONLY, Outcome, stopped_text, write_record
from server.run_folder import RunFolder, write_atomically, write_json
from server.statistics_note import statistics_file, statistics_page
from server.statistics_page import read_statistics, render_statistics
from server.status import StatusBoard

log = logging.getLogger(__name__)

NOT_DISCLOSED = "does not disclose statistics"
WITHHELD = "withheld: it has fewer patients than it shows of anything"


@dataclass(frozen=True)
class Answers:
    """What the sites answered.

    Attributes:
        per_site: Of each site that shows them.
        missing: For each other site, the reason.
    """

    per_site: Mapping[str, CohortStatistics]
    missing: Mapping[str, str]


def carry_statistics(grid: Grid, folder: RunFolder, *, now: Callable[[], datetime]) -> Outcome | Literal["PAUSED"]:
    """Carry a run of statistics to its end, and write its record and `statistics.json`.

    Between two steps (joining, statistics, comparing patients) it leaves off where the coordinator wishes that. A run
    that goes on begins with the first step again: none takes long, and nothing small is kept meanwhile.

    Args:
        grid: Flower's Grid, of any engine.
        folder: The run's folder.
        now: The clock for the record.

    Returns:
        COMPLETE: every site shows its statistics. DEGRADED: some do not. INVALID: none does, or the coordinator
        stopped the run. PAUSED: the coordinator wished that, which leaves no record.
    """
    study, participants = folder.read_study(), folder.read_participants()
    folder.record.unlink(missing_ok=True)
    folder.resumption.unlink(missing_ok=True)
    board = StatusBoard(folder, num_rounds=study.rounds)
    membership = Membership(grid, study, participants)
    membership.wait_and_join(
        timeout_s=study.participation.join_timeout_s,
        on_join=board.begin("joining", round=0, asked=participants.sites),
    )
    if (ended := _heed_wish(folder, study, board, now=now)) is not None:
        return ended
    answers = ask_sites(
        grid,
        study,
        nodes=membership.nodes,
        manifests=membership.manifests,
        not_joined=membership.problems,
        answered=board.begin("statistics", round=0, asked=sorted(membership.nodes)),
    )
    if (ended := _heed_wish(folder, study, board, now=now)) is not None:
        return ended
    duplicates = count_duplicates(
        grid,
        study,
        run=folder.name,
        nodes=membership.nodes,
        manifests=membership.manifests,
        not_joined=membership.problems,
        begin=lambda sites: board.begin("statistics", round=0, asked=list(sites)),
    )
    if (ended := _heed_wish(folder, study, board, now=now)) is not None:
        return ended
    outcome = _record(folder, study, answers, duplicates, now=now())
    board.begin("finished", round=0, asked=[])
    return outcome


def _heed_wish(
    folder: RunFolder, study: Study, board: StatusBoard, *, now: Callable[[], datetime]
) -> Literal["INVALID", "PAUSED"] | None:
    """Leave off where the coordinator wishes it; returns how, or None to go on."""
    match folder.read_wish():
        case "run":
            return None
        case "pause":
            log.info("paused before statistics were shown")
            board.begin("paused", round=0, asked=[])
            return "PAUSED"
        case "stop":
            log.warning("%s", stopped_text(0))
            _write_record(folder, study, not_joined={}, error=stopped_text(0), problems=None, now=now())
            board.begin("finished", round=0, asked=[])
            return "INVALID"


def ask_sites(
    grid: Grid,
    study: Study,
    *,
    nodes: Mapping[str, int],
    manifests: Mapping[str, SiteManifest],
    not_joined: Mapping[str, str],
    answered: Callable[[str], None],
) -> Answers:
    """Ask every site that has joined; what is not of its registered patients is refused."""
    task = StatisticsTask(study)

    def read(site: str, records: RecordDict) -> CohortStatistics:
        reply = read_statistics_reply(records, task)
        statistics = require_of_study(reply, study, failures={DisclosureError.code: NOT_DISCLOSED}).statistics
        if statistics is None:
            raise ProtocolError(WITHHELD)
        require_registered(statistics, manifests[site], study)
        return statistics

    per_site, problems = ask_each(grid, task, read, nodes=nodes, group="statistics", enough=0, answered=answered)
    missing = dict(sorted((dict(not_joined) | problems).items()))
    for site, reason in missing.items():
        log.warning("statistics, %s: %s", site, reason)
    return Answers(dict(sorted(per_site.items())), missing)


def require_registered(statistics: CohortStatistics, manifest: SiteManifest, study: Study) -> None:
    """Hold a site's counts against the patients that it registered.

    Raises:
        ProtocolError: If a row counts more patients than there are, or is whole and counts fewer; if the split of the
            patients is not the registered one; or if there are more voxels than the patients' crops have.
    """
    per_class = [sum(manifest.num_patients[split][label] for split in SPLITS) for label in range(len(CLASS_NAMES))]
    voxels = math.prod(study.preprocessing.size_voxels)
    for table in layout_of(study.sequences):
        for row in table.rows:
            cells = statistics.rows[table.name, row]
            total = per_class[CLASS_NAMES.index(row)] if table.name in BY_CLASS else sum(per_class)
            shown, is_whole = sum(cell for cell in cells if cell != HIDDEN), HIDDEN not in cells
            where = f"statistics: {table.name}/{row}"
            if table.unit == "voxels":
                if shown > total * voxels or (is_whole and shown % voxels):
                    raise ProtocolError(f"{where} counts {shown} voxels, registered {total} patients of {voxels} each")
            elif shown > total or (is_whole and shown != total):
                raise ProtocolError(f"{where} counts {shown} patients, registered {total}")
    for label, row in enumerate(CLASS_NAMES):
        for split, cell in zip(SPLITS, statistics.rows["split", row], strict=True):
            if cell not in (HIDDEN, manifest.num_patients[split][label]):
                raise ProtocolError(
                    f"statistics: {cell} patients with {row} in {split}, registered "
                    f"{manifest.num_patients[split][label]}"
                )


def _record(folder: RunFolder, study: Study, answers: Answers, duplicates: Duplicates, *, now: datetime) -> Outcome:
    """Write what was shown, and last the record, which ends the run."""
    values = statistics_values(study, answers)
    values |= {
        "duplicates": duplicates.to_values(),
        "run": folder.name,
        "finished_at": now.isoformat(timespec="seconds"),
    }
    write_json(statistics_file(folder), values)
    write_atomically(statistics_page(folder), render_statistics(read_statistics(folder)).encode())
    return _write_record(
        folder,
        study,
        not_joined={} if answers.per_site else answers.missing,
        error=None if answers.per_site else "no site shows statistics of its cohort",
        problems=[f"{site}: {why}" for site, why in answers.missing.items()] if answers.per_site else None,
        now=now,
    )


def _write_record(
    folder: RunFolder,
    study: Study,
    *,
    not_joined: Mapping[str, str],
    error: str | None,
    problems: list[str] | None,
    now: datetime,
) -> Outcome:
    if not folder.rounds.is_file():
        write_atomically(folder.rounds, b"")
    return write_record(
        folder,
        study,
        progress=Progress(round=0, state_digest="", study_digest=study.digest),
        manifests={},  # they hold small counts that the sites hide in their statistics
        not_joined=not_joined,
        final=None,
        error=error,
        now=now,
        statistics=problems,
    )


def statistics_values(study: Study, answers: Answers) -> dict[str, Any]:
    """What the sites show, by site and added up, as `statistics.json` has it; a hidden cell is null."""
    pooled = pooled_rows(answers.per_site.values(), study.sequences)
    return {
        "schema": 1,
        "notice": RESEARCH_USE_ONLY,
        "study": study.name,
        "study_digest": study.digest,
        "sites": list(answers.per_site),
        "missing": dict(answers.missing),
        "tables": [
            {
                "name": table.name,
                "caption": table.caption,
                "unit": table.unit,
                "columns": list(table.columns),
                "rows": [_row_values(table.name, row, pooled[table.name, row], answers) for row in table.rows],
            }
            for table in layout_of(study.sequences)
        ],
    }


def _row_values(table: TableName, row: str, pooled: tuple[PooledCell, ...], answers: Answers) -> dict[str, Any]:
    return {
        "name": row,
        "pooled": [cell.count for cell in pooled],
        "num_sites": [cell.num_sites for cell in pooled],
        "per_site": {
            site: [None if cell == HIDDEN else cell for cell in statistics.rows[table, row]]
            for site, statistics in answers.per_site.items()
        },
    }
