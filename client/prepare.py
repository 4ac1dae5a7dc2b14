"""Fill the cache: every exam of a cohort prepared once, over several processes, with all faults told together.

The exams' images come from it afterwards, whenever they are asked for.
"""

import logging
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
from client.exam_images import Images, KeptImages, StoredImages, promised_bytes
from client.loader import PreparedCohort, PreparedSplit, assemble_split, count_centres
from client.main_memory import available_memory
from client.preprocessing.itk import require_extras
from client.preprocessing.pipeline import CentreSource, ExamFiles, fill_image, prepare_exam, read_centre
from client.preprocessing.stages import Arrays, ExamKeys, Stage, Stages
from client.preprocessing.volume import FloatArray
from client.private_files import write_atomically
from client.table import SPLITS, Exam, Split, shortened
from common.errors import DataError, list_of_faults
from common.study import PreprocessingSpec, Sequence, Study

log = logging.getLogger(__name__)

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
class _Stored:
    """Where a prepared exam lies in the cache.

    Attributes:
        channels: Key of each sequence that the exam has.
        centre_source: How the middle of its crop was found.
    """

    channels: Mapping[Sequence, str]
    centre_source: CentreSource


@dataclass(frozen=True)
class _Done:
    """What a worker process gives back: the exam, the states and digests of its files, or what is wrong with it."""

    row: int
    stored: _Stored | None
    computed: Counter[Stage]
    digests: dict[Path, tuple[str, str]]
    fault: str = ""


def prepare_site(
    config: SiteConfig, study: Study, *, workers: int = 1, on_exam: OnExam | None = None, check: bool = True
) -> PreparedCohort:
    """Read the site's table and prepare all its exams; see `load_cohort` and `prepare`."""
    return prepare(load_cohort(config, study), study, config, workers=workers, on_exam=on_exam, check=check)


def prepare(
    cohort: Cohort,
    study: Study,
    config: SiteConfig,
    *,
    workers: int = 1,
    on_exam: OnExam | None = None,
    check: bool = True,
) -> PreparedCohort:
    """Prepare what the cache lacks. Images are read when they are asked for.

    They are kept in memory if those of all splits take at most half of what is available now; else they are read each
    time. An entry is checked whenever it is read, and one that is damaged is made again.

    Args:
        cohort: The site's exams.
        study: What all sites agreed on.
        config: The site's own settings.
        workers: Processes; 1 works in this one. Others come from a fork server, so that torch's threads are no danger.
            With more than one, a script must guard its start with `if __name__ == "__main__":`.
        on_exam: Told after every exam.
        check: Whether every entry is read now, so that what is damaged is made again before it is needed.

    Raises:
        DataError: All exams that cannot be prepared, at once. The others are in the cache by then.
        ConfigError: The cache folder cannot be written, or what the study's settings need is not installed.
    """
    require_extras(study.preprocessing)
    cache = ExamCache(config.cache)
    secret = cache.site_secret()
    memo = read_memo(config, secret)
    stored: dict[int, _Stored] = {}
    work: list[_Work] = []
    for exam in cohort.exams:
        found = _from_cache(exam, study, memo, cache, check=check)
        if found is None:
            work.append(_Work(exam, study.preprocessing, study.sequences, config.cache))
        else:
            stored[exam.row] = found
            _report(on_exam, len(stored), len(cohort.exams))
    num_from_cache = len(stored)
    faults: dict[int, str] = {}
    learnt: dict[Path, tuple[str, str]] = {}
    computed: Counter[Stage] = Counter()
    try:
        for done in _results(work, workers):
            learnt |= done.digests
            computed += done.computed
            if done.stored is None:
                faults[done.row] = done.fault
            else:
                stored[done.row] = done.stored
                num_from_cache += not done.computed
            _report(on_exam, len(stored) + len(faults), len(cohort.exams))
    finally:  # after Ctrl-C as well, so that the next start does not read what this one has read
        if memo.remember(learnt):
            write_atomically(_memo_file(config), memo.encoded())
    if faults:
        told = shortened([faults[row] for row in sorted(faults)])
        raise DataError(list_of_faults(str(config.data.path), told))
    return PreparedCohort(
        cohort=cohort,
        splits=_splits(cohort, study, config, stored),
        centre_counts=count_centres(exam.centre_source for exam in stored.values()),
        missing_counts=missing_counts(cohort, study.sequences),
        digests={split: cohort.digest(split, secret) for split in SPLITS},
        num_from_cache=num_from_cache,
        stages_computed=computed,
    )


def _splits(
    cohort: Cohort, study: Study, config: SiteConfig, stored: Mapping[int, _Stored]
) -> dict[Split, PreparedSplit]:
    image_shape = (len(study.sequences), *study.preprocessing.size_voxels)
    images: dict[Split, Images] = {}
    for split in SPLITS:
        exams = cohort.exams_of(split)
        reader = _Reader(
            tuple(_Work(exam, study.preprocessing, study.sequences, config.cache) for exam in exams),
            tuple(stored[exam.row] for exam in exams),
            ExamCache(config.cache),
        )
        images[split] = StoredImages(len(exams), image_shape, reader.read)
    if _fit_into_memory(sum(each.nbytes for each in images.values())):
        images = {split: KeptImages(each, torch.device("cpu")) for split, each in images.items()}
    else:
        log.info("%s: images take over half of the memory that is free and are read for each batch", config.name)
    return {split: assemble_split(cohort, split, each) for split, each in images.items()}


def _fit_into_memory(num_bytes: int) -> bool:
    """Whether it is at most half of what is available and not promised; where nobody knows that, yes."""
    available = available_memory()
    return available is None or num_bytes <= (available - promised_bytes()) // 2


@dataclass(frozen=True)
class _Reader:
    """Reads the images of a split from the cache."""

    work: tuple[_Work, ...]
    stored: tuple[_Stored, ...]
    cache: ExamCache

    def read(self, place: int, image: FloatArray) -> None:
        """Write an exam's image into an array; an entry that is damaged or gone is made again.

        Raises:
            DataError: That cannot be done, since the exam's files are not what they were.
        """
        work, stored = self.work[place], self.stored[place]
        channels = _channels(stored, self.cache)
        if channels is None:
            done = _prepare_one(work)
            if done.fault:
                raise DataError(done.fault)
            channels = _channels(stored, self.cache)
        if channels is None:
            raise DataError(
                f"{work.exam.name}: what was prepared of it is damaged or gone, and its files are not those that it "
                "was prepared from; run `gliorn-client prepare`, which prepares it anew"
            )
        fill_image(image, channels, work.sequences)


def _channels(stored: _Stored, cache: ExamCache) -> dict[Sequence, Arrays] | None:
    channels: dict[Sequence, Arrays] = {}
    for sequence, key in stored.channels.items():
        channel = cache.read("channel", key)
        if channel is None:
            return None
        channels[sequence] = channel
    return channels


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


def _from_cache(exam: Exam, study: Study, memo: DigestMemo, cache: ExamCache, *, check: bool) -> _Stored | None:
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
    found = cache.read("centre", keys.centre())
    if found is None:
        return None
    stored = _stored(exam, keys, *read_centre(found), study.sequences)
    if check:
        return None if _channels(stored, cache) is None else stored
    return stored if all(cache.has("channel", key) for key in stored.channels.values()) else None


def _stored(
    exam: Exam,
    keys: ExamKeys,
    centre: tuple[float, float, float],
    source: CentreSource,
    sequences: tuple[Sequence, ...],
) -> _Stored:
    return _Stored(
        {sequence: keys.channel(sequence, centre) for sequence in sequences if sequence in exam.volumes}, source
    )


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
    keys = exam_keys(exam, digests, work.spec)
    stages = Stages(keys, cache)
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
    stored = _stored(exam, keys, prepared.centre, prepared.centre_source, work.sequences)
    return _Done(exam.row, stored, stages.computed, states)


def exam_roles(exam: Exam) -> list[tuple[str, Path]]:
    """The files of an exam, each with its role: a sequence, `lesion_mask` or `brain_mask`."""
    masks = (("lesion_mask", exam.lesion_mask), ("brain_mask", exam.brain_mask))
    return [
        *((str(sequence), path) for sequence, path in exam.volumes.items()),
        *((role, path) for role, path in masks if path is not None),
    ]
