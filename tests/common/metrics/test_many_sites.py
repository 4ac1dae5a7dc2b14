"""What is counted for all sites at once is, to the last bit, what is counted one by one."""

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit
from scipy.stats import norm, t

from common.errors import ProtocolError
from common.metrics.auc import delong_variance, logit_interval, macro_auc, pooled_auc, site_aucs, within_site_auc
from common.metrics.bins import Histogram, MarginBins
from common.metrics.heterogeneity import auc_between_sites, combine_logits
from common.metrics.pooled import pooled_figures
from common.metrics.quantiles import normal_quantile, student_quantile
from common.metrics.site_statistics import SiteStatistics


def cohort(seed: int, num_patients: int, *, num_bins: int = 64) -> SiteStatistics:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_patients)
    margins = rng.normal(size=num_patients) + labels
    return SiteStatistics.from_margins(margins, labels, bins=MarginBins(num_bins, 5.0), threshold=0.0)


def forty_sites() -> dict[str, SiteStatistics]:
    """From nobody to a hundred patients, also with a single class."""
    return {f"site-{number:02d}": cohort(number, number * number // 16) for number in range(40)}


def histograms_of(sites: dict[str, SiteStatistics]) -> dict[str, Histogram]:
    return {site: statistics.histogram for site, statistics in sites.items()}


def pairs_of(histogram: Histogram) -> int:
    return sum(histogram[0]) * sum(histogram[1])


def test_every_site_s_auc_and_variance_are_those_of_the_site_alone() -> None:
    histograms = histograms_of(forty_sites())

    together = site_aucs(histograms)

    for place, histogram in enumerate(histograms.values()):
        alone = pooled_auc(histogram)
        assert together.variances[place] == delong_variance(histogram)
        if alone.estimate.value is not None:
            assert together.value(place) == alone.estimate.value
            assert together.tied[place] / (2 * together.pairs[place]) == alone.bin_error
    assert together.with_pairs() == [place for place, each in enumerate(histograms.values()) if pairs_of(each)]


def test_auc_within_sites_is_the_sum_over_the_sites_one_by_one() -> None:
    histograms = [each for each in histograms_of(forty_sites()).values() if delong_variance(each) is not None]
    pairs = sum(map(pairs_of, histograms))
    aucs = [pooled_auc(each).estimate.value or 0.0 for each in histograms]
    variance = math.fsum((pairs_of(each) / pairs) ** 2 * (delong_variance(each) or 0.0) for each in histograms)

    within = within_site_auc(histograms).estimate

    assert within.value == pytest.approx(sum(a * pairs_of(h) for a, h in zip(aucs, histograms, strict=True)) / pairs)
    assert within == logit_interval(within.value or 0.0, variance, num=within.num, confidence=0.95)


def test_mean_and_spread_of_the_sites_are_made_of_their_aucs_one_by_one() -> None:
    histograms = histograms_of(forty_sites())
    values = {site: pooled_auc(each).estimate for site, each in histograms.items()}
    effects = []
    for site, estimate in values.items():
        variance = delong_variance(histograms[site])
        if estimate.value is not None and estimate.low is not None and variance is not None:
            effects.append((float(logit(estimate.value)), variance / (estimate.value * (1.0 - estimate.value)) ** 2))
    with_value = [estimate.value for estimate in values.values() if estimate.value is not None]

    between, macro = auc_between_sites(histograms), macro_auc(histograms)

    assert between == combine_logits(effects, left_out=between.sites_left_out)
    assert between.sites_left_out == tuple(sorted(site for site, each in values.items() if each.low is None))
    assert macro.estimate.value == math.fsum(with_value) / len(with_value)
    assert macro.sites_left_out == tuple(sorted(site for site, each in values.items() if each.value is None))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 30)), min_size=1, max_size=6))
def test_total_is_what_adding_one_after_the_other_gives(cohorts: list[tuple[int, int]]) -> None:
    sites = [cohort(seed, num_patients) for seed, num_patients in cohorts]

    assert SiteStatistics.total(sites) == reduce(add, sites)


def test_sites_of_other_bins_are_not_added() -> None:
    with pytest.raises(ProtocolError, match="differ; use the study's"):
        SiteStatistics.total([cohort(0, 5), cohort(1, 5, num_bins=32)])


def test_without_rows_all_other_figures_are_the_same() -> None:
    sites = {site: each for site, each in forty_sites().items() if site < "site-08"}

    short, whole = pooled_figures(sites, rows=False), pooled_figures(sites)

    assert short.per_site == {}
    assert (short.pooled, short.within_site_auc, short.macro_auc) == (
        whole.pooled,
        whole.within_site_auc,
        whole.macro_auc,
    )
    assert short.auc_between_sites == whole.auc_between_sites


@given(st.floats(0.01, 0.999), st.integers(1, 500))
def test_quantiles_are_those_of_scipy_stats_to_the_last_bit(confidence: float, degrees: int) -> None:
    assert normal_quantile(confidence) == float(norm.isf((1.0 - confidence) / 2.0))
    assert student_quantile(confidence, degrees) == float(t.isf((1.0 - confidence) / 2.0, degrees))
