"""Comparison of the model of a run with that of an earlier one on the same test patients, in two exchanges.

The sites keep the scores of their tests. First each site sends the histograms of both models and the sums by its own
tables; then the pools go back, and each site sends the sums by the pools' tables. See `common.metrics.paired`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.messages import read_compare_reply
from common.metrics.bins import Histogram, add_histograms
from common.metrics.paired import (
    DifferenceSums,
    SiteComparison,
    pooled_difference,
    site_difference,
    within_site_difference,
)
from common.tasks import CompareReply, CompareTask, ModelOfRun, SiteManifest
from server.asking import ask_each, require_of_study
from server.pooling import OWN_SCALES, WITHHELD_REASONS

log = logging.getLogger(__name__)

LEAST_SITES_OF_POOLS = 3
"""Sites below which no pool is sent out: of two, each would see the other's histograms."""


@dataclass(frozen=True)
class Comparison:
    """What the sites counted for one pair of models.

    Attributes:
        first: The model of this run.
        second: The one it is compared with.
        per_site: Histograms and own sums of each site that shows them.
        sums: By the pools' tables, over exactly these sites; None where no pooled figure is formed.
        missing: For each other site, the reason.
        reason: Why no figure is formed; empty where they are.
        unpooled: Why no pooled difference is formed; empty where it is.
    """

    first: ModelOfRun
    second: ModelOfRun
    per_site: Mapping[str, SiteComparison]
    sums: DifferenceSums | None
    missing: Mapping[str, str]
    reason: str
    unpooled: str = ""


@dataclass(frozen=True)
class ComparedSites:
    """Who is asked, and how.

    Attributes:
        grid: Flower's Grid.
        nodes: Flower's node of each site that is asked.
        manifests: What those sites registered.
        answered: Called with each site whose reply has come.
    """

    grid: Grid
    nodes: Mapping[str, int]
    manifests: Mapping[str, SiteManifest]
    answered: Callable[[str], None]

    def ask(self, task: CompareTask, sites: Mapping[str, object]) -> tuple[dict[str, CompareReply], dict[str, str]]:
        """The answers of some of the sites, and the reason for each that gave none of use."""
        return ask_each(
            self.grid,
            task,
            lambda site, records: _read(records, task, self.manifests[site]),
            nodes={site: node for site, node in self.nodes.items() if site in sites},
            group="compare",
            enough=task.study.participation.min_sites,
            answered=self.answered,
        )


def compare_at_sites(
    sites: ComparedSites, task: CompareTask, *, missing: Mapping[str, str], own_models: bool = False
) -> Comparison:
    """Carry out the two exchanges.

    Where a site answers the first and not the second, figures within sites are formed and pooled ones are not: sums and
    tables have to be of the same patients.

    Args:
        sites: Who is asked.
        task: The two models, without pools.
        missing: Sites that are not asked, with the reason.
        own_models: Whether one of the two is another model at each site. No pool is sent out then.
    """
    least = task.study.evaluation.min_pooled_sites
    replies, problems = sites.ask(task, sites.nodes)
    gone = dict(missing) | problems
    gone |= {site: WITHHELD_REASONS[reply.withheld] for site, reply in replies.items() if reply.withheld}
    per_site = {site: reply.site for site, reply in sorted(replies.items()) if reply.site is not None}
    gone |= _of_other_bins(per_site)
    per_site = {site: counts for site, counts in per_site.items() if site not in gone}
    sums, unpooled = ({}, OWN_SCALES) if own_models else _second_exchange(sites, task, per_site)
    for site, reason in sorted(gone.items()):
        log.warning("comparison of %s with %s, %s: %s", task.first.run, task.second.run, site, reason)
    reason = ""
    if len(per_site) < least:
        reason = f"the counts of {len(per_site)} of the {least} sites that the study asks for"
    total = reduce(add, (sums[site] for site in sorted(sums))) if sums and not reason else None
    return Comparison(task.first, task.second, per_site, total, dict(sorted(gone.items())), reason, unpooled)


def _second_exchange(
    sites: ComparedSites, task: CompareTask, per_site: Mapping[str, SiteComparison]
) -> tuple[dict[str, DifferenceSums], str]:
    """The sums by the pools' tables, of all sites or none, and why there are none.

    Pools go out once. A second pair of pools, without a site that gave no answer, would show every other site the
    histograms of that one as their difference; so would pools of two sites, less one's own.
    """
    least = max(task.study.evaluation.min_pooled_sites, LEAST_SITES_OF_POOLS)
    if len(per_site) < least:
        return {}, f"the counts of {len(per_site)} of the {least} sites that pooled tables need"
    pools = _pools(per_site)
    if any(min(sum(row) for row in pool) == 0 for pool in pools):
        return {}, "a class has no patients, and the AUC compares patients of two classes"
    second, problems = sites.ask(replace(task, pools=pools), per_site)
    problems |= {site: WITHHELD_REASONS[reply.withheld] for site, reply in second.items() if reply.withheld}
    sums = {site: reply.sums for site, reply in second.items() if reply.sums is not None}
    problems |= {
        site: "the sums are of other patients than the histograms"
        for site, its_sums in sums.items()
        if its_sums.num_patients != per_site[site].num_patients
    }
    if problems:
        return {}, "; ".join(f"{site}: {reason}" for site, reason in sorted(problems.items()))
    return sums, ""


def _read(records: RecordDict, task: CompareTask, manifest: SiteManifest) -> CompareReply:
    reply = require_of_study(read_compare_reply(records, task), task.study)
    if reply.cohort_digest != manifest.cohort_digests["test"]:
        raise ProtocolError("the test patients are not those registered before the first round")
    if reply.site is not None and reply.site.num_patients != manifest.num_patients["test"]:
        raise ProtocolError(f"counted {reply.site.num_patients} patients, registered {manifest.num_patients['test']}")
    return reply


def _of_other_bins(per_site: Mapping[str, SiteComparison]) -> dict[str, str]:
    """Sites whose histograms cannot be added to those of most sites."""
    lengths = {site: tuple(len(each[0]) for each in counts.histograms) for site, counts in per_site.items()}
    expected = max(lengths.values(), key=list(lengths.values()).count, default=())
    return {
        site: f"histograms of {found} bins, expected {expected}" for site, found in lengths.items() if found != expected
    }


def _pools(per_site: Mapping[str, SiteComparison]) -> tuple[Histogram, Histogram]:
    first, second = (reduce(add_histograms, (site.histograms[k] for site in per_site.values())) for k in (0, 1))
    return first, second


def comparison_values(comparison: Comparison, *, confidence: float) -> dict[str, Any]:
    """A comparison as it stands in the record."""
    values: dict[str, Any] = {
        "first": asdict(comparison.first),
        "second": asdict(comparison.second),
        "missing": dict(comparison.missing),
        "not_pooled": comparison.reason or comparison.unpooled or None,
        "pooled": None,
        "within_site": None,
        "per_site": {},
    }
    if comparison.reason:
        return values
    sites = comparison.per_site
    if comparison.sums is not None:
        pooled = pooled_difference(_pools(sites), comparison.sums, confidence=confidence)
        values["pooled"] = asdict(pooled)
    values["within_site"] = asdict(within_site_difference(sites.values(), confidence=confidence))
    values["per_site"] = {
        site: asdict(site_difference(counts, confidence=confidence)) for site, counts in sorted(sites.items())
    }
    return values
