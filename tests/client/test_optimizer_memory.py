"""The optimiser's state from round to round: what is restored goes on as if nothing had been in between."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from client.optimizer_memory import OptimizerMemory

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS = [
    pytest.param(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), id="sgd"),
    pytest.param(lambda parameters: torch.optim.AdamW(parameters, lr=0.1), id="adamw"),
]


def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_restored_optimizer_goes_on_like_one_that_never_stopped(tmp_path: Path, make: Make) -> None:
    memory = OptimizerMemory(tmp_path, "run")
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    uninterrupted, first = make([one]), make([other])
    step(one, uninterrupted)
    step(other, first)
    memory.keep(first, round=1)
    second = make([other])

    restored = memory.restore(second, round=2)
    step(one, uninterrupted)
    step(other, second)

    assert restored
    torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_fresh_optimizer_takes_another_step_than_a_restored_one(tmp_path: Path, make: Make) -> None:
    memory = OptimizerMemory(tmp_path, "run")
    kept, fresh = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first = make([kept])
    for _ in range(3):
        kept.grad = torch.full_like(kept, -5.0)
        first.step()
    memory.keep(first, round=1)
    kept.data.copy_(fresh.data)
    second = make([kept])
    memory.restore(second, round=2)

    step(kept, second)
    step(fresh, make([fresh]))

    assert not torch.equal(kept, fresh)


def test_learning_rate_is_that_of_the_new_round(tmp_path: Path) -> None:
    memory, parameter = OptimizerMemory(tmp_path, "run"), nn.Parameter(torch.ones(1))
    first = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    step(parameter, first)
    memory.keep(first, round=1)

    second = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    memory.restore(second, round=2)

    assert second.param_groups[0]["lr"] == 0.1


def test_round_that_is_run_again_begins_from_the_same_state(tmp_path: Path) -> None:
    memory, parameter = OptimizerMemory(tmp_path, "run"), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
    momenta = []
    for round in (1, 2):
        step(parameter, optimizer)
        memory.keep(optimizer, round=round)

    for _ in range(2):
        again = torch.optim.SGD([parameter], lr=0.5, momentum=0.9)
        assert memory.restore(again, round=2)
        momenta.append(again.state_dict()["state"][0]["momentum_buffer"].clone())
        step(parameter, again)
        memory.keep(again, round=2)

    assert momenta == [torch.tensor([2.0]), torch.tensor([2.0])]


def test_no_state_before_the_first_round_nor_after_a_missed_one_nor_of_another_run(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter])
    step(parameter, optimizer)
    memory = OptimizerMemory(tmp_path, "run")
    memory.keep(optimizer, round=1)
    fresh = torch.optim.AdamW([parameter])

    assert not memory.restore(fresh, round=1)
    assert not memory.restore(fresh, round=3)
    assert not OptimizerMemory(tmp_path, "other").restore(fresh, round=2)
    assert fresh.state_dict()["state"] == {}


def test_damaged_state_counts_as_none(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter])
    step(parameter, optimizer)
    memory = OptimizerMemory(tmp_path, "run")
    memory.keep(optimizer, round=1)
    (file,) = tmp_path.rglob("round-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])

    assert not memory.restore(torch.optim.AdamW([parameter]), round=2)


def test_only_the_last_two_rounds_are_kept_and_nothing_of_an_earlier_run_of_that_name(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter])
    step(parameter, optimizer)
    memory = OptimizerMemory(tmp_path, "run")

    memory.keep(optimizer, round=9)
    for round in (1, 2, 3):
        memory.keep(optimizer, round=round)

    names = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert names == ["round-00002.safetensors", "round-00003.safetensors"]
