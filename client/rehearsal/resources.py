"""Room on the disks for a study, and main memory for a round."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.config import SiteConfig
from client.kit import Kit
from client.rehearsal.findings import Finding, shown_bytes
from common.study import Study

FreeSpace = Callable[[Path], int]
"""Bytes that this user can still write in the folder, which exists."""

LOG_BYTES = 50 * 10**6
"""Room for the journal and Flower's log."""
FLOWER_BYTES = 256 * 10**6
"""Main memory of the SuperNode and its SuperExec while they wait: 133 and 123 MB, measured on flwr 1.41."""
MODEL_COPIES = 4
"""Copies of the model in a round's messages: received, decoded, encoded, sent."""


@dataclass(frozen=True)
class ModelSize:
    """How much a model takes.

    Attributes:
        state_bytes: Parameters and buffers, as they travel.
        trainable_bytes: Parameters that are trained.
    """

    state_bytes: int
    trainable_bytes: int


def model_size(study: Study) -> ModelSize:
    """Build the study's model once and measure it."""
    from common.models import build_model

    model = build_model(study.model, num_sequences=len(study.sequences))
    return ModelSize(
        sum(tensor.nbytes for tensor in model.state_dict().values()),
        sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad),
    )


def free_space(folder: Path) -> int:
    """Bytes that are free in a folder, for this user."""
    return shutil.disk_usage(folder).free


def check_disks(
    config: SiteConfig, study: Study, *, num_exams: int, size: ModelSize, kit: Kit | None, free: FreeSpace = free_space
) -> tuple[Finding, ...]:
    """Hold what a study will write against the room there is.

    Args:
        config: The site's configuration.
        study: The study.
        num_exams: Exams of the site's table.
        size: Of the study's model.
        kit: The membership, whose folder takes messages and logs; None without a federation.
        free: How free room is measured.
    """
    lacking = max(num_exams - _num_stored(config.cache, study), 0)
    exams = lacking * _exam_bytes(study)
    kept = _kept_bytes(study, size)
    parts = "nothing for exams, which are prepared"
    if lacking:
        parts = f"{shown_bytes(exams)} for {lacking} exam{'' if lacking == 1 else 's'} still to prepare"
    for what, count in kept.items():
        parts += f", {shown_bytes(count)} for {what}"
    needs = [_Need("cache disk", _existing(config.cache), exams + sum(kept.values()), parts)]
    if kit is not None:
        parts = f"{shown_bytes(2 * size.state_bytes)} for the model on its way, {shown_bytes(LOG_BYTES)} for logs"
        needs.append(_Need("kit disk", _existing(kit.folder), 2 * size.state_bytes + LOG_BYTES, parts))
    if len(needs) == 2 and os.stat(needs[0].folder).st_dev == os.stat(needs[1].folder).st_dev:
        cache, other = needs
        needs = [_Need("disk", cache.folder, cache.count + other.count, f"{cache.parts}, {other.parts}")]
    return tuple(_room(need, free(need.folder), study) for need in needs)


@dataclass(frozen=True)
class _Need:
    """Bytes that a study needs on one disk, and for what."""

    name: str
    folder: Path
    count: int
    parts: str


def _room(need: _Need, have: int, study: Study) -> Finding:
    found = f"{shown_bytes(have)} free at {need.folder}, an estimated {shown_bytes(need.count)} needed ({need.parts})"
    advice = "free some, or name a cache on a larger disk in site.yaml"
    if have < need.count:
        return Finding("computing", need.name, "FAIL", found, advice, study.name)
    if have < 2 * need.count:
        return Finding("computing", need.name, "warning", found, advice, study.name)
    return Finding("computing", need.name, "ok", found, study=study.name)


def _exam_bytes(study: Study) -> int:
    return int(np.prod(study.preprocessing.size_voxels)) * len(study.sequences) * 4


def _num_stored(cache: Path, study: Study) -> int:
    """Exams in the cache that are as large as this study's: a guess that only the preparation makes sure."""
    num_sequences = len(study.sequences)
    size = _exam_bytes(study) // num_sequences
    folder = cache / "exams"
    if not folder.is_dir():
        return 0
    channels = folder.glob("*.channel.exam")
    return sum(size <= entry.stat().st_size < size + 4096 for entry in channels) // num_sequences


def _kept_bytes(study: Study, size: ModelSize) -> dict[str, int]:
    """Most room that what a site keeps from round to round takes, the next one included while it is written."""
    spec, ditto = study.training, study.personalization.method == "ditto"
    kept: dict[str, int] = {}
    if spec.keep_optimizer_state:
        moments = 2 if spec.optimizer == "adamw" else 1
        once = 3 * moments * size.trainable_bytes
        kept["the optimiser's state of two rounds and a third while it is written"] = 2 * once if ditto else once
    if spec.control_variates:
        kept["control variates of two rounds and a third while they are written"] = 3 * size.trainable_bytes
    if ditto or study.aggregation.method == "local":
        kept["this site's own model of three rounds and a fourth while it is written"] = 4 * size.state_bytes
    if study.personalization.method == "fine_tune":
        kept["the fine-tuned parts of two models"] = 2 * size.state_bytes
    return kept


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def check_memory(study: Study, *, peak_bytes: int | None, available: int | None, size: ModelSize) -> Finding:
    """Hold the measured peak of a round's process, with Flower's own needs, against what was available before it."""
    if peak_bytes is None or available is None:
        found = "this system does not say how much memory a process used or can have"
        return Finding("computing", "memory", "warning", found, "watch the first round", study.name)
    need = peak_bytes + MODEL_COPIES * size.state_bytes + FLOWER_BYTES
    found = (
        f"{shown_bytes(available)} available, {shown_bytes(need)} needed: {shown_bytes(peak_bytes)} measured, "
        f"{shown_bytes(MODEL_COPIES * size.state_bytes)} for the model in messages, {shown_bytes(FLOWER_BYTES)} for "
        "Flower's programs"
    )
    advice = "end other programs or use a machine with more memory"
    if need > available:
        return Finding("computing", "memory", "FAIL", found, advice, study.name)
    if need > 0.8 * available:
        return Finding("computing", "memory", "warning", found, advice, study.name)
    return Finding("computing", "memory", "ok", found, study=study.name)


def check_gpu_memory(study: Study, *, peak_bytes: int, free_bytes: int) -> Finding:
    """Hold what torch held on the CUDA device against what was free on it."""
    found = f"{shown_bytes(free_bytes)} were free on the GPU, a step holds {shown_bytes(peak_bytes)}"
    if peak_bytes > 0.8 * free_bytes:
        advice = "let no other program use the GPU during rounds, or name another one as device in site.yaml"
        return Finding("computing", "GPU memory", "warning", found, advice, study.name)
    return Finding("computing", "GPU memory", "ok", found, study=study.name)
