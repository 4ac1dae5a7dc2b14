"""Fill the cache: every exam of a cohort prepared once, over several processes, with all faults told together."""

import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from client.cache import ExamCache
from client.cohort import Cohort, load_cohort, missing_counts
from client.config import SiteConfig
from client.digests import DigestMemo, file_state, has_settled, sha256_of
from client.loader import PreparedCohort, assemble_split, count_centres
from client.preprocessing.itk import require_extras
from client.preprocessing.pipeline import ExamFiles, PreparedExam, assemble_exam, prepare_exam, read_centre
from client.preprocessing.stages import Arrays, ExamKeys, Stage, Stages
from client.private_files import write_atomically
from client.table import SPLITS, Exam, shortened
from common.errors import DataError, list_of_faults
from common.study import PreprocessingSpec, Sequence, Study

OnExam = Callable[[int, int], None]
"""Told how many exams are done, and of how many."""


@dataclass(frozen=True)
class _Work:
    """What a worker process needs for one exam."""

    exam: Exam
    spec: PreprocessingSpec
    sequences: tuple[Sequence, ...]
    cache_folder: Path


@dataclass(frozen=True)
class _Done:
    """What a worker process gives back: the exam, the states and digests of its files, or what is wrong with it."""

    row: int
    prepared: PreparedExam | None
    computed: Counter[Stage]
    digests: dict[Path, tuple[str, str]]
    fault: str = ""


def prepare_site(
    config: SiteConfig, study: Study, *, workers: int = 1, on_exam: OnExam | None = None
) -> PreparedCohort:
    """Read the site's table and prepare all its exams; see `load_cohort` and `prepare`."""
    return prepare(load_cohort(config, study), study, config, workers=workers, on_exam=on_exam)


def prepare(
    cohort: Cohort, study: Study, config: SiteConfig, *, workers: int = 1, on_exam: OnExam | None = None
) -> PreparedCohort:
    """Prepare what the cache lacks and load everything.

    Args:
        cohort: The site's exams.
        study: What all sites agreed on.
        config: The site's own settings.
        workers: Processes; 1 works in this one. Others come from a fork server, so that torch's threads are no danger.
            With more than one, a script must guard its start with `if __name__ == "__main__":`.
        on_exam: Told after every exam.

    Raises:
        DataError: All exams that cannot be prepared, at once. The others are in the cache by then.
        ConfigError: The cache folder cannot be written, or what the study's settings need is not installed.
    """
    require_extras(study.preprocessing)
    cache = ExamCache(config.cache)
    secret = cache.site_secret()
    memo = read_memo(config, secret)
    prepared: dict[int, PreparedExam] = {}
    work: list[_Work] = []
    for exam in cohort.exams:
        found = _from_cache(exam, study, memo, cache)
        if found is None:
            work.append(_Work(exam, study.preprocessing, study.sequences, config.cache))
        else:
            prepared[exam.row] = found
            _report(on_exam, len(prepared), len(cohort.exams))
    num_from_cache = len(prepared)
    faults: dict[int, str] = {}
    learnt: dict[Path, tuple[str, str]] = {}
    computed: Counter[Stage] = Counter()
    try:
        for done in _results(work, workers):
            learnt |= done.digests
            computed += done.computed
            if done.prepared is None:
                faults[done.row] = done.fault
            else:
                prepared[done.row] = done.prepared
                num_from_cache += not done.computed
            _report(on_exam, len(prepared) + len(faults), len(cohort.exams))
    finally:  # after Ctrl-C as well, so that the next start does not read what this one has read
        if memo.remember(learnt):
            write_atomically(_memo_file(config), memo.encoded())
    if faults:
        told = shortened([faults[row] for row in sorted(faults)])
        raise DataError(list_of_faults(str(config.data.path), told))
    shape = (len(study.sequences), *study.preprocessing.size_voxels)
    return PreparedCohort(
        cohort=cohort,
        splits={split: assemble_split(cohort, split, prepared, shape) for split in SPLITS},
        centre_counts=count_centres(prepared),
        missing_counts=missing_counts(cohort, study.sequences),
        digests={split: cohort.digest(split, secret) for split in SPLITS},
        num_from_cache=num_from_cache,
        stages_computed=computed,
    )


def read_memo(config: SiteConfig, secret: bytes) -> DigestMemo:
    """The digests of a site's files that are known from earlier."""
    file = _memo_file(config)
    return DigestMemo(file.read_bytes() if file.exists() else b"", salt=secret)


def _memo_file(config: SiteConfig) -> Path:
    return config.cache / "digests.json"


def exam_keys(exam: Exam, digests: Mapping[str, str], spec: PreprocessingSpec) -> ExamKeys:
    """The keys of an exam's stages, by the digests of its files."""
    return ExamKeys(digests, exam.lesion_point, spec)


def _report(on_exam: OnExam | None, done: int, total: int) -> None:
    if on_exam is not None:
        on_exam(done, total)


def _from_cache(exam: Exam, study: Study, memo: DigestMemo, cache: ExamCache) -> PreparedExam | None:
    """The prepared exam, if the digests of all its files are known without reading them and the cache has it."""
    digests: dict[str, str] = {}
    for role, path in exam_roles(exam):
        try:
            digest = memo.digest(path)
        except OSError:
            return None
        if digest is None:
            return None
        digests[role] = digest
    keys = exam_keys(exam, digests, study.preprocessing)
    stored = cache.read("centre", keys.centre())
    if stored is None:
        return None
    centre, source = read_centre(stored)
    channels: dict[Sequence, Arrays] = {}
    for sequence in study.sequences:
        if sequence in exam.volumes:
            channel = cache.read("channel", keys.channel(sequence, centre))
            if channel is None:
                return None
            channels[sequence] = channel
    return assemble_exam(channels, centre, source, study.sequences, study.preprocessing.size_voxels)


def _results(work: list[_Work], workers: int) -> Iterator[_Done]:
    if workers <= 1 or len(work) <= 1:
        yield from map(_prepare_one, work)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["client.prepare"])
    with ProcessPoolExecutor(min(workers, len(work)), mp_context=context, initializer=_begin_worker) as pool:
        try:
            for future in as_completed([pool.submit(_prepare_one, item) for item in work]):
                yield future.result()
        except BrokenProcessPool:
            raise DataError(
                "a process that prepares exams was ended from outside, probably for want of memory; "
                "prepare with fewer workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, exams that have not begun are not prepared any more


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    torch.set_num_threads(1)


def _prepare_one(work: _Work) -> _Done:
    """Read each file once, so that the key is of the very bytes that are prepared."""
    exam, cache = work.exam, ExamCache(work.cache_folder)
    states: dict[Path, tuple[str, str]] = {}
    contents: dict[str, bytes] = {}
    for role, path in exam_roles(exam):
        try:
            state = file_state(path) if has_settled(path, now_ns=time.time_ns()) else ""
            contents[role] = path.read_bytes()
        except OSError as error:
            fault = f"{exam.name}: {role}: {path} cannot be read ({error.strerror or error}); look at the file"
            return _Done(exam.row, None, Counter(), states, fault)
        states[path] = (state, sha256_of(contents[role]))
    digests = {role: states[path][1] for role, path in exam_roles(exam)}
    stages = Stages(exam_keys(exam, digests, work.spec), cache)
    files = ExamFiles(
        name=exam.name,
        volumes={sequence: contents[sequence] for sequence in exam.volumes},
        lesion_point=exam.lesion_point,
        lesion_mask=contents.get("lesion_mask"),
        brain_mask=contents.get("brain_mask"),
    )
    try:
        prepared = prepare_exam(files, work.spec, work.sequences, stages=stages)
    except DataError as error:
        return _Done(exam.row, None, stages.computed, states, str(error))
    return _Done(exam.row, prepared, stages.computed, states)


def exam_roles(exam: Exam) -> list[tuple[str, Path]]:
    """The files of an exam, each with its role: a sequence, `lesion_mask` or `brain_mask`."""
    masks = (("lesion_mask", exam.lesion_mask), ("brain_mask", exam.brain_mask))
    return [
        *((str(sequence), path) for sequence, path in exam.volumes.items()),
        *((role, path) for role, path in masks if path is not None),
    ]
