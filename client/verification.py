"""Whether a site's files and its cache still hold the bytes that were prepared: everything is read again."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from client.cache import ExamCache
from client.cohort import Cohort, load_cohort
from client.config import SiteConfig
from client.digests import DigestMemo, sha256_of
from client.exam import Exam
from client.prepare import OnExam, exam_keys, exam_roles, read_memo
from client.preprocessing.pipeline import read_centre
from client.preprocessing.stages import ExamKeys, Stage
from common.study import Sequence, Study


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        num_exams: Exams of the cohort.
        num_files: Files of these that were read, and whose digest was compared with an earlier one.
        faults: A sentence on each damage, with the exam's name; for people at the site alone.
        unprepared: Names of exams that are not in the cache as they are now, which is no damage.
    """

    num_exams: int
    num_files: int
    faults: tuple[str, ...]
    unprepared: tuple[str, ...]


@dataclass(frozen=True)
class _Look:
    """What was found of one exam."""

    num_compared: int
    faults: tuple[str, ...]
    unprepared: bool
    name: str


def verify_site(config: SiteConfig, study: Study, *, workers: int = 1, on_exam: OnExam | None = None) -> Verification:
    """Read all files of a site and all entries of its cache to the last byte and compare their digests.

    A file whose size and times are those of the day it was prepared, but whose bytes are not, has been damaged by a
    disk or a copy. A file that somebody has changed since is none: its exam is merely not prepared.

    Args:
        config: The site's own settings.
        study: What all sites agreed on.
        workers: Exams looked at side by side.
        on_exam: Told after every exam.

    Raises:
        ConfigError: The table or the cache folder cannot be used.
        DataError: Files that the table names are not there.
    """
    cohort = load_cohort(config, study)
    cache = ExamCache(config.cache)
    memo = read_memo(config, cache.site_secret())
    looks = []
    for look in _looks(cohort, study, cache, memo, workers):
        looks.append(look)
        if on_exam is not None:
            on_exam(len(looks), len(cohort.exams))
    return Verification(
        num_exams=len(looks),
        num_files=sum(look.num_compared for look in looks),
        faults=tuple(fault for look in looks for fault in look.faults),
        unprepared=tuple(look.name for look in looks if look.unprepared),
    )


def _looks(cohort: Cohort, study: Study, cache: ExamCache, memo: DigestMemo, workers: int) -> Iterator[_Look]:
    with ThreadPoolExecutor(workers) as pool:  # reading and hashing leave Python's lock alone
        yield from pool.map(lambda exam: _look_at(exam, study, cache, memo), cohort.exams)


def _look_at(exam: Exam, study: Study, cache: ExamCache, memo: DigestMemo) -> _Look:
    digests: dict[str, str] = {}
    faults: list[str] = []
    num_compared = 0
    for role, path in exam_roles(exam):
        try:
            known = memo.digest(path)
            digest = sha256_of(path.read_bytes())
        except OSError as error:
            faults.append(f"{exam.name}: {role}: {path} cannot be read ({error.strerror or error}); look at the file")
            continue
        num_compared += known is not None
        if known is not None and known != digest:
            faults.append(
                f"{exam.name}: {role}: {path} has other bytes than when it was prepared, though its size and times are "
                "the same, so a disk or a copy has damaged it; restore the file from where it came from"
            )
        digests[role] = known or digest
    if len(digests) < len(exam_roles(exam)):
        return _Look(num_compared, tuple(faults), unprepared=False, name=exam.name)
    damaged, absent = _entries(exam, exam_keys(exam, digests, study.preprocessing), study, cache)
    faults += [
        f"{exam.name}: {what} in the cache is damaged; `gliorn-client prepare` makes it again" for what in damaged
    ]
    return _Look(num_compared, tuple(faults), unprepared=absent, name=exam.name)


def _entries(exam: Exam, keys: ExamKeys, study: Study, cache: ExamCache) -> tuple[list[str], bool]:
    """What of an exam's entries is damaged, and whether some that loading needs are absent."""
    states = {"the crop's centre": cache.state("centre", keys.centre())}
    stored = cache.read("centre", keys.centre()) if states["the crop's centre"] == "sound" else None
    needed = list(states.values())
    if stored is not None:
        centre, _ = read_centre(stored)
        for sequence in _wanted(exam, study):
            states[f"the prepared {sequence}"] = cache.state("channel", keys.channel(sequence, centre))
        needed = list(states.values())
    for sequence in exam.volumes:
        stages: tuple[tuple[Stage, str | None], ...] = (
            ("registration", keys.registration(sequence)),
            ("bias", keys.bias(sequence)),
        )
        for stage, key in stages:
            if key is not None:
                states[f"the {stage} of {sequence}"] = cache.state(stage, key)
    return [what for what, state in states.items() if state == "damaged"], "absent" in needed


def _wanted(exam: Exam, study: Study) -> list[Sequence]:
    return [sequence for sequence in study.sequences if sequence in exam.volumes]
