"""The class signal of the phantom is what its specification says."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from simulations.phantom.lesion import (
    Looks,
    atypical_auc,
    draw_looks,
    log_likelihood_ratio,
    log_likelihood_ratios,
)

N = 20_000
LABELS = np.repeat([1, 0], N)


def draw(separation: float, seed: int = 0) -> Looks:
    return draw_looks(LABELS, separation, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("separation", "expected"),
    [(0.0, 0.5), (0.75, 0.835), (1.0, 0.903), (1.25, 0.947), (1.5, 0.974), (2.0, 0.995)],
    ids=lambda value: f"{value}",
)
def test_best_possible_auc_is_that_of_the_specification(separation: float, expected: float) -> None:
    score = log_likelihood_ratio(draw(separation), separation)

    assert roc_auc_score(LABELS, score) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("pattern", 0.72),
        ("quotient", 0.73),
        ("feathering_mm", 0.71),
        ("contrast_mm", 0.69),
        ("oedema_ratio", 0.62),
        ("subependymal", 0.61),
        ("callosal", 0.56),
        ("num_foci", 0.56),
        ("diameter_mm", 0.55),
    ],
)
def test_each_parameter_alone_tells_as_much_as_the_specification_says(parameter: str, expected: float) -> None:
    ratios = log_likelihood_ratios(draw(1.0), 1.0)

    assert roc_auc_score(LABELS, ratios[parameter]) == pytest.approx(expected, abs=0.02)


def test_the_ratio_is_that_of_the_densities_it_was_drawn_from() -> None:
    # E[p(x | recurrence) / p(x | necrosis)] over necrosis is 1 for a true likelihood ratio, of every parameter.
    ratios = log_likelihood_ratios(draw(1.0), 1.0)

    for name, ratio in ratios.items():
        assert np.exp(-ratio[LABELS == 1]).mean() == pytest.approx(1.0, abs=0.05), name
        assert np.exp(ratio[LABELS == 0]).mean() == pytest.approx(1.0, abs=0.05), name


def test_atypical_cases_lower_the_auc_as_the_formula_says() -> None:
    generator = np.random.default_rng(1)
    look = np.where(generator.random(2 * N) < 0.2, 1 - LABELS, LABELS)

    score = log_likelihood_ratio(draw_looks(look, 1.0, generator), 1.0)

    assert roc_auc_score(LABELS, score) == pytest.approx(atypical_auc(0.903, 0.2), abs=0.01)


def test_drawn_values_have_the_medians_and_limits_of_the_table() -> None:
    looks = draw(1.0)
    necrosis, recurrence = LABELS == 1, LABELS == 0

    assert np.median(looks.feathering_mm[necrosis]) == pytest.approx(2.4, rel=0.03)
    assert np.median(looks.oedema_ratio[recurrence]) == pytest.approx(2.0, rel=0.03)
    assert looks.contrast_mm[necrosis].mean() == pytest.approx(0.33, abs=0.01)
    assert looks.quotient[recurrence].mean() == pytest.approx(0.55, abs=0.01)
    assert looks.quotient[recurrence].std() == pytest.approx(0.17, abs=0.01)
    assert looks.diameter_mm.min() >= 10
    assert looks.diameter_mm.max() <= 70
    assert (looks.pattern[recurrence] == 0).mean() == pytest.approx(0.42, abs=0.015)
    assert looks.subependymal[necrosis].mean() == pytest.approx(0.067, abs=0.01)
