"""Scores of every patient under every arm, from what the sites kept of their tests. On one machine they may meet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.cohort import load_cohort
from client.config import SiteConfig
from client.evaluation import margins_of_exams, mean_per_patient
from client.kept_scores import keep_scores, read_scores
from client.prepare import prepare_site
from common.errors import ConfigError
from common.messages import bins_of
from common.metrics.auc import pooled_auc
from common.metrics.paired import KeptScores
from common.model_state import decode_state
from common.models import build_model, set_state
from common.study import Study
from common.tasks import ModelOfRun
from simulations.compare.arms import ArmRun
from simulations.compare.pooled_site import pooled_id

TOLERANCE = 1e-9
"""Between the AUC of kept scores and that of a record: both are the same quotient of whole numbers."""


@dataclass(frozen=True)
class SiteScores:
    """A model's scores for the test patients of a site.

    Attributes:
        patients: Name of each, of no other patient of any site.
        scores: Bin and label of each.
    """

    patients: tuple[str, ...]
    scores: KeptScores


Scores = Mapping[str, SiteScores]
"""By site."""


def patients_tested(config: SiteConfig, study: Study) -> tuple[str, ...]:
    """The test patients of a site in the order in which their scores are kept."""
    exams = load_cohort(config, study).exams_of("test")
    return tuple(pooled_id(config.name, patient) for patient in dict.fromkeys(exam.patient_id for exam in exams))


def scores_of_run(
    run: ArmRun,
    record: Mapping[str, Any],
    sites: Mapping[str, SiteConfig],
    *,
    pooled: SiteConfig | None = None,
    personal: bool = False,
) -> dict[str, SiteScores]:
    """The scores of a run's chosen model, by site.

    Args:
        run: Which one.
        record: Its record.
        sites: By name.
        pooled: The pooled site of the run's seed, for the pooled arms.
        personal: Whether the sites' own models are meant.

    Raises:
        ConfigError: If a site keeps no scores of this run, or those of another test, or the record has another AUC.
    """
    study = run.planned.study
    if run.arm in ("pooled", "pooled_long"):
        assert pooled is not None, "the pooled arms are at the pooled site"
        return _by_site(_kept(pooled, run, record, personal=personal), pooled, sites, study)
    wanted = {run.site: sites[run.site]} if run.site else sites
    return {
        name: SiteScores(patients_tested(config, study), _kept(config, run, record, personal=personal))
        for name, config in wanted.items()
    }


def _kept(config: SiteConfig, run: ArmRun, record: Mapping[str, Any], *, personal: bool) -> KeptScores:
    study = run.planned.study
    model = ModelOfRun(run.planned.name, study.digest, personal, record.get("run_id", ""))
    tested = read_scores(config.cache, model)
    if tested is None or tested.round != record["selection"]["best"]["round"]:
        found = "none" if tested is None else f"those of round {tested.round}"
        raise ConfigError(
            f"{config.cache}: expected the test scores of run {run.planned.name}, found {found}; "
            "delete that run's folder and give the same command again"
        )
    if tested.cohort_digest != record["sites"][config.name]["cohort_digests"]["test"]:
        raise ConfigError(
            f"{config.cache}: the test scores of run {run.planned.name} are of other patients than its record; "
            "delete that run's folder and give the same command again"
        )
    kept, recorded = _auc(tested.scores), _recorded_auc(config.name, record, personal=personal)
    if recorded is not None and (kept is None or not math.isclose(kept, recorded, rel_tol=0.0, abs_tol=TOLERANCE)):
        raise ConfigError(
            f"{config.cache}: the test scores of run {run.planned.name} come to an AUC of {_shown(kept)}, expected the "
            f"{_shown(recorded)} of its record; delete that run's folder and give the same command again"
        )
    return tested.scores


def _auc(scores: KeptScores) -> float | None:
    return pooled_auc(scores.histogram()).estimate.value


def _shown(auc: float | None) -> str:
    return "none" if auc is None else f"{auc:.6f}"


def _recorded_auc(site: str, record: Mapping[str, Any], *, personal: bool) -> float | None:
    """A site's test AUC in a record; None where its counts are in no figure, or lack a class."""
    part = record["figures"].get("personal_test" if personal else "test")
    row = None if part is None or part["figures"] is None else part["figures"]["per_site"].get(site)
    value: float | None = None if row is None else row["auc"]["estimate"]["value"]
    return value


def _by_site(
    scores: KeptScores, pooled: SiteConfig, sites: Mapping[str, SiteConfig], study: Study
) -> dict[str, SiteScores]:
    exams = load_cohort(pooled, study).exams_of("test")
    place = {patient: row for row, patient in enumerate(dict.fromkeys(exam.patient_id for exam in exams))}
    found = {}
    for name, config in sites.items():
        patients = patients_tested(config, study)
        rows = np.array([place[patient] for patient in patients], dtype=np.int64)
        found[name] = SiteScores(patients, KeptScores(scores.index[rows], scores.labels[rows], scores.num_bins))
    assert sum(len(each.patients) for each in found.values()) == len(place), "the pool holds these patients alone"
    return found


def scores_abroad(run: ArmRun, record: Mapping[str, Any], sites: Mapping[str, SiteConfig]) -> dict[str, SiteScores]:
    """The scores of a site's own model for the test patients of every site.

    They are computed once and kept in the other sites' caches like those of any test.

    Args:
        run: A run of one site by itself.
        record: Its record.
        sites: By name.
    """
    study, best = run.planned.study, int(record["selection"]["best"]["round"])
    model = ModelOfRun(run.planned.name, study.digest, run_id=record.get("run_id", ""))
    found = {}
    for name, config in sites.items():
        patients = patients_tested(config, study)
        tested = read_scores(config.cache, model)
        if tested is None or tested.round != best or tested.scores.labels.size != len(patients):
            _test_abroad(run.planned.path / "model" / "best.safetensors", config, study, model, round=best)
            tested = read_scores(config.cache, model)
        assert tested is not None, "just kept"
        found[name] = SiteScores(patients, tested.scores)
    return found


def _test_abroad(path: Path, config: SiteConfig, study: Study, model: ModelOfRun, *, round: int) -> None:
    network = build_model(study.model, num_sequences=len(study.sequences))
    set_state(network, decode_state(path.read_bytes(), origin=str(path)))
    cohort = prepare_site(config, study)
    patients = cohort.splits["test"]
    with _threads_of_run(config):
        margins = margins_of_exams(network, patients.images, batch_size=study.training.batch_size)
    keep_scores(
        config.cache,
        model,
        mean_per_patient(margins, patients.patient_index.numpy(), patients.num_patients),
        patients.patient_labels.numpy(),
        bins=bins_of(study),
        cohort_digest=cohort.digests["test"],
        round=round,
    )


@contextmanager
def _threads_of_run(config: SiteConfig) -> Iterator[None]:
    """Compute as a run side by side does: on one thread, unless the site names a number; sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.torch_threads or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def whole_pool(scores: Scores) -> KeptScores:
    """The patients of all sites together."""
    parts: Sequence[KeptScores] = [scores[site].scores for site in sorted(scores)]
    return KeptScores(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].num_bins,
    )


def all_patients(scores: Scores) -> tuple[str, ...]:
    """Their names, in the order of `whole_pool`."""
    return tuple(patient for site in sorted(scores) for patient in scores[site].patients)
