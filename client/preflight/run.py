"""The preflight of a site: its list, every file of every exam over several processes, and what only all show."""

import csv
import multiprocessing
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from client.cache import ExamCache
from client.config import SiteConfig
from client.preflight.examine import Drawing, Examined, examine
from client.preflight.findings import Finding, Hit, gather
from client.preflight.listing import MASKS, Listing, Row, listing_of
from client.preflight.manifest import FileManifest
from client.preflight.personal import check_paths, check_tree, walk_tree
from client.preflight.registry import FIXABLE
from client.preflight.rows import check_files, check_identifiers, check_labels, check_sequences, check_splits
from client.private_files import write_atomically
from common.errors import DataError
from common.study import Study

OnExam = Callable[[int, int], None]
"""Told how many exams are done, and of how many."""

DISK_FACTOR = 3
FEW_EXAMS = 8
"""So many are checked in less time than other processes take to start."""
MAX_WAITING = 4
"""Exams that wait for a process, for each process: results with pictures are large."""


@dataclass(frozen=True)
class Preflight:
    """What the preflight of a site found.

    Attributes:
        findings: What blocks first.
        listing: The exams.
        examined: What each readable exam's files showed, in the order of the rows.
    """

    findings: tuple[Finding, ...]
    listing: Listing
    examined: tuple[Examined, ...]

    @property
    def blocked(self) -> bool:
        """Whether anything keeps the site from taking part."""
        return any(finding.severity == "block" for finding in self.findings)

    @property
    def fixable(self) -> bool:
        """Whether `gliorn-client fix` can do something about what blocks."""
        return any(finding.severity == "block" and finding.check in FIXABLE for finding in self.findings)


def run_preflight(
    config: SiteConfig,
    study: Study | None,
    *,
    workers: int = 1,
    drawing: Drawing | None = None,
    known: Preflight | None = None,
    on_exam: OnExam | None = None,
) -> Preflight:
    """Check everything that a site lists.

    Args:
        config: The site's configuration.
        study: Decides which sequences an exam needs; None leaves that open.
        workers: Processes; with 1, and for few exams, this one does the work.
        drawing: Asks for pictures.
        known: What the same site's files showed a moment ago, for another study; they are not read again.
        on_exam: Told after every exam.

    Raises:
        ConfigError: The cache, where the manifest lies, cannot be written.
        DataError: A worker process was ended from outside.
    """
    listing, reading = listing_of(config, study)
    hits = [*listing.hits, *check_listing(listing, config, study)]
    examined: list[Examined] = []
    same = known is not None and known.listing.rows == listing.rows
    for done in known.examined if known is not None and same else _examined(listing.rows, workers, drawing):
        examined.append(done)
        hits += done.hits
        if on_exam is not None:
            on_exam(len(examined), len(listing.rows))
    hits += check_together(listing, examined)
    hits += _check_manifest(config, listing, examined)
    hits += _check_disk(config.cache, examined)
    if not any(finding.severity == "block" for finding in gather(hits)):
        hits += [Hit("source-refused", "", fault.text) for fault in reading.faults]
    return Preflight(gather(hits), listing, tuple(examined))


def check_listing(listing: Listing, config: SiteConfig, study: Study | None) -> Iterator[Hit]:
    """All checks that read no volume."""
    yield from check_sequences(listing, study)
    yield from check_identifiers(listing)
    yield from check_files(listing)
    yield from check_splits(listing)
    yield from check_labels(listing, config.label_map, _participants(listing.folder))
    yield from check_paths(listing)
    if listing.folder is not None:
        yield from check_tree(listing, walk_tree(listing.folder, without=(config.cache,)))


def check_together(listing: Listing, examined: Sequence[Examined]) -> Iterator[Hit]:
    """Family 9: the same voxels in two exams."""
    names = {row.number: row.name for row in listing.rows}
    first: dict[str, tuple[int, str]] = {}
    for exam in examined:
        for role, facts in exam.files.items():
            if not facts.voxel_digest or role in MASKS:
                continue
            number, other = first.setdefault(facts.voxel_digest, (exam.number, role))
            if number != exam.number:
                yield Hit("same-voxels", names[exam.number], f"{role} has the voxels of {other} of {names[number]}")


def _participants(folder: Path | None) -> dict[str, str]:
    """Diagnosis by patient in a participants.tsv; empty where there is none to read."""
    path = None if folder is None else folder / "participants.tsv"
    if path is None or not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return {row.get("participant_id") or "": row.get("diagnosis") or "" for row in rows}


def _check_manifest(config: SiteConfig, listing: Listing, examined: Sequence[Examined]) -> list[Hit]:
    secret = ExamCache(config.cache).site_secret()
    path = config.cache / "manifest.json"
    manifest = FileManifest(path.read_bytes() if path.exists() else b"", secret=secret)
    names = {row.number: row.name for row in listing.rows}
    files = [(names[exam.number], role, facts) for exam in examined for role, facts in exam.files.items()]
    hits = list(manifest.compare(files))
    write_atomically(path, manifest.encoded())
    return hits


def _check_disk(cache: Path, examined: Iterable[Examined]) -> Iterator[Hit]:
    total = sum(facts.num_bytes for exam in examined for facts in exam.files.values())
    nearest = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(nearest).free
    if free < DISK_FACTOR * total:
        yield Hit("disk-small", "", f"{free / 1e9:.1f} GB are free, the data have {total / 1e9:.1f} GB")


def _examined(rows: Sequence[Row], workers: int, drawing: Drawing | None) -> Iterator[Examined]:
    """Every exam in order, over some processes."""
    if workers <= 1 or len(rows) <= FEW_EXAMS:
        for row in rows:
            yield examine(row, drawing)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client.preflight.examine"])
    with ProcessPoolExecutor(min(workers, len(rows)), mp_context=context, initializer=_begin_worker) as pool:
        try:
            yield from _in_order(pool, rows, workers * MAX_WAITING, drawing)
        except BrokenProcessPool:
            raise DataError(
                "a process that checks exams was ended from outside, probably for want of memory; "
                "check with fewer workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, rows: Sequence[Row], most: int, drawing: Drawing | None) -> Iterator[Examined]:
    """The exams in the order of their rows, at most so many of them handed out at a time."""
    coming = iter(rows)
    waiting = deque(pool.submit(examine, row, drawing) for row in islice(coming, most))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(examine, row, drawing) for row in islice(coming, 1))


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
