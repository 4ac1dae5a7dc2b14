"""What a site that has a model of its own chooses for it: the round and the threshold, on its validation patients."""

from pathlib import Path

import numpy as np
import pytest

from client.own_choice import best_round, choose_own, consider_round
from client.site_memory import SiteMemory
from common.messages import bins_of
from common.study import parse_study
from common.tasks import OwnChoice
from tests.tiny_hospitals import study_text

STUDY = parse_study(study_text(), origin="study")
BINS = bins_of(STUDY)
LABELS = np.array([0, 0, 1, 1], dtype=np.int64)
WRONG, HALF, RIGHT, SURER = (
    [2.0, 1.0, -1.0, -2.0],
    [0.0, 2.0, 1.0, 3.0],
    [-1.0, -0.5, 0.5, 1.0],
    [-2.0, -2.0, 2.0, 2.0],
)


def memory_in(cache: Path) -> SiteMemory:
    return SiteMemory(cache, run="run", study_digest="0" * 64, run_id="1")


def consider(memory: SiteMemory, margins: list[float], *, round: int) -> None:
    labels = LABELS[: len(margins)]
    consider_round(memory, np.array(margins), labels, bins=BINS, round=round)


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        pytest.param([WRONG, RIGHT, HALF], 2, id="highest AUC"),
        pytest.param([RIGHT, SURER, RIGHT], 2, id="lower loss of two alike"),
        pytest.param([HALF, RIGHT, RIGHT], 2, id="earlier of two that are the same"),
        pytest.param([WRONG, HALF, RIGHT], 3, id="the last one"),
        pytest.param([[], [], []], 3, id="no validation patients"),
        pytest.param([[-1.0, -1.0], [-2.0, -2.0], [1.0, 1.0]], 2, id="one class alone, by its loss"),
    ],
)
def test_best_round_is_the_one_of_the_site_s_own_validation(
    rounds: list[list[float]], best: int, tmp_path: Path
) -> None:
    for number, margins in enumerate(rounds, start=1):
        consider(memory_in(tmp_path), margins, round=number)

    assert best_round(memory_in(tmp_path), round=3) == best


def test_round_that_is_run_again_after_the_next_has_begun_chooses_alike(tmp_path: Path) -> None:
    memory = memory_in(tmp_path)
    for number, margins in enumerate([HALF, WRONG, RIGHT], start=1):
        consider(memory, margins, round=number)
        memory.forget(round=number + 1, best_round=best_round(memory, round=number))

    consider(memory, WRONG, round=3)  # another outcome of the round that is run again

    assert best_round(memory, round=3) == 1


def test_threshold_is_that_of_the_study_s_rule() -> None:
    threshold, choice = choose_own(np.array(RIGHT), LABELS, study=STUDY, bins=BINS, round=2, min_cell=2)

    assert threshold is not None
    assert -0.5 < threshold <= 0.5
    assert choice == OwnChoice(2, threshold, "")


def test_threshold_of_few_patients_is_used_and_not_shown() -> None:
    threshold, choice = choose_own(np.array(RIGHT), LABELS, study=STUDY, bins=BINS, round=2, min_cell=3)

    assert threshold is not None
    assert choice == OwnChoice(2, None, "withheld")


def test_without_the_class_that_the_rule_needs_there_is_no_threshold() -> None:
    threshold, choice = choose_own(np.array([1.0, 2.0]), LABELS[:2], study=STUDY, bins=BINS, round=2, min_cell=1)

    assert threshold is None
    assert choice == OwnChoice(2, None, "no_class")


def test_fixed_threshold_is_no_secret() -> None:
    spec = {"rule": "fixed", "value": 0.25}
    fixed = parse_study(study_text(evaluation={"operating_point": spec}), origin="study")

    threshold, choice = choose_own(np.array(RIGHT), LABELS, study=fixed, bins=BINS, round=1, min_cell=99)

    assert threshold == pytest.approx(0.25)
    assert choice == OwnChoice(1, 0.25, "")
