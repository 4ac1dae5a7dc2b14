"""Pools what the sites counted, where enough sites let their counts be seen, and says who is missing from the pool."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.metrics.auc import pooled_auc, within_site_auc
from common.metrics.pooled import counted_alike
from common.metrics.site_statistics import SiteStatistics
from common.study import Study
from common.tasks import Evaluation
from server.progress import Candidate

WITHHELD_REASONS = {
    "min_cell": "withheld: a class has fewer patients than the site shows",
    "no_patients": "no patients in this split",
    "other_pools": "it has answered for these two runs before, with other pools, and does not answer again",
}
OWN_SCALES = "scores of different models have no common scale; the AUC within sites is the figure of all sites"
"""Why models that are each site's own have no pooled AUC."""
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
        return SiteStatistics.total(list(counted_alike(self.per_site).values()))


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
    """Pooled AUC with interval and certificate, mean loss and who is missing, as plain values for a round's record.

    Where every site trains by itself the AUC is that within sites, and a `kind` says so.
    """
    values: dict[str, Any] = {
        "sites": sorted(pool.per_site),
        "missing": dict(pool.missing),
        "not_pooled": pool.reason or None,
    }
    total, own_models = pool.total, study.aggregation.method == "local"
    if own_models:
        values["kind"] = "within_site"
    if total is None:
        return values | {"num_patients": None, "loss": None, "auc": None}
    confidence = study.evaluation.confidence
    if own_models:
        auc = within_site_auc([site.histogram for _, site in sorted(pool.per_site.items())], confidence=confidence)
    else:
        auc = pooled_auc(total.histogram, confidence=confidence)
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
