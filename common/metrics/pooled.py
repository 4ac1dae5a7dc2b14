"""The figures of an evaluation: each site's, and those of all patients together.

The pooled row counts patients: it is what the union of all patients gives, never a mean of the sites' figures.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace

from common.errors import ProtocolError
from common.metrics.auc import Auc, MacroAuc, macro_auc_of, pooled_auc, roc_counts, site_aucs, within_site_auc_of
from common.metrics.bins import Histogram, MarginBins
from common.metrics.calibration import CalibrationFigures, calibration_figures
from common.metrics.heterogeneity import BetweenSites, auc_between_sites_of, share_between_sites
from common.metrics.proportions import ConfusionFigures, IntervalMethod, confusion_figures
from common.metrics.site_statistics import SiteStatistics


@dataclass(frozen=True)
class Figures:
    """One row: a site, or the pool.

    Attributes:
        num_recurrence: Patients with label 0.
        num_necrosis: Patients with label 1.
        auc: With its interval and what binning can hide.
        at_threshold: Figures at the frozen threshold; None as long as none is frozen.
        calibration: How probabilities compare with what was observed.
    """

    num_recurrence: int
    num_necrosis: int
    auc: Auc
    at_threshold: ConfusionFigures | None
    calibration: CalibrationFigures


@dataclass(frozen=True)
class PooledFigures:
    """All figures of one evaluation.

    Attributes:
        confidence: Coverage of every interval.
        interval: Method for shares of patients.
        statistics: The sums over all sites, from which the pooled row follows.
        pooled: All patients together.
        per_site: One row for each site, sorted by name.
        within_site_auc: AUC over pairs inside a site. The pooled AUC less this one is what shifts of the score between
            sites cost.
        macro_auc: Mean of the sites' AUCs.
        sensitivity_between_sites: None without a threshold; so is the specificity.
        specificity_between_sites: Mean over sites, heterogeneity, and what a new hospital should expect.
        auc_between_sites: Likewise.
    """

    confidence: float
    interval: IntervalMethod
    statistics: SiteStatistics
    pooled: Figures
    per_site: Mapping[str, Figures]
    within_site_auc: Auc
    macro_auc: MacroAuc
    sensitivity_between_sites: BetweenSites | None
    specificity_between_sites: BetweenSites | None
    auc_between_sites: BetweenSites


def pooled_figures(
    per_site: Mapping[str, SiteStatistics],
    *,
    confidence: float = 0.95,
    interval: IntervalMethod = "wilson",
    prevalence: float | None = None,
    rows: bool = True,
) -> PooledFigures:
    """Every figure, from what the sites sent.

    Args:
        per_site: Statistics by site, on the same bins. Where some were counted at a threshold and others not, figures
            at it are of single sites alone.
        confidence: Coverage of every interval.
        interval: Method for shares of patients.
        prevalence: Share of necrosis for which PPV and NPV are also wanted.
        rows: Whether each site gets a row of its own, which takes a logistic fit for each.

    Raises:
        ProtocolError: If there is no site, or their statistics cannot be added.
    """
    if not per_site:
        raise ProtocolError("evaluation: no site sent statistics, expected at least one")
    sites = {name: per_site[name] for name in sorted(per_site)}
    pool = SiteStatistics.total(list(counted_alike(sites).values()))
    aucs = site_aucs({name: statistics.histogram for name, statistics in sites.items()})
    sensitivity, specificity = _shares_between_sites(sites, confidence)

    def row(statistics: SiteStatistics) -> Figures:
        return figures_of(statistics, confidence=confidence, interval=interval, prevalence=prevalence)

    return PooledFigures(
        confidence=confidence,
        interval=interval,
        statistics=pool,
        pooled=row(pool),
        per_site={name: row(statistics) for name, statistics in sites.items()} if rows else {},
        within_site_auc=within_site_auc_of(aucs, confidence),
        macro_auc=macro_auc_of(aucs, confidence),
        sensitivity_between_sites=sensitivity,
        specificity_between_sites=specificity,
        auc_between_sites=auc_between_sites_of(aucs, confidence),
    )


def counted_alike(per_site: Mapping[str, SiteStatistics]) -> dict[str, SiteStatistics]:
    """The statistics in the order of the sites' names, without counts at a threshold where a site lacks them."""
    sites = {name: per_site[name] for name in sorted(per_site)}
    if all(statistics.confusion is not None for statistics in sites.values()):
        return sites
    return {name: replace(statistics, confusion=None) for name, statistics in sites.items()}


def figures_of(
    statistics: SiteStatistics,
    *,
    confidence: float = 0.95,
    interval: IntervalMethod = "wilson",
    prevalence: float | None = None,
) -> Figures:
    """One row, from the sums of one site or of a pool whose sites are not known one by one."""
    counts = statistics.confusion
    at_threshold = None
    if counts is not None:
        at_threshold = confusion_figures(counts, confidence=confidence, interval=interval, prevalence=prevalence)
    return Figures(
        num_recurrence=statistics.num_patients[0],
        num_necrosis=statistics.num_patients[1],
        auc=pooled_auc(statistics.histogram, confidence=confidence),
        at_threshold=at_threshold,
        calibration=calibration_figures(statistics, confidence=confidence, interval=interval),
    )


def roc_points(histogram: Histogram, bins: MarginBins) -> list[tuple[float, float, float]]:
    """The ROC curve: (false positive rate, true positive rate, threshold) as the threshold falls from +inf.

    Distinct points only, each with the highest threshold that gives it; empty where a class has no patients.
    """
    N0, N1 = sum(histogram[0]), sum(histogram[1])
    if N0 == 0 or N1 == 0:
        return []
    thresholds = [math.inf, *bins.edges()[::-1].tolist(), -math.inf]
    points: dict[tuple[int, int], float] = {}
    for counts, threshold in zip(roc_counts(histogram), thresholds, strict=True):
        points.setdefault(counts, threshold)
    return [(fp / N0, tp / N1, threshold) for (fp, tp), threshold in points.items()]


def to_json(figures: PooledFigures) -> dict[str, object]:
    """Plain JSON values, field by field: what cannot be estimated is null with a `reason` beside it.

    The sums stand under `statistics` as the wire's lists of integers, with their bins.
    """
    tree = _plain(figures)
    assert isinstance(tree, dict)
    return tree


def _plain(value: object) -> object:
    if isinstance(value, SiteStatistics):
        return {"bins": _plain(value.bins), **value.to_integers()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        assert math.isfinite(value), "JSON has no infinities"
        return value
    assert value is None or isinstance(value, str | int), f"{type(value)} has no JSON form"
    return value


def _shares_between_sites(
    sites: Mapping[str, SiteStatistics], confidence: float
) -> tuple[BetweenSites | None, BetweenSites | None]:
    """Sensitivity and specificity across sites, where there is a threshold."""
    counted = {name: statistics.confusion for name, statistics in sites.items() if statistics.confusion is not None}
    if len(counted) < len(sites):
        return None, None
    sensitivity = {name: (each.true_positive, each.false_negative) for name, each in counted.items()}
    specificity = {name: (each.true_negative, each.false_positive) for name, each in counted.items()}
    return (
        share_between_sites(sensitivity, confidence=confidence),
        share_between_sites(specificity, confidence=confidence),
    )
