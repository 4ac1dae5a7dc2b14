"""The published figures as data: the patients behind them, and their intervals."""

import pytest

from common.metrics.proportions import proportion
from simulations.paper.published import (
    MODEL_NAMES,
    NUM_TEST,
    PRINTED,
    REMARKS,
    SEQUENCE_NAMES,
    TEST_NECROSIS,
    TEST_RECURRENCE,
    PaperModel,
    Printed,
    SequenceSet,
    counts_of,
    hanley_mcneil_variance,
    published_row,
    rounds_to,
)

IDS = [f"{model}-{sequences}" for model, sequences in PRINTED]


def test_every_model_has_each_sequence_and_resnet10_all_three() -> None:
    wanted = {(model, sequences) for model in MODEL_NAMES for sequences in SEQUENCE_NAMES if sequences != "all"}

    assert set(PRINTED) == wanted | {("resnet10", "all")}


@pytest.mark.parametrize(("cell", "printed"), PRINTED.items(), ids=IDS)
def test_counts_round_to_what_is_printed(cell: tuple[PaperModel, SequenceSet], printed: Printed) -> None:
    counts = counts_of(printed)

    assert round(counts.true_positive / TEST_NECROSIS, 2) == printed.sensitivity
    assert round(counts.true_negative / TEST_RECURRENCE, 2) == printed.specificity
    fits = round(counts.num_right / NUM_TEST, 2) == printed.accuracy
    assert fits == (REMARKS[cell].measure != "accuracy" if cell in REMARKS else True)


def test_one_printed_accuracy_is_no_share_of_58_patients() -> None:
    printed = PRINTED["vgg16", "t2"]

    fitting = [count for count in range(NUM_TEST + 1) if rounds_to(count, NUM_TEST, printed.accuracy)]

    assert fitting == []
    assert counts_of(printed).num_right / NUM_TEST == pytest.approx(0.845, abs=5e-4)


def test_shares_have_wilson_s_interval() -> None:
    row = published_row("resnet10", "all")

    assert row is not None
    assert (row.counts.true_positive, row.counts.true_negative) == (7, 46)
    assert row.sensitivity == proportion(7, 9, whose="patients")
    assert str(row.sensitivity) == "0.778 [0.453, 0.937]"


def test_hanley_and_mcneil_s_own_example() -> None:
    # Radiology 143 (1982) 29, table II: area 0.893 of 58 normal and 51 abnormal images, standard error 0.032.
    variance = hanley_mcneil_variance(0.893, num_necrosis=51, num_recurrence=58)

    assert variance**0.5 == pytest.approx(0.0325, abs=5e-4)


def test_hanley_and_mcneil_of_exponential_scores_is_their_variance() -> None:
    # One necrosis, one recurrence: the AUC of the pair is 0 or 1, with variance A(1 − A).
    assert hanley_mcneil_variance(0.8, num_necrosis=1, num_recurrence=1) == pytest.approx(0.16)


@pytest.mark.parametrize("cell", PRINTED, ids=IDS)
def test_every_published_figure_lies_in_its_interval(cell: tuple[PaperModel, SequenceSet]) -> None:
    row = published_row(*cell)

    assert row is not None
    for figure in (row.accuracy, row.sensitivity, row.specificity, row.auc):
        assert figure.value is not None
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high


def test_what_the_paper_does_not_have_is_none() -> None:
    assert published_row("vgg16", "all") is None
