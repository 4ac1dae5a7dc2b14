"""Figures of a confusion matrix against their definitions, libraries and the source paper."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
)

from common.errors import ConfigError
from common.metrics.confusion import Confusion
from common.metrics.estimate import Estimate
from common.metrics.proportions import (
    IntervalMethod,
    confusion_figures,
    matthews_correlation,
    npv_at,
    ppv_at,
    proportion,
)

PAPER = Confusion(true_positive=7, false_positive=3, true_negative=46, false_negative=2)
matrices = st.builds(Confusion, *[st.integers(0, 60)] * 4)
full_matrices = st.builds(Confusion, *[st.integers(1, 60)] * 4)


def all_estimates(counts: Confusion, interval: IntervalMethod = "wilson") -> dict[str, Estimate]:
    figures = confusion_figures(counts, interval=interval, prevalence=0.2)
    return {name: value for name, value in vars(figures).items() if isinstance(value, Estimate)}


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def test_the_source_papers_test_set_has_the_interval_its_table_leaves_out() -> None:
    figures = confusion_figures(PAPER)

    assert str(figures.sensitivity) == "0.778 [0.453, 0.937]"
    assert str(figures.specificity) == "0.939 [0.835, 0.979]"
    assert f"{figures.accuracy.value:.2f}" == "0.91"
    assert (figures.sensitivity.num, figures.specificity.num, figures.accuracy.num) == (9, 49, 58)


@given(st.integers(1, 200), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_equals_its_formula(n: int, data: st.DataObject, confidence: float) -> None:
    count = data.draw(st.integers(0, n))
    p, z = count / n, norm.isf((1 - confidence) / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))

    estimate = proportion(count, n, whose="patients", confidence=confidence)

    assert estimate.value == p
    np.testing.assert_allclose(ends(estimate), [centre - half_width, centre + half_width], atol=1e-12)


@given(st.integers(1, 200), st.data())
def test_clopper_pearson_interval_equals_the_beta_quantiles(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    low = beta.ppf(0.025, count, n - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, n - count) if count < n else 1.0

    estimate = proportion(count, n, whose="patients", interval="clopper-pearson")

    np.testing.assert_allclose(ends(estimate), [low, high], atol=1e-12)


@given(full_matrices)
def test_values_equal_scikit_learn(counts: Confusion) -> None:
    cells = [counts.true_positive, counts.false_negative, counts.false_positive, counts.true_negative]
    labels, calls = np.repeat([1, 1, 0, 0], cells), np.repeat([1, 0, 1, 0], cells)

    values = {name: estimate.value for name, estimate in all_estimates(counts).items()}

    expected = {
        "sensitivity": recall_score(labels, calls),
        "specificity": recall_score(labels, calls, pos_label=0),
        "accuracy": accuracy_score(labels, calls),
        "ppv": precision_score(labels, calls),
        "npv": precision_score(labels, calls, pos_label=0),
        "f1": f1_score(labels, calls),
        "balanced_accuracy": balanced_accuracy_score(labels, calls),
        "mcc": matthews_corrcoef(labels, calls),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@given(matrices, st.sampled_from(["wilson", "clopper-pearson"]))
def test_every_figure_lies_in_its_interval_and_its_interval_in_range(
    counts: Confusion, interval: IntervalMethod
) -> None:
    for name, estimate in all_estimates(counts, interval).items():
        if estimate.value is None or estimate.low is None or estimate.high is None:
            assert estimate.reason
        else:
            lowest = -1.0 if name == "mcc" else 0.0
            slack = 1e-12
            assert lowest <= estimate.low <= estimate.value + slack, name
            assert estimate.value - slack <= estimate.high <= 1.0, name


@pytest.mark.parametrize(
    ("counts", "missing"),
    [
        pytest.param(
            Confusion(0, 0, 0, 0),
            {"sensitivity", "specificity", "accuracy", "ppv", "npv", "f1", "balanced_accuracy", "mcc"}
            | {"ppv_at_prevalence", "npv_at_prevalence"},
            id="empty site",
        ),
        pytest.param(
            Confusion(0, 2, 8, 0),
            {"sensitivity", "balanced_accuracy", "mcc", "ppv_at_prevalence", "npv_at_prevalence"},
            id="no necrosis",
        ),
        pytest.param(Confusion(0, 0, 8, 2), {"ppv", "mcc", "ppv_at_prevalence"}, id="nobody called positive"),
        pytest.param(Confusion(3, 0, 8, 0), set(), id="no error"),
    ],
)
def test_figures_without_patients_are_not_estimable_and_say_why(counts: Confusion, missing: set[str]) -> None:
    estimates = all_estimates(counts)

    assert {name for name, estimate in estimates.items() if estimate.value is None} == missing
    assert all(estimates[name].reason for name in missing)


@given(matrices)
def test_figures_at_the_samples_own_prevalence_are_the_samples(counts: Confusion) -> None:
    if counts.num_necrosis == 0 or counts.num_recurrence == 0:
        return
    prevalence = counts.num_necrosis / counts.num_patients

    figures = confusion_figures(counts, prevalence=prevalence)

    assert figures.ppv_at_prevalence is not None
    assert figures.npv_at_prevalence is not None
    assert figures.ppv_at_prevalence.value == pytest.approx(figures.ppv.value, abs=1e-12)
    assert figures.npv_at_prevalence.value == pytest.approx(figures.npv.value, abs=1e-12)


def test_rarer_necrosis_lowers_ppv_as_the_formula_says() -> None:
    sensitivity, specificity = 7 / 9, 46 / 49

    at_ten_percent = ppv_at(PAPER, 0.1).value

    assert at_ten_percent == pytest.approx(sensitivity * 0.1 / (sensitivity * 0.1 + (1 - specificity) * 0.9), abs=1e-12)


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, math.nan])
def test_a_prevalence_must_be_a_share(prevalence: float) -> None:
    with pytest.raises(ConfigError, match="prevalence"):
        ppv_at(PAPER, prevalence)
    with pytest.raises(ConfigError, match="prevalence"):
        npv_at(PAPER, prevalence)


def test_correlation_variance_equals_the_delta_method() -> None:
    cells = np.array([30.0, 12.0, 70.0, 18.0])

    def mcc(shares: np.ndarray) -> float:
        tp, fp, tn, fn = shares
        return float((tp * tn - fp * fn) / math.sqrt((tp + fn) * (tn + fp) * (tp + fp) * (tn + fn)))

    shares, step = cells / cells.sum(), 1e-6
    gradient = np.array([(mcc(shares + step * e) - mcc(shares - step * e)) / (2 * step) for e in np.eye(4)])
    variance = (gradient**2 @ shares - (gradient @ shares) ** 2) / cells.sum()
    value = mcc(shares)
    half_width = norm.isf(0.025) * math.sqrt(variance) / (1 - value**2)

    estimate = matthews_correlation(Confusion(30, 12, 70, 18))

    assert ends(estimate) == pytest.approx(
        (math.tanh(math.atanh(value) - half_width), math.tanh(math.atanh(value) + half_width)), abs=1e-6
    )


def test_wilson_covers_95_percent_on_average_over_shares() -> None:
    # Exact coverage, no simulation: averaged over true shares, as the discrete binomial swings around it.
    n = 49
    intervals = np.array([ends(proportion(count, n, whose="patients")) for count in range(n + 1)])
    shares = np.linspace(0.05, 0.95, 181)
    inside = (intervals[:, :1] <= shares) & (shares <= intervals[:, 1:])

    coverage = (binom.pmf(np.arange(n + 1)[:, None], n, shares) * inside).sum(axis=0).mean()

    assert 0.945 <= coverage <= 0.96


@pytest.mark.parametrize("name", ["f1", "balanced_accuracy", "mcc", "ppv_at_prevalence", "npv_at_prevalence"])
def test_other_intervals_cover_93_to_97_percent(name: str) -> None:
    # 160 patients drawn at random: a quarter necrosis, sensitivity .8, specificity .85.
    rng = np.random.default_rng(7)
    truth = all_estimates(Confusion(32, 18, 102, 8))[name].value
    assert truth is not None
    covered = []
    for tp, fp, tn, fn in rng.multinomial(160, [0.2, 0.1125, 0.6375, 0.05], size=1000).tolist():
        low, high = ends(all_estimates(Confusion(tp, fp, tn, fn))[name])
        covered.append(low <= truth <= high)

    assert 0.93 <= np.mean(covered) <= 0.97
