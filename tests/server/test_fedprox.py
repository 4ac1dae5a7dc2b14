"""Adaptive FedProx: a scripted sequence of losses gives the expected strengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.bins import MarginBins
from common.metrics.site_statistics import SiteStatistics
from server.fedprox import ProximalStrength, adapted, first_strength, loss_standard_error

BINS = MarginBins(num_bins=32, limit=3.0)


def validation(loss: float, *, patients_a_class: int = 50) -> SiteStatistics:
    """Patients who all have the same loss, so that any change is beyond the standard error."""
    margin = -np.log(np.expm1(loss))
    labels = np.array([0, 1] * patients_a_class)
    return SiteStatistics.from_margins(np.where(labels == 1, margin, -margin), labels, bins=BINS, threshold=None)


def strengths(mu: float, validations: list[SiteStatistics | None]) -> list[float]:
    strength, found = first_strength(mu), []
    for each in validations:
        strength = adapted(strength, each)
        found.append(strength.mu)
    return found


SEQUENCES: dict[str, tuple[float, list[float | None], list[float]]] = {
    "first loss only sets the reference": (0.01, [0.7], [0.01]),
    "a rise doubles, a fall halves": (0.01, [0.7, 0.8, 0.6], [0.01, 0.02, 0.01]),
    "from 0 up to the least strength": (0.0, [0.7, 0.8, 0.9], [0.0, 0.001, 0.002]),
    "below the least strength is 0": (0.001, [0.7, 0.6, 0.5], [0.001, 0.0, 0.0]),
    "never above 1": (0.75, [0.3, 0.4, 0.5], [0.75, 1.0, 1.0]),
    "a study's strength above 1 begins at 1": (4.0, [0.5, 0.4], [1.0, 0.5]),
    "a round without a pooled figure changes nothing": (0.01, [0.7, None, 0.8], [0.01, 0.01, 0.02]),
}


@pytest.mark.parametrize(("mu", "losses", "expected"), SEQUENCES.values(), ids=SEQUENCES)
def test_strength_follows_a_scripted_loss(mu: float, losses: list[float | None], expected: list[float]) -> None:
    found = strengths(mu, [None if loss is None else validation(loss) for loss in losses])

    assert found == pytest.approx(expected)


def spread(mean_margin: float) -> SiteStatistics:
    """100 patients whose margins are spread, so that the mean loss has a standard error."""
    rng = np.random.default_rng(0)
    labels = np.array([0, 1] * 50)
    margins = rng.standard_normal(100) + mean_margin * (2 * labels - 1)
    return SiteStatistics.from_margins(margins, labels, bins=BINS, threshold=None)


def test_change_within_one_standard_error_moves_nothing() -> None:
    first, second = spread(0.5), spread(0.47)
    error = loss_standard_error(first)
    assert error is not None
    assert 0 < (second.loss_sum - first.loss_sum) / 2**20 / 100 < error

    assert strengths(0.01, [first, second]) == [0.01, 0.01]


def test_drift_in_steps_within_the_dead_band_is_noticed_in_the_end() -> None:
    drifting: list[SiteStatistics | None] = [spread(0.5 - 0.02 * step) for step in range(10)]

    found = strengths(0.01, drifting)

    assert found[1] == 0.01
    assert found[-1] > 0.01


def test_loss_of_other_patients_is_a_new_reference() -> None:
    strength = adapted(adapted(ProximalStrength(0.01), validation(0.5)), validation(0.9, patients_a_class=40))

    assert strength.mu == 0.01
    assert strength.num_patients == (40, 40)
    assert adapted(strength, validation(0.8, patients_a_class=40)).mu == 0.005


@given(st.lists(st.floats(-6, 6), min_size=2, max_size=200), st.integers(0, 2**32 - 1))
def test_standard_error_from_counts_is_near_that_from_the_losses(margins: list[float], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, len(margins))
    bins = MarginBins(num_bins=1024, limit=3.0)
    statistics = SiteStatistics.from_margins(np.array(margins), labels, bins=bins, threshold=None)
    losses = np.logaddexp(0, np.where(labels == 1, -1, 1) * np.array(margins))

    error = loss_standard_error(statistics)

    assert error == pytest.approx(losses.std(ddof=1) / np.sqrt(len(losses)), abs=0.02)


def test_one_patient_has_no_standard_error() -> None:
    one = SiteStatistics.from_margins(np.array([1.0]), np.array([1]), bins=BINS, threshold=None)

    assert loss_standard_error(one) is None
    assert strengths(0.01, [one, one]) == [0.01, 0.01]
