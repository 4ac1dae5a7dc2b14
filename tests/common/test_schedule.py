"""The learning rate over the rounds."""

import pytest

from common.schedule import learning_rate_in_round
from common.study import TrainingSpec


def training(schedule: str) -> TrainingSpec:
    return TrainingSpec.model_validate({"learning_rate": 0.8, "batch_size": 4, "local_epochs": 1, "schedule": schedule})


def test_constant_rate_stays() -> None:
    rates = [learning_rate_in_round(training("constant"), round=round, num_rounds=4) for round in (1, 2, 3, 4)]

    assert rates == [0.8, 0.8, 0.8, 0.8]


def test_cosine_begins_at_the_study_rate_and_is_half_of_it_in_the_middle() -> None:
    rates = [learning_rate_in_round(training("cosine"), round=round, num_rounds=4) for round in (1, 2, 3, 4)]

    # 0.8 * (1 + cos(k pi / 4)) / 2 for k = 0, 1, 2, 3
    assert rates == pytest.approx([0.8, 0.682842712, 0.4, 0.117157288], rel=1e-8)


def test_only_round_of_a_study_has_the_full_rate() -> None:
    assert learning_rate_in_round(training("cosine"), round=1, num_rounds=1) == 0.8
