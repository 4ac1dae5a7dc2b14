"""A site's evaluation: patients are counted, not exams, and small cells stay at the site."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.evaluation import disclose, margins_of_exams, mean_per_patient
from common.errors import DisclosureError, TrainingError
from common.metrics.bins import MarginBins
from common.models import build_model
from common.study import ModelSpec
from common.tasks import Evaluation

BINS = MarginBins(num_bins=8, limit=3.0)


class SumOfVoxels(nn.Module):
    """Logits (0, sum over the exam), so that a margin can be checked in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        sums = images.flatten(1).sum(dim=1) * self.scale
        return torch.stack([torch.zeros_like(sums), sums], dim=1)


def shown(labels: list[int], **changes: Any) -> Evaluation:
    settings: dict[str, Any] = {
        "split": "validation",
        "bins": BINS,
        "threshold": None,
        "min_cell": 3,
        "max_bins": 32,
        "cohort_digest": "0" * 64,
    }
    margins = np.linspace(-1, 1, len(labels))
    return disclose(margins, np.array(labels, dtype=np.int64), **(settings | changes))


def test_margin_is_the_logit_of_necrosis_minus_that_of_recurrence_in_float64() -> None:
    images = torch.stack([torch.full((1, 2, 2, 2), value) for value in (0.5, -1.0, 2.0)])

    margins = margins_of_exams(SumOfVoxels(), images, batch_size=2)

    np.testing.assert_array_equal(margins, [4.0, -8.0, 16.0])
    assert margins.dtype == np.float64


def test_evaluation_changes_neither_model_nor_its_statistics() -> None:
    model = build_model(ModelSpec(width=0.125, norm="batch"), num_sequences=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    margins_of_exams(model, torch.randn(3, 1, 16, 16, 16), batch_size=3)

    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_split_without_patients_has_no_margins(norm: Any) -> None:
    model = build_model(ModelSpec(width=0.125, num_groups=4, norm=norm), num_sequences=3)

    margins = margins_of_exams(model, torch.zeros(0, 3, 16, 16, 16), batch_size=4)

    assert mean_per_patient(margins, np.zeros(0, dtype=np.int64), 0).shape == (0,)


def test_model_that_gives_no_number_is_refused_with_the_count() -> None:
    images = torch.stack([torch.full((1, 2, 2, 2), value) for value in (0.5, float("nan"), 2.0)])

    with pytest.raises(TrainingError, match="1 of 3 margins are not finite"):
        margins_of_exams(SumOfVoxels(), images, batch_size=2)


def test_patient_with_two_exams_counts_once_with_their_mean() -> None:
    margins = mean_per_patient(np.array([1.0, 3.0, -5.0]), np.array([0, 0, 1]), 2)

    np.testing.assert_array_equal(margins, [2.0, -5.0])


def test_large_enough_classes_are_shown() -> None:
    evaluation = shown([0, 0, 0, 1, 1, 1], threshold=0.0)

    assert evaluation.withheld == ""
    assert evaluation.statistics is not None
    assert evaluation.statistics.num_patients == (3, 3)
    assert evaluation.statistics.confusion is not None


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        pytest.param([0, 0, 0, 1, 1], "min_cell", id="one class too small"),
        pytest.param([0, 1], "min_cell", id="both classes too small"),
        pytest.param([0, 0], "min_cell", id="the only class too small"),
        pytest.param([], "no_patients", id="nobody"),
    ],
)
def test_small_classes_stay_at_the_site_and_the_reason_is_said(labels: list[int], reason: str) -> None:
    evaluation = shown(labels)

    assert evaluation.withheld == reason
    assert evaluation.statistics is None


def test_site_with_one_class_of_sufficient_size_is_shown() -> None:
    evaluation = shown([0, 0, 0])

    assert evaluation.statistics is not None
    assert evaluation.statistics.num_patients == (3, 0)


def test_finer_bins_than_the_site_allows_are_refused() -> None:
    with pytest.raises(DisclosureError, match=r"in 64 bins, this site shows at most 32 .* lower evaluation\.num_bins"):
        shown([0, 0, 0, 1, 1, 1], bins=MarginBins(num_bins=64, limit=3.0))
