"""What a site chooses for a model of its own, on its own validation patients: the round, and the threshold.

Scores of different models have no common scale, so neither can be chosen over several sites.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from client.site_memory import SiteMemory
from common.errors import DataError
from common.metrics.auc import pooled_auc
from common.metrics.bins import MarginBins
from common.metrics.operating_point import ThresholdRule, choose_threshold
from common.metrics.site_statistics import SiteStatistics
from common.model_state import Array
from common.study import Study
from common.tasks import OwnChoice

_ROUND, _AUC, _LOSS = "round", "auc", "loss"


def consider_round(
    memory: SiteMemory, margins: NDArray[np.float64], labels: NDArray[np.int64], *, bins: MarginBins, round: int
) -> None:
    """Remember the model of a round where it is the best one so far; a round without validation patients is not.

    The higher AUC, then the lower loss, then the earlier round, as the coordinator chooses a global model.

    Args:
        memory: What the site keeps of the run.
        margins: Of the validation patients under the site's own model; shape (N,).
        labels: Theirs.
        bins: The study's.
        round: The round after which the model was as it is; 1 or more, since the initial model is no candidate.
    """
    before = memory.latest("best", round=round - 1)
    best = before
    if labels.size:
        statistics = SiteStatistics.from_margins(margins, labels, bins=bins, threshold=None)
        auc = pooled_auc(statistics.histogram).estimate.value
        new = _as_arrays({_ROUND: round, _AUC: -1.0 if auc is None else auc, _LOSS: statistics.loss_sum})
        if before is None or _merit(new) > _merit(before):
            best = new
    if best is not None:
        memory.keep("best", best, round=round)


def best_round(memory: SiteMemory, *, round: int) -> int:
    """The best round up to this one; this one where none was ever considered."""
    best = memory.latest("best", round=round)
    return round if best is None else int(best[_ROUND][0])


def _as_arrays(values: Mapping[str, float]) -> dict[str, Array]:
    return {name: np.array([value], dtype=np.float64) for name, value in values.items()}


def _merit(values: Mapping[str, Array]) -> tuple[float, float]:
    return float(values[_AUC][0]), -float(values[_LOSS][0])


def choose_own(
    margins: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    study: Study,
    bins: MarginBins,
    round: int,
    min_cell: int,
) -> tuple[float | None, OwnChoice]:
    """The threshold by the study's rule on a site's validation patients, and what the site says of it.

    Args:
        margins: Of the validation patients under the model that is tested; shape (N,).
        labels: Theirs.
        study: Has the rule.
        bins: The study's.
        round: Of the model.
        min_cell: A class with validation patients, but fewer than this, withholds the threshold, which would show
            where a score lies. It is used all the same.
    """
    spec = study.evaluation.operating_point
    rule = ThresholdRule(spec.rule, spec.target)
    try:
        counts = SiteStatistics.from_margins(margins, labels, bins=bins, threshold=None)
        threshold = choose_threshold(counts.histogram, rule, bins).threshold
    except DataError:
        return None, OwnChoice(round, None, "no_class")
    is_small = any(0 < count < min_cell for count in np.bincount(labels, minlength=2))
    if is_small and rule.name != "fixed":
        return threshold, OwnChoice(round, None, "withheld")
    return threshold, OwnChoice(round, threshold, "")
