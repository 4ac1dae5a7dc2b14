"""Between sites: the mean over hospitals, how much they differ, and what a new hospital should expect.

A random-effects meta-analysis on the logit scale, each site a study:

- τ², the variance between sites: DerSimonian and Laird, Controlled Clinical Trials 7 (1986) 177. Written here since
  statsmodels 0.15's `combine_effects` leaves a negative τ² as it is; where τ² > 0 the two agree.
- interval of the mean: Hartung and Knapp, Stat. Med. 20 (2001) 3875, with their variance never below the plain one
  (Knapp and Hartung, Stat. Med. 22 (2003) 2693): without that floor, sites that agree by chance give no width at all.
- I² with the test-based interval: Higgins and Thompson, Stat. Med. 21 (2002) 1539.
- prediction interval: mean ± t(k − 2)·√(τ² + SE²) (Higgins, Thompson and Spiegelhalter, JRSS A 172 (2009) 137).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import expit, logit

from common.metrics.auc import SiteAucs, has_logit_interval, site_aucs
from common.metrics.bins import Histogram
from common.metrics.estimate import Estimate, not_estimable, without_interval
from common.metrics.quantiles import normal_quantile, student_quantile


@dataclass(frozen=True)
class BetweenSites:
    """One figure across sites.

    Attributes:
        mean: Mean over sites on the logit scale, mapped back; not the pooled figure, which counts patients.
        tau_squared: Variance between sites on the logit scale; None with fewer than 2 sites.
        i_squared: Share of the variation that is not chance, 0 to 1.
        prediction: Interval for the true figure of a new hospital; its value is the mean.
        sites_left_out: Sites that have no such figure.
    """

    mean: Estimate
    tau_squared: float | None
    i_squared: Estimate
    prediction: Estimate
    sites_left_out: tuple[str, ...]


def share_between_sites(counts: Mapping[str, tuple[int, int]], *, confidence: float = 0.95) -> BetweenSites:
    """Sensitivity or specificity across sites.

    Args:
        counts: For each site, patients rightly and wrongly called: (TP, FN) or (TN, FP). ½ is added to each, so that
            a site without a wrong call still has a variance. Sites without patients are left out.
        confidence: Coverage of the intervals.
    """
    usable = {site: pair for site, pair in counts.items() if sum(pair) > 0}
    effects = [
        (math.log((right + 0.5) / (wrong + 0.5)), 1.0 / (right + 0.5) + 1.0 / (wrong + 0.5))
        for right, wrong in usable.values()
    ]
    return combine_logits(effects, left_out=_left_out(counts, usable), confidence=confidence)


def auc_between_sites(histograms: Mapping[str, Histogram], *, confidence: float = 0.95) -> BetweenSites:
    """AUC across sites; sites whose AUC has no interval are left out."""
    return auc_between_sites_of(site_aucs(histograms), confidence)


def auc_between_sites_of(aucs: SiteAucs, confidence: float) -> BetweenSites:
    """The same from what was counted before."""
    effects, usable = [], set()
    for place in aucs.with_pairs():
        value, variance = aucs.value(place), aucs.variances[place]
        if variance is not None and has_logit_interval(value, variance):
            spread = value * (1.0 - value)
            effects.append((float(logit(value)), variance / spread**2))
            usable.add(aucs.sites[place])
    left_out = tuple(sorted(site for site in aucs.sites if site not in usable))
    return combine_logits(effects, left_out=left_out, confidence=confidence)


def combine_logits(
    effects: Sequence[tuple[float, float]], *, left_out: tuple[str, ...] = (), confidence: float = 0.95
) -> BetweenSites:
    """Random-effects mean of independent estimates on the logit scale.

    Args:
        effects: Logit and variance, above 0, of each site. Their order changes nothing.
        left_out: Names of the sites that have none.
        confidence: Coverage of the intervals.
    """
    effects = sorted(effects)  # floating-point sums then have one order
    k = len(effects)
    if k == 0:
        nothing = not_estimable("no site has this figure", 0)
        return BetweenSites(nothing, None, nothing, nothing, left_out)
    if k == 1:
        only = float(expit(effects[0][0]))
        reason = "one site does not show how sites differ"
        nothing = not_estimable(reason, 1)
        return BetweenSites(without_interval(only, reason, 1), None, nothing, nothing, left_out)
    q = _cochran_q(effects)
    tau_squared = _dersimonian_laird(effects, q)
    mean, variance = _hartung_knapp(effects, tau_squared)
    half_width = student_quantile(confidence, k - 1) * math.sqrt(variance)
    value = float(expit(mean))
    prediction = not_estimable("a prediction interval needs 3 sites", k)
    if k > 2:
        reach = student_quantile(confidence, k - 2) * math.sqrt(tau_squared + variance)
        prediction = Estimate(value, float(expit(mean - reach)), float(expit(mean + reach)), k)
    return BetweenSites(
        mean=Estimate(value, float(expit(mean - half_width)), float(expit(mean + half_width)), k),
        tau_squared=tau_squared,
        i_squared=_i_squared(q, k, confidence),
        prediction=prediction,
        sites_left_out=left_out,
    )


def _weighted_mean(effects: Sequence[tuple[float, float]], tau_squared: float) -> tuple[float, float]:
    """Mean with inverse-variance weights, and the sum of the weights."""
    weights = [1.0 / (variance + tau_squared) for _, variance in effects]
    total = math.fsum(weights)
    return math.fsum(w * y for w, (y, _) in zip(weights, effects, strict=True)) / total, total


def _cochran_q(effects: Sequence[tuple[float, float]]) -> float:
    mean, _ = _weighted_mean(effects, 0.0)
    return math.fsum((y - mean) ** 2 / variance for y, variance in effects)


def _dersimonian_laird(effects: Sequence[tuple[float, float]], q: float) -> float:
    weights = [1.0 / variance for _, variance in effects]
    total = math.fsum(weights)
    excess = q - (len(effects) - 1)
    return max(0.0, excess / (total - math.fsum(w * w for w in weights) / total))


def _hartung_knapp(effects: Sequence[tuple[float, float]], tau_squared: float) -> tuple[float, float]:
    """Mean and its variance."""
    mean, total = _weighted_mean(effects, tau_squared)
    spread = math.fsum((y - mean) ** 2 / (variance + tau_squared) for y, variance in effects)
    return mean, max(1.0, spread / (len(effects) - 1)) / total


def _i_squared(q: float, k: int, confidence: float) -> Estimate:
    value = max(0.0, 1.0 - (k - 1) / q) if q > 0.0 else 0.0
    if k == 2:
        return without_interval(value, "the interval of I² needs 3 sites", k)
    if q > k:
        error = 0.5 * (math.log(q) - math.log(k - 1)) / (math.sqrt(2.0 * q) - math.sqrt(2.0 * k - 3.0))
    else:
        error = math.sqrt((1.0 - 1.0 / (3.0 * (k - 2) ** 2)) / (2.0 * (k - 2)))
    log_h = 0.5 * math.log(max(1.0, q / (k - 1)))
    half_width = normal_quantile(confidence) * error
    low, high = (max(0.0, 1.0 - math.exp(-2.0 * end)) for end in (log_h - half_width, log_h + half_width))
    return Estimate(value, low, high, k)


def _left_out(sites: Mapping[str, object], usable: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted(site for site in sites if site not in usable))
