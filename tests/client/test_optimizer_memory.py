"""The optimiser's state from round to round: what is restored goes on as if nothing had been in between."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from client.optimizer_memory import keep_optimizer, restore_optimizer
from client.site_memory import SiteMemory

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS = [
    pytest.param(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), id="sgd"),
    pytest.param(lambda parameters: torch.optim.AdamW(parameters, lr=0.1), id="adamw"),
]


def memory_in(cache: Path, run: str = "run") -> SiteMemory:
    return SiteMemory(cache, run=run, study_digest="0" * 64)


def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_restored_optimizer_goes_on_like_one_that_never_stopped(tmp_path: Path, make: Make) -> None:
    memory = memory_in(tmp_path)
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    uninterrupted, first = make([one]), make([other])
    step(one, uninterrupted)
    step(other, first)
    keep_optimizer(first, memory, "optimizer", round=1)
    second = make([other])

    restored = restore_optimizer(second, memory, "optimizer", round=2)
    step(one, uninterrupted)
    step(other, second)

    assert restored
    torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_fresh_optimizer_takes_another_step_than_a_restored_one(tmp_path: Path, make: Make) -> None:
    memory = memory_in(tmp_path)
    kept, fresh = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first = make([kept])
    for _ in range(3):
        kept.grad = torch.full_like(kept, -5.0)
        first.step()
    keep_optimizer(first, memory, "optimizer", round=1)
    kept.data.copy_(fresh.data)
    second = make([kept])
    restore_optimizer(second, memory, "optimizer", round=2)

    step(kept, second)
    step(fresh, make([fresh]))

    assert not torch.equal(kept, fresh)


def test_learning_rate_is_that_of_the_new_round(tmp_path: Path) -> None:
    memory, parameter = memory_in(tmp_path), nn.Parameter(torch.ones(1))
    first = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    step(parameter, first)
    keep_optimizer(first, memory, "optimizer", round=1)

    second = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    restore_optimizer(second, memory, "optimizer", round=2)

    assert second.param_groups[0]["lr"] == 0.1


def test_round_that_is_run_again_begins_from_the_same_state(tmp_path: Path) -> None:
    memory, parameter = memory_in(tmp_path), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    momenta = []
    for round in (1, 2):
        step(parameter, optimizer)
        keep_optimizer(optimizer, memory, "optimizer", round=round)

    for _ in range(2):
        again = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
        assert restore_optimizer(again, memory, "optimizer", round=2)
        momenta.append(again.state_dict()["state"][0]["momentum_buffer"].clone())
        step(parameter, again)
        keep_optimizer(again, memory, "optimizer", round=2)

    assert momenta == [torch.tensor([2.0]), torch.tensor([2.0])]


def test_no_state_before_the_first_round_nor_after_a_missed_one_nor_of_another_run(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter])
    step(parameter, optimizer)
    memory = memory_in(tmp_path)
    keep_optimizer(optimizer, memory, "optimizer", round=1)
    fresh = torch.optim.AdamW([parameter])

    assert not restore_optimizer(fresh, memory, "optimizer", round=1)
    assert not restore_optimizer(fresh, memory, "optimizer", round=3)
    assert not restore_optimizer(fresh, memory_in(tmp_path, "other"), "optimizer", round=2)
    assert fresh.state_dict()["state"] == {}


def test_optimizers_of_the_global_and_of_the_site_s_own_model_do_not_mix(tmp_path: Path) -> None:
    memory, parameter = memory_in(tmp_path), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    step(parameter, optimizer)

    keep_optimizer(optimizer, memory, "personal-optimizer", round=1)

    assert not restore_optimizer(optimizer, memory, "optimizer", round=2)
    assert restore_optimizer(optimizer, memory, "personal-optimizer", round=2)
