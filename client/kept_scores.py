"""What a site keeps of its test evaluations, for itself alone: the bin of each patient's score, by run.

Two runs can be compared patient by patient as long as both were tested on the same patients. Nothing of these files
leaves the site but histograms and sums over patients, by the rules that hold for every evaluation.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.config import DisclosureSpec
from client.private_files import make_private_folder, write_atomically
from client.site_memory import folder_name
from common.errors import DataError, DisclosureError
from common.metrics.bins import Histogram, MarginBins
from common.metrics.paired import KeptScores, difference_sums, require_same_patients, site_comparison
from common.tasks import CompareReply, CompareTask, ModelOfRun

log = logging.getLogger(__name__)

_DIGEST = "sha256"


@dataclass(frozen=True)
class TestedModel:
    """Scores of a model for a site's test patients, in the order of the cohort.

    Attributes:
        scores: Bin and label of each patient.
        cohort_digest: The keyed hash of the case list.
        round: The round whose state was tested.
    """

    __test__ = False  # no test, whatever pytest takes its name for

    scores: KeptScores
    cohort_digest: str
    round: int


def keep_scores(
    cache: Path,
    model: ModelOfRun,
    margins: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    bins: MarginBins,
    cohort_digest: str,
    round: int,
) -> None:
    """Keep the bins of a test evaluation in place of those of an earlier one of the same model.

    Args:
        cache: The site's cache folder.
        model: What was tested.
        margins: One per patient.
        labels: One per patient.
        bins: The study's.
        cohort_digest: Keyed hash of the case list.
        round: The round whose state was tested.

    Raises:
        ConfigError: The cache cannot be written.
    """
    body = {
        "cohort_digest": cohort_digest,
        "round": round,
        "num_bins": bins.num_bins,
        "index": bins.index(margins).tolist(),
        "labels": labels.tolist(),
    }
    text = json.dumps(body, sort_keys=True)
    path = _path(cache, model)
    make_private_folder(path.parent)
    write_atomically(path, json.dumps({_DIGEST: _digest(text), "body": text}).encode())


def read_scores(cache: Path, model: ModelOfRun) -> TestedModel | None:
    """What was kept of a model; None where nothing was, or the file was damaged."""
    try:
        stored = _path(cache, model).read_bytes()
    except FileNotFoundError:
        return None
    try:
        outer: Mapping[str, str] = json.loads(stored)
        if _digest(outer["body"]) != outer[_DIGEST]:
            raise ValueError
        body: Mapping[str, Any] = json.loads(outer["body"])
    except (ValueError, TypeError, KeyError):
        log.warning("the kept scores of a run are damaged and are left aside")
        return None
    scores = KeptScores(
        np.array(body["index"], dtype=np.int64), np.array(body["labels"], dtype=np.int64), body["num_bins"]
    )
    return TestedModel(scores, body["cohort_digest"], body["round"])


def compare_kept(
    cache: Path, disclosure: DisclosureSpec, task: CompareTask, *, cohort_digest: str, study_digest: str
) -> CompareReply:
    """Answer a comparison of two models on the site's test patients.

    Args:
        cache: The site's cache folder.
        disclosure: What may leave the site.
        task: Which models, and whether the pools are there already.
        cohort_digest: Keyed hash of the list of test patients as it is now.
        study_digest: The study that the site works on.

    Raises:
        DataError: If a model was not tested here, or on other patients.
        DisclosureError: If a histogram is finer than the site shows.
        ProtocolError: If the pools do not hold the site's patients.
    """
    first, second = (_read_tested(cache, model, cohort_digest) for model in (task.first, task.second))
    require_same_patients(first, second)
    counts = np.bincount(first.labels, minlength=2)
    withheld = ""
    if first.labels.size == 0:
        withheld = "no_patients"
    elif any(0 < count < disclosure.min_cell for count in counts):
        withheld = "min_cell"
    if withheld:
        return CompareReply(study_digest, cohort_digest, withheld)
    finest = max(first.num_bins, second.num_bins)
    if finest > disclosure.max_bins:
        raise DisclosureError(
            f"a comparison asks for {finest} bins, this site shows at most {disclosure.max_bins} (disclosure.max_bins)"
        )
    if task.pools is None:
        return CompareReply(study_digest, cohort_digest, "", site=site_comparison(first, second))
    if not _may_answer(cache, task, task.pools):
        log.warning(
            "comparison of %s with %s: this site has answered for these two runs before, with other pools, and does "
            "not answer again",
            *(task.first.run, task.second.run),
        )
        return CompareReply(study_digest, cohort_digest, "other_pools")
    return CompareReply(study_digest, cohort_digest, "", sums=difference_sums(first, second, task.pools))


def _may_answer(cache: Path, task: CompareTask, pools: tuple[Histogram, Histogram]) -> bool:
    """Whether these pools are the first ones for a pair of models, or the same again; notes them.

    Sums by the tables of two pools that differ in one patient tell of that patient.
    """
    sides = sorted(zip(map(_name, (task.first, task.second)), pools, strict=True))  # a pair has no order
    digest = _digest(json.dumps([pool for _, pool in sides]))
    pair = _digest("\0".join(name for name, _ in sides))[:32]
    folders = [_folder(cache, model) / "answered" for model in (task.first, task.second)]
    known = None
    for folder in folders:  # at either, since one of them may have been deleted
        try:
            known = (folder / pair).read_text(encoding="ascii")
        except FileNotFoundError:
            continue
        if known != digest:
            return False
    for folder in folders if known is None else ():
        make_private_folder(folder)
        write_atomically(folder / pair, digest.encode())
    return True


def _name(model: ModelOfRun) -> str:
    return f"{folder_name(model.run, model.study_digest, model.run_id)}/{_kind(model)}"


def _read_tested(cache: Path, model: ModelOfRun, cohort_digest: str) -> KeptScores:
    tested = read_scores(cache, model)
    if tested is None:
        raise DataError(
            f"run {model.run}: this site keeps no test scores of it, expected those of an earlier test; "
            "test both models at this site before they are compared"
        )
    if tested.cohort_digest != cohort_digest:
        raise DataError(
            f"run {model.run}: was tested on other patients than those of today; compare runs on one frozen test set"
        )
    return tested.scores


def _path(cache: Path, model: ModelOfRun) -> Path:
    return _folder(cache, model) / f"{_kind(model)}.json"


def _folder(cache: Path, model: ModelOfRun) -> Path:
    return cache / "scores" / folder_name(model.run, model.study_digest, model.run_id)


def _kind(model: ModelOfRun) -> str:
    return "personal" if model.personal else "global"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
