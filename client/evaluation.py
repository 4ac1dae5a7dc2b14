"""Evaluation of a model on one site's patients, and what of it may leave the site."""

from contextlib import closing
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.acceleration.pooling import QuickPooling
from client.exam_images import Images, batches_of
from common.errors import DisclosureError, TrainingError
from common.metrics.bins import MarginBins
from common.metrics.site_statistics import SiteStatistics
from common.tasks import Evaluation


def margins_of_exams(model: nn.Module, images: Images, *, batch_size: int) -> NDArray[np.float64]:
    """Logit of necrosis minus logit of recurrence for every exam, in float64.

    Args:
        model: On the device it computes on.
        images: Shape (N, C, D, H, W); N may be 0.
        batch_size: Exams at a time.

    Raises:
        TrainingError: If a margin is NaN or infinite.
    """
    if len(images) == 0:  # a split without patients; MONAI's ResNet cannot take a batch of nobody
        return np.zeros(0, dtype=np.float64)
    device = next(model.parameters()).device
    model.eval()
    parts = []
    order = iter(torch.split(torch.arange(len(images)), batch_size))
    with torch.inference_mode(), QuickPooling(), closing(batches_of(images, order, device)) as batches:
        for _, batch in batches:
            logits = model(batch).double()  # (B, 2)
            parts.append((logits[:, 1] - logits[:, 0]).cpu())
    margins: NDArray[np.float64] = torch.cat(parts).numpy()
    if not np.isfinite(margins).all():
        num_bad = int((~np.isfinite(margins)).sum())
        raise TrainingError(
            f"{num_bad} of {len(margins)} margins are not finite; the model state that arrived is unusable"
        )
    return margins


def mean_per_patient(
    margins: NDArray[np.float64], patients: NDArray[np.int64], num_patients: int
) -> NDArray[np.float64]:
    """Mean margin over the exams of each patient: shape (num_patients,)."""
    counts = np.bincount(patients, minlength=num_patients)
    sums = np.bincount(patients, weights=margins, minlength=num_patients)
    return np.asarray(sums / counts, dtype=np.float64)


def disclose(
    margins: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    split: Literal["validation", "test"],
    bins: MarginBins,
    threshold: float | None,
    min_cell: int,
    max_bins: int,
    cohort_digest: str,
) -> Evaluation:
    """Count a site's margins, and withhold the counts where a class is too small to be shown.

    Args:
        margins: One per patient.
        labels: One per patient.
        split: Which patients these are.
        bins: The study's score bins.
        threshold: Frozen decision threshold, if there is one.
        min_cell: A class with patients, but fewer than this, withholds everything.
        max_bins: The finest histogram the site shows. A fine histogram of few patients is a list of their scores.
        cohort_digest: Keyed hash of the case list.

    Raises:
        DisclosureError: If the study counts in more bins than the site allows.
    """
    if bins.num_bins > max_bins:
        raise DisclosureError(
            f"the study counts scores in {bins.num_bins} bins, this site shows at most {max_bins} "
            "(disclosure.max_bins in its configuration); lower evaluation.num_bins in the study"
        )
    counts = np.bincount(labels, minlength=2)
    if len(labels) == 0:
        return Evaluation(split=split, statistics=None, withheld="no_patients", cohort_digest=cohort_digest)
    if any(0 < count < min_cell for count in counts):
        return Evaluation(split=split, statistics=None, withheld="min_cell", cohort_digest=cohort_digest)
    statistics = SiteStatistics.from_margins(margins, labels, bins=bins, threshold=threshold)
    return Evaluation(split=split, statistics=statistics, withheld="", cohort_digest=cohort_digest)
