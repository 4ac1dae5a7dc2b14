"""Random effects across sites: against statsmodels, against formulas worked by hand, and with too few sites."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import norm, t
from statsmodels.stats.meta_analysis import combine_effects

from common.metrics.auc import delong_variance, pooled_auc
from common.metrics.bins import Histogram
from common.metrics.estimate import Estimate
from common.metrics.heterogeneity import auc_between_sites, combine_logits, share_between_sites

effects_of_sites = st.lists(st.tuples(st.floats(-4.0, 4.0), st.floats(0.05, 4.0)), min_size=3, max_size=8)
FIVE = [(2.0, 0.10), (0.5, 0.20), (1.4, 0.05), (-0.3, 0.15), (1.0, 0.30)]


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


@given(effects_of_sites)
def test_equals_statsmodels_where_sites_differ_more_than_chance(effects: list[tuple[float, float]]) -> None:
    y, v = (np.array(column) for column in zip(*effects, strict=True))
    with np.errstate(all="ignore"):
        expected = combine_effects(y, v, method_re="dl", use_t=True)
    if expected.q <= len(effects) - 1 + 1e-9 or expected.scale_hksj_re < 1.0:
        return

    combined = combine_logits(effects)

    assert combined.tau_squared == pytest.approx(expected.tau2, rel=1e-6, abs=1e-9)
    assert combined.i_squared.value == pytest.approx(expected.i2, rel=1e-6, abs=1e-9)
    assert combined.mean.value == pytest.approx(expit(expected.mean_effect_re), abs=1e-9)
    half_width = t.isf(0.025, len(effects) - 1) * expected.sd_eff_w_re_hksj
    assert ends(combined.mean) == pytest.approx(
        (expit(expected.mean_effect_re - half_width), expit(expected.mean_effect_re + half_width)), abs=1e-6
    )


@given(effects_of_sites, st.data())
def test_order_of_sites_changes_no_bit(effects: list[tuple[float, float]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(effects))

    assert combine_logits(shuffled) == combine_logits(effects)


def test_five_sites_worked_by_the_formulas() -> None:
    y, v = (np.array(column) for column in zip(*FIVE, strict=True))
    w = 1 / v
    q = (w * (y - (w @ y) / w.sum()) ** 2).sum()
    tau_squared = (q - 4) / (w.sum() - (w @ w) / w.sum())
    w_star = 1 / (v + tau_squared)
    mean = (w_star @ y) / w_star.sum()
    floor = max(1.0, (w_star @ (y - mean) ** 2) / 4)
    se = math.sqrt(floor / w_star.sum())
    reach = t.isf(0.025, 3) * math.sqrt(tau_squared + se**2)
    log_h, error = 0.5 * math.log(q / 4), 0.5 * math.log(q / 4) / (math.sqrt(2 * q) - math.sqrt(7))

    combined = combine_logits(FIVE)

    assert combined.tau_squared == pytest.approx(tau_squared)
    assert combined.mean.value == pytest.approx(expit(mean))
    assert ends(combined.prediction) == pytest.approx((expit(mean - reach), expit(mean + reach)))
    assert combined.i_squared.value == pytest.approx(1 - 4 / q)
    assert ends(combined.i_squared) == pytest.approx(
        tuple(1 - math.exp(-2 * (log_h + sign * norm.isf(0.025) * error)) for sign in (-1, 1))
    )


def test_sites_that_agree_keep_the_width_of_their_own_uncertainty() -> None:
    combined = combine_logits([(1.0, 0.3)] * 3)

    assert combined.tau_squared == 0.0
    assert combined.i_squared.value == 0.0
    half_width = t.isf(0.025, 2) * math.sqrt(0.1)
    assert ends(combined.mean) == pytest.approx((expit(1 - half_width), expit(1 + half_width)))


@pytest.mark.parametrize(("num_sites", "has"), [(0, set()), (1, set()), (2, {"mean"}), (3, {"mean", "i2", "new"})])
def test_too_few_sites_are_named_as_the_reason(num_sites: int, has: set[str]) -> None:
    combined = combine_logits(FIVE[:num_sites])

    estimates = {"mean": combined.mean, "i2": combined.i_squared, "new": combined.prediction}
    assert {name for name, estimate in estimates.items() if estimate.low is not None} == has
    assert all(estimate.reason for name, estimate in estimates.items() if name not in has)
    assert (combined.tau_squared is None) == (num_sites < 2)


def test_sensitivity_leaves_out_sites_without_necrosis_and_adds_a_half() -> None:
    combined = share_between_sites({"C": (4, 0), "A": (0, 0), "B": (3, 1)})

    expected = combine_logits([(math.log(9), 1 / 4.5 + 2), (math.log(3.5 / 1.5), 1 / 3.5 + 1 / 1.5)])
    assert combined.sites_left_out == ("A",)
    assert combined.mean == expected.mean


def test_auc_leaves_out_sites_whose_auc_has_no_interval() -> None:
    usable: dict[str, Histogram] = {"A": ((5, 3, 2), (1, 2, 4)), "B": ((4, 4, 1), (2, 1, 3))}
    without: dict[str, Histogram] = {"D": ((3, 0, 0), (0, 0, 3)), "C": ((3, 1, 1), (0, 0, 0))}

    combined = auc_between_sites(without | usable)

    effects = []
    for histogram in usable.values():
        value, variance = pooled_auc(histogram).estimate.value, delong_variance(histogram)
        assert value is not None
        assert variance is not None
        effects.append((float(logit(value)), variance / (value * (1 - value)) ** 2))
    assert combined.mean.value == pytest.approx(combine_logits(effects).mean.value)
    assert combined.sites_left_out == ("C", "D")


def drawn_sites(num_sites: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Logits with mean 1, SD .6 between sites, and their variances."""
    variances = rng.uniform(0.05, 0.2, num_sites)
    logits = 1.0 + rng.normal(0.0, 0.6, num_sites) + rng.normal(0.0, np.sqrt(variances))
    return list(zip(logits.tolist(), variances.tolist(), strict=True))


def test_interval_of_the_mean_covers_93_to_97_percent_at_five_sites() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(2000):
        low, high = ends(combine_logits(drawn_sites(5, rng)).mean)
        covered.append(low <= expit(1.0) <= high)

    assert 0.93 <= np.mean(covered) <= 0.97


def test_prediction_interval_holds_93_to_97_percent_of_new_hospitals_at_twenty_sites() -> None:
    # With 6 to 12 sites it is .92 to .93, since DerSimonian and Laird's variance between few sites is itself uncertain.
    rng = np.random.default_rng(5)
    held = []
    for _ in range(2000):
        low, high = ends(combine_logits(drawn_sites(20, rng)).prediction)
        held.append(low <= expit(1.0 + rng.normal(0.0, 0.6)) <= high)

    assert 0.93 <= np.mean(held) <= 0.97
