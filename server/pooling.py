"""Pools what the sites counted, where enough sites let their counts be seen, and says who is missing from the pool."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.metrics.auc import pooled_auc
from common.metrics.site_statistics import SiteStatistics
from common.study import Study
from common.tasks import Evaluation
from server.progress import Candidate

WITHHELD_REASONS = {
    "min_cell": "withheld: a class has fewer patients than the site shows",
    "no_patients": "no patients in this split",
}
_FIXED_POINT = 2**20


@dataclass(frozen=True)
class Pool:
    """The counts of one evaluation over the sites.

    Attributes:
        per_site: Counts of each site that shows them.
        missing: For each expected site that is not in the pool, the reason.
        reason: Why no pooled figure is formed; empty where it is.
        answered: Sites that gave a usable answer, even if they withhold their counts.
    """

    per_site: Mapping[str, SiteStatistics]
    missing: Mapping[str, str]
    reason: str
    answered: tuple[str, ...]

    @property
    def total(self) -> SiteStatistics | None:
        """The sum over the sites; None where no pooled figure is formed."""
        if self.reason:
            return None
        return SiteStatistics.total([self.per_site[site] for site in sorted(self.per_site)])


def pool_evaluations(evaluations: Mapping[str, Evaluation], *, missing: Mapping[str, str], study: Study) -> Pool:
    """Gather the evaluations of one model state.

    Args:
        evaluations: What each site that answered counted.
        missing: For each expected site that did not answer, the reason.
        study: Says how many sites a pooled figure needs.
    """
    per_site = {site: e.statistics for site, e in sorted(evaluations.items()) if e.statistics is not None}
    missing = dict(missing) | {site: WITHHELD_REASONS[e.withheld] for site, e in evaluations.items() if e.withheld}
    least = study.evaluation.min_pooled_sites
    reason = (
        "" if len(per_site) >= least else f"the counts of {len(per_site)} of the {least} sites that the study asks for"
    )
    return Pool(per_site, dict(sorted(missing.items())), reason, tuple(sorted(evaluations)))


def summary(pool: Pool, *, study: Study) -> dict[str, Any]:
    """Pooled AUC with interval and certificate, mean loss and who is missing, as plain values for a round's record."""
    values: dict[str, Any] = {
        "sites": sorted(pool.per_site),
        "missing": dict(pool.missing),
        "not_pooled": pool.reason or None,
    }
    total = pool.total
    if total is None:
        return values | {"num_patients": None, "loss": None, "auc": None}
    auc = pooled_auc(total.histogram, confidence=study.evaluation.confidence)
    return values | {
        "num_patients": list(total.num_patients),
        "loss": total.loss_sum / _FIXED_POINT / max(sum(total.num_patients), 1),
        "auc": {
            "value": auc.estimate.value,
            "low": auc.estimate.low,
            "high": auc.estimate.high,
            "reason": auc.estimate.reason,
            "bin_error": auc.bin_error,
        },
    }


def candidate(round: int, values: Mapping[str, Any]) -> Candidate:
    """A round's state as a candidate for the best model, from the `summary` of its validation."""
    num_patients = sum(values["num_patients"]) if values["num_patients"] is not None else 0
    auc = None if values["auc"] is None else values["auc"]["value"]
    return Candidate(round=round, num_patients=num_patients, auc=auc, loss=values["loss"])
