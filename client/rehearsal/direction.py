"""Whether a model that was trained elsewhere ranks this site's classes the wrong way round."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.config import SiteConfig
from client.evaluation import margins_of_exams, mean_per_patient
from client.preflight.registry import CHECKS
from client.prepare import prepare_site
from client.rehearsal.findings import Finding
from client.site import find_device
from common.errors import ConfigError, DataError
from common.messages import bins_of
from common.metrics.auc import pooled_auc
from common.metrics.bins import MarginBins, count_by_bin
from common.model_state import decode_state
from common.models.build import build_model, set_state
from common.study import Study

LEAST_OF_EACH = 10
"""With fewer patients of a class nothing is said."""


def rehearse_direction(config: SiteConfig, study: Study, model_file: Path) -> Finding:
    """Evaluate a model on all of the site's patients, whose exams are in the cache.

    Raises:
        ConfigError: The file is not a model of the study.
        DataError: The exams cannot be prepared.
    """
    try:
        payload = model_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--model {model_file}: cannot be read ({error.strerror or error})") from None
    model = build_model(study.model, num_sequences=len(study.sequences))
    set_state(model, decode_state(payload, origin=f"--model {model_file}"))
    model = model.to(find_device(config.device))
    margins, labels = [], []
    for split in prepare_site(config, study).splits.values():
        if split.num_patients:
            scores = margins_of_exams(model, split.images, batch_size=study.training.batch_size)
            margins.append(mean_per_patient(scores, split.patient_index.numpy(), split.num_patients))
            labels.append(split.patient_labels.numpy())
    if not labels:
        raise DataError("no patient can be evaluated")
    return judge_direction(np.concatenate(margins), np.concatenate(labels), bins_of(study), study=study.name)


def judge_direction(
    margins: NDArray[np.float64], labels: NDArray[np.int64], bins: MarginBins, *, study: str
) -> Finding:
    """Hold the AUC of a model against chance.

    Args:
        margins: One per patient.
        labels: 0 or 1, one per patient.
        bins: The study's.
        study: Its name.
    """
    name, num_necrosis = "labels-inverted", int(labels.sum())
    if min(num_necrosis, labels.size - num_necrosis) < LEAST_OF_EACH:
        found = f"not told: fewer than {LEAST_OF_EACH} patients of a class"
        return Finding("data", name, "ok", found, study=study)
    estimate = pooled_auc(count_by_bin(margins, labels, bins)).estimate
    assert estimate.value is not None, "both classes have patients"
    highest = estimate.value if estimate.high is None else estimate.high
    found = f"AUC of the model on this site's patients: {estimate}"
    if highest < 0.5:
        return Finding("data", name, "warning", found, CHECKS[name].remedy, study)
    return Finding("data", name, "ok", found, study=study)
