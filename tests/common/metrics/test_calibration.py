"""Calibration figures against scikit-learn, against fits on the scores themselves, and where there is no answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from common.metrics.bins import Histogram, MarginBins
from common.metrics.calibration import (
    calibration_figures,
    fit_in_the_large,
    fit_recalibration,
    fit_temperature,
)
from common.metrics.estimate import Estimate
from common.metrics.site_statistics import SiteStatistics

FINE = MarginBins(num_bins=2048, limit=6.0)
BINS = MarginBins(num_bins=4, limit=2.0)


def drawn(num: int, *, intercept: float, slope: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Margins, and labels with logit P(necrosis) = intercept + slope·margin."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(-0.5, 2.0, num)
    return margins, (rng.random(num) < expit(intercept + slope * margins)).astype(np.int64)


def statistics_of(margins: NDArray[np.float64], labels: NDArray[np.int64]) -> SiteStatistics:
    return SiteStatistics.from_margins(margins, labels, bins=FINE, threshold=None)


def value_of(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


@given(st.integers(2, 60), st.integers(0, 2**32))
def test_brier_and_log_loss_equal_scikit_learn(num: int, seed: int) -> None:
    margins, labels = drawn(num, intercept=0.3, slope=0.8, seed=seed)
    p = expit(margins)

    figures = calibration_figures(statistics_of(margins, labels))

    assert value_of(figures.brier) == pytest.approx(brier_score_loss(labels, p, labels=[0, 1]), abs=2e-6)
    assert value_of(figures.log_loss) == pytest.approx(log_loss(labels, p, labels=[0, 1]), abs=2e-6)


def test_calibration_error_counted_by_hand() -> None:
    # p = .25 three times with one necrosis, p = .75 once with necrosis: (|.75 − 1| + |.75 − 1|)/4 = .125
    margins = np.log([1 / 3, 1 / 3, 1 / 3, 3.0])

    figures = calibration_figures(statistics_of(margins, np.array([0, 0, 1, 1])))

    assert value_of(figures.expected_calibration_error) == pytest.approx(0.125, abs=1e-6)
    assert value_of(figures.observed_minus_expected) == pytest.approx(0.5 - 1.5 / 4, abs=1e-6)
    tenth = figures.tenths[2]
    assert (tenth.low, tenth.observed.value, tenth.observed.num) == (0.2, 1 / 3, 3)
    assert tenth.mean_probability == pytest.approx(0.25, abs=1e-6)
    assert figures.tenths[0].mean_probability is None


def test_observed_minus_expected_has_students_interval_of_the_differences() -> None:
    margins, labels = drawn(40, intercept=0.5, slope=1.0, seed=3)
    difference = labels - expit(margins)
    half_width = 2.0226909 * difference.std(ddof=1) / np.sqrt(40)  # t(.975; 39)

    estimate = calibration_figures(statistics_of(margins, labels)).observed_minus_expected

    assert ends(estimate) == pytest.approx((difference.mean() - half_width, difference.mean() + half_width), abs=1e-5)


def test_binned_fit_equals_the_fit_on_the_scores() -> None:
    margins, labels = drawn(400, intercept=-0.4, slope=0.6, seed=5)
    on_scores = LogisticRegression(C=np.inf, tol=1e-10).fit(margins[:, None], labels)

    intercept, slope = fit_recalibration(statistics_of(margins, labels).histogram, FINE)

    assert value_of(intercept) == pytest.approx(on_scores.intercept_[0], abs=2e-3)
    assert value_of(slope) == pytest.approx(on_scores.coef_[0, 0], abs=2e-3)


def test_binned_fit_solves_the_likelihood_equations_on_the_bins() -> None:
    histogram: Histogram = ((7, 5, 2, 1), (1, 3, 4, 6))
    middles = BINS.representatives()
    patients = np.sum(histogram, axis=0)

    intercept, slope = fit_recalibration(histogram, BINS)

    residual = np.array(histogram[1]) - patients * expit(value_of(intercept) + value_of(slope) * middles)
    np.testing.assert_allclose([residual.sum(), residual @ middles], 0.0, atol=1e-6)


def test_shift_alone_is_what_calibration_in_the_large_finds() -> None:
    margins, labels = drawn(20000, intercept=0.7, slope=1.0, seed=11)

    estimate = fit_in_the_large(statistics_of(margins, labels).histogram, FINE)

    low, high = ends(estimate)
    assert low < 0.7 < high
    assert high - low < 0.15


def test_temperature_undoes_an_overconfident_model() -> None:
    margins, labels = drawn(20000, intercept=0.0, slope=1.0, seed=12)

    estimate = fit_temperature(statistics_of(3.0 * margins, labels).histogram, FINE)

    low, high = ends(estimate)
    assert low < 3.0 < high
    assert high - low < 0.3


@pytest.mark.parametrize("fit", ["in_the_large", "slope", "temperature"])
def test_intervals_cover_93_to_97_percent(fit: str) -> None:
    covered = []
    for seed in range(600):
        margins, labels = drawn(300, intercept=0.0, slope=1.0, seed=1000 + seed)
        histogram = statistics_of(margins, labels).histogram
        match fit:
            case "in_the_large":
                low, high = ends(fit_in_the_large(histogram, FINE))
                covered.append(low <= 0.0 <= high)
            case "slope":
                low, high = ends(fit_recalibration(histogram, FINE)[1])
                covered.append(low <= 1.0 <= high)
            case _:
                low, high = ends(fit_temperature(histogram, FINE))
                covered.append(low <= 1.0 <= high)

    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize(
    ("histogram", "slope", "in_the_large", "temperature"),
    [
        pytest.param(((0, 0, 0, 0), (0, 0, 0, 0)), "class", "class", "no patients", id="empty"),
        pytest.param(((3, 1, 0, 0), (0, 0, 0, 0)), "class", "class", "right side", id="one class"),
        pytest.param(((2, 2, 0, 0), (0, 0, 1, 2)), "separates", None, "right side", id="separated at even odds"),
        pytest.param(((2, 2, 2, 0), (0, 0, 0, 2)), "separates", None, None, id="separated elsewhere"),
        pytest.param(((0, 4, 0, 0), (0, 2, 0, 0)), "separates", None, None, id="all tied"),
        pytest.param(((0, 1, 1, 2), (2, 1, 1, 0)), None, None, "right class", id="wrong way round"),
        pytest.param(((3, 2, 1, 0), (0, 1, 2, 3)), None, None, None, id="all estimable"),
    ],
)
def test_a_fit_without_a_maximum_is_not_estimable_and_says_why(
    histogram: Histogram, slope: str | None, in_the_large: str | None, temperature: str | None
) -> None:
    fits = [
        (fit_recalibration(histogram, BINS)[0], slope),
        (fit_recalibration(histogram, BINS)[1], slope),
        (fit_in_the_large(histogram, BINS), in_the_large),
        (fit_temperature(histogram, BINS), temperature),
    ]

    for estimate, reason in fits:
        assert (estimate.value is None) == (reason is not None)
        if reason is not None:
            assert estimate.reason is not None
            assert reason in estimate.reason


@pytest.mark.filterwarnings("error")
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3) | st.floats(allow_nan=False), st.integers(0, 1)), max_size=15),
    st.sampled_from([MarginBins(256, 6.0), MarginBins(32, 5.0), MarginBins(8, 20.0), MarginBins(2, 0.5)]),
)
def test_any_scores_give_figures_without_a_warning(patients: list[tuple[float, int]], bins: MarginBins) -> None:
    margins = np.array([margin for margin, _ in patients])
    labels = np.array([label for _, label in patients], dtype=np.int64)
    statistics = SiteStatistics.from_margins(margins, labels, bins=bins, threshold=None)

    figures = calibration_figures(statistics)
    temperature = fit_temperature(statistics.histogram, bins)

    for estimate in [*[each for each in vars(figures).values() if isinstance(each, Estimate)], temperature]:
        numbers = [each for each in (estimate.value, estimate.low, estimate.high) if each is not None]
        assert np.isfinite(numbers).all()
        assert numbers == [] or min(numbers) == (estimate.value if estimate.low is None else estimate.low)
