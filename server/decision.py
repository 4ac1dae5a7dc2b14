"""The decision threshold of a run: chosen on the pooled validation patients, then frozen for the test.

Models that are each site's own have a threshold for each site, which the sites choose on their own validation patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.errors import DataError
from common.metrics.confusion import confusion_from_histogram
from common.metrics.operating_point import ThresholdRule, choose_threshold
from common.metrics.site_statistics import SiteStatistics
from common.study import Study
from common.tasks import OwnChoice
from server.pooling import Pool


@dataclass(frozen=True)
class Decision:
    """The threshold on the logit margin at or above which a patient is called necrosis.

    Attributes:
        threshold: None where none could be chosen.
        rule: The rule as a text.
        reason: Why no threshold was chosen; empty where one was.
        per_site: What each site chose for a model of its own; None where one threshold holds for all.
    """

    threshold: float | None
    rule: str
    reason: str
    per_site: Mapping[str, OwnChoice] | None = None


def decide(validation: Pool, study: Study) -> Decision:
    """Choose the threshold by the study's rule on the pooled validation patients."""
    spec = study.evaluation.operating_point
    rule = ThresholdRule(spec.rule, spec.target)
    text = _rule_text(study)
    total = validation.total
    if spec.rule == "fixed":
        return Decision(spec.target, text, "")
    if total is None:
        return Decision(None, text, f"no pooled validation result: {validation.reason}")
    try:
        return Decision(choose_threshold(total.histogram, rule, total.bins).threshold, text, "")
    except DataError as error:
        return Decision(None, text, str(error))


def decided_by_sites(choices: Mapping[str, OwnChoice], study: Study) -> Decision:
    """The thresholds that the sites chose for models of their own."""
    return Decision(None, _rule_text(study), "", per_site=dict(sorted(choices.items())))


def _rule_text(study: Study) -> str:
    spec = study.evaluation.operating_point
    return spec.rule if spec.target is None else f"{spec.rule} {spec.target:g}"


def with_own_confusions(pool: Pool, choices: Mapping[str, OwnChoice]) -> Pool:
    """The pool with the counts of each site at its own threshold; without any where it has none or shows none."""
    per_site = {}
    for site, statistics in pool.per_site.items():
        choice = choices.get(site)
        counted = None if choice is None or choice.threshold is None else _counted(statistics, choice.threshold)
        per_site[site] = replace(statistics, confusion=None) if counted is None else counted
    return replace(pool, per_site=per_site)


def _counted(statistics: SiteStatistics, threshold: float) -> SiteStatistics | None:
    """The statistics with the counts at a threshold; None where it lies within a bin."""
    first = statistics.bins.first_positive_bin(threshold)
    if first is None:
        return None
    return replace(statistics, confusion=confusion_from_histogram(statistics.histogram, first))


def with_confusion(pool: Pool, threshold: float | None) -> Pool:
    """The pool with the counts at a threshold, read from the histograms.

    Exact where the threshold is an edge of the bins, as every chosen one is; a fixed threshold within a bin leaves the
    pool as it is.
    """
    if threshold is None:
        return pool
    per_site = {}
    for site, statistics in pool.per_site.items():
        if (counted := _counted(statistics, threshold)) is None:
            return pool
        per_site[site] = counted
    return replace(pool, per_site=per_site)
