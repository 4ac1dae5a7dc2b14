"""Faster steps: they train what plain float32 trains, and a way that fails is left without ending a round."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from client.acceleration import calibration
from client.acceleration.calibration import StepChoice, StepChoices, fastest, measure, num_steps_of_run
from client.acceleration.plan import PLAIN, StepPlan, possible_plans
from client.acceleration.pooling import QuickPooling
from client.acceleration.small_convolutions import SmallConvolutions, small_convolution
from client.evaluation import margins_of_exams
from client.local_round import LocalRound
from client.site_memory import SiteMemory
from client.training import TrainingOutcome, TrainingSet, build_optimizer, round_generator, train_locally
from common.errors import TrainingError
from common.model_state import state_digest
from common.models import build_model, get_state, initial_state, set_state
from common.study import AugmentationSpec, ModelSpec, Study, TrainingSpec, parse_study
from common.tasks import TrainTask
from tests.tiny_hospitals import study_text

CPU = torch.device("cpu")
FAST = possible_plans(CPU)[1:]
GROUP, BATCH = ModelSpec(width=0.25, num_groups=4), ModelSpec(width=0.25, norm="batch")


def study(**training: Any) -> Study:
    text = study_text(training={"precision": "auto", "local_epochs": 50, **training}, rounds=10)
    return parse_study(text, origin="study")


def patients(num_exams: int = 8) -> TrainingSet:
    images = torch.randn(num_exams, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(num_exams) % 2
    images[labels == 1] += 0.5
    return TrainingSet(images, labels, (4.0, 4.0, 4.0))


def trained(plan: StepPlan, spec: ModelSpec, training: TrainingSpec) -> tuple[nn.Module, list[float]]:
    """A network after some steps, and the loss of each."""
    network = build_model(spec, num_sequences=3, generator=torch.Generator().manual_seed(1))
    optimizer = build_optimizer(network, training, learning_rate=training.learning_rate, fused=plan.fused)
    generator = round_generator(seed=1, site="a", round=1)
    one_step = training.model_copy(update={"local_steps": 1})
    losses = [
        train_locally(
            network,
            optimizer,
            patients(),
            training=one_step,
            augmentation=AugmentationSpec(),
            class_weights=(1.0, 1.0),
            generator=generator,
            plan=plan,
        ).mean_loss
        for _ in range(training.local_steps or 1)
    ]
    return network, losses


# --- the plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", FAST, ids=lambda plan: plan.name)
@pytest.mark.parametrize("spec", [GROUP, BATCH], ids=["group", "batch"])
def test_faster_plan_trains_what_plain_float32_trains(plan: StepPlan, spec: ModelSpec) -> None:
    training = TrainingSpec(optimizer="sgd", learning_rate=2e-3, batch_size=8, local_steps=6)

    network, losses = trained(plan, spec, training)
    plain, plain_losses = trained(PLAIN, spec, training)

    assert min(plain_losses) < plain_losses[0]
    np.testing.assert_allclose(losses, plain_losses, atol=0.05)
    start = build_model(spec, num_sequences=3, generator=torch.Generator().manual_seed(1))
    begin = nn.utils.parameters_to_vector(start.parameters())
    update, plain_update = (nn.utils.parameters_to_vector(model.parameters()) - begin for model in (network, plain))
    # Of the whole update, since bfloat16 may turn the small one of a single layer by more. Batch norm over few voxels
    # makes more of a rounded number than group norm does.
    assert functional.cosine_similarity(update, plain_update, dim=0) > (0.9 if spec is GROUP else 0.8)


@pytest.mark.parametrize("plan", FAST, ids=lambda plan: plan.name)
def test_all_that_is_kept_is_float32_in_every_plan(plan: StepPlan) -> None:
    network = build_model(BATCH, num_sequences=3)
    optimizer = build_optimizer(
        network, TrainingSpec(learning_rate=1e-3, batch_size=2, local_steps=1), learning_rate=1e-3, fused=plan.fused
    )

    logits = plan.logits(network, torch.randn(2, 3, 16, 16, 16))
    functional.cross_entropy(logits, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    optimizer.step()

    kept = [logits, *network.parameters(), *(p.grad for p in network.parameters() if p.grad is not None)]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    kept += [buffer for name, buffer in network.named_buffers() if "running" in name]
    assert {value.dtype for value in kept} == {torch.float32}
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_plan_says_in_words_what_it_does() -> None:
    assert PLAIN.name == "fp32"
    assert StepPlan(bf16=True, channels_last=True, fused=True).name == "bf16 channels_last fused"


def test_bfloat16_on_the_cpu_never_goes_without_products() -> None:
    assert all(plan.products for plan in possible_plans(CPU) if plan.bf16)


# --- convolutions over few voxels -------------------------------------------------------------------------------------


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    extents=st.tuples(*[st.integers(1, 7)] * 3),
    kernel=st.sampled_from([1, 3, 7]),
    strides=st.tuples(*[st.integers(1, 2)] * 3),
    bias=st.booleans(),
)
def test_small_convolution_is_the_convolution(
    extents: tuple[int, int, int], kernel: int, strides: tuple[int, int, int], bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *extents, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(4, 3, *[kernel] * 3, dtype=torch.float64, generator=generator, requires_grad=True)
    offsets = torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True) if bias else None
    padding = (kernel // 2,) * 3

    outcome = small_convolution(images, weight, offsets, strides=strides, padding=padding)

    expected = functional.conv3d(images, weight, offsets, strides, padding)
    torch.testing.assert_close(outcome, expected)
    pull = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    asked = [images, weight] + ([] if offsets is None else [offsets])
    for found, wanted in zip(
        torch.autograd.grad(outcome, asked, pull), torch.autograd.grad(expected, asked, pull), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def _fill_freed_memory(value: float) -> None:
    for size in (2**12, 2**14, 2**16, 2**17, 2**18):
        torch.full((4, size), value)


@pytest.mark.parametrize(
    ("extent", "layer"),
    [
        pytest.param(1, nn.Conv3d(32, 32, 3, padding=1), id="1 voxel"),
        pytest.param(1, nn.Conv3d(32, 32, 3, padding=1, stride=2), id="1 voxel at stride 2"),
        pytest.param(2, nn.Conv3d(32, 32, 3, padding=1), id="2 voxels"),
        pytest.param(3, nn.Conv3d(32, 32, 3, padding=1), id="as many as the kernel"),
        pytest.param(3, nn.Conv3d(32, 32, 3, padding=1, stride=2), id="as many as the kernel at stride 2"),
        pytest.param(4, nn.Conv3d(32, 32, 3, padding=1), id="4 voxels"),
        pytest.param(5, nn.Conv3d(32, 32, 3, padding=1, stride=2), id="5 voxels at stride 2"),
        pytest.param(2, nn.Conv3d(32, 32, 3, padding=2, dilation=2), id="2 voxels, dilated"),
        pytest.param(6, nn.Conv3d(32, 32, 7, padding=3), id="6 voxels, a kernel of 7"),
    ],
)
def test_gradients_of_few_voxels_hold_nothing_from_elsewhere_in_memory(extent: int, layer: nn.Conv3d) -> None:
    images = torch.randn(4, 32, extent, extent, extent, requires_grad=True)
    asked = [images, *layer.parameters()]
    whole = layer(images)
    expected = whole, *torch.autograd.grad(whole, asked, torch.ones_like(whole))

    for _ in range(6):
        _fill_freed_memory(1e6)
        with SmallConvolutions(), torch.autocast("cpu", torch.bfloat16):
            outcome = layer(images)
        _fill_freed_memory(1e6)
        found = outcome, *torch.autograd.grad(outcome, asked, torch.ones_like(outcome))

        for values, wanted in zip(found, expected, strict=True):
            assert (values - wanted).norm() < 0.02 * wanted.norm()


# --- the choice -------------------------------------------------------------------------------------------------------


def test_plan_has_to_be_clearly_faster_than_a_simpler_one() -> None:
    fused, bf16 = StepPlan(fused=True), StepPlan(bf16=True, fused=True)

    assert fastest({PLAIN: 1.0, fused: 0.96}) == PLAIN
    assert fastest({PLAIN: 1.0, fused: 0.9, bf16: 0.88}) == fused
    assert fastest({PLAIN: 1.0, fused: 0.96, bf16: 0.5}) == bf16


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_known", {})


class Broken(StepPlan):
    """A plan that fails in one way or another; `fused` and `channels_last` make it unlike the plain one."""

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        logits = super().logits(model, images)
        if self.fused:
            raise RuntimeError("/home/hospital/secret.cpp: cannot compile")
        return logits * float("nan") if self.channels_last else logits + torch.tensor([9.0, 0.0])


def test_plan_that_fails_is_dropped_with_a_reason_that_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken(fused=True), Broken(channels_last=True), Broken(bf16=True, products=True)
    monkeypatch.setattr(calibration, "possible_plans", lambda device: (PLAIN, *broken))

    choice = measure(study(), num_exams=8, device=CPU)

    assert choice.plan == PLAIN
    assert list(choice.seconds) == ["fp32"]
    assert choice.dropped["fp32 fused"] == "it failed (RuntimeError)"
    assert choice.dropped["fp32 channels_last"] == "it gave numbers that are not finite"
    assert choice.dropped["bf16 products"].startswith("its loss was ")


def counted(monkeypatch: pytest.MonkeyPatch, plan: StepPlan) -> list[int]:
    """Measuring that takes no time; the list grows by one with each."""
    calls: list[int] = []

    def pretend(study: Study, *, num_exams: int, device: torch.device) -> StepChoice:
        calls.append(num_exams)
        return StepChoice(plan, {"fp32": 2.0, plan.name: 1.0})

    monkeypatch.setattr(calibration, "measure", pretend)
    return calls


def test_sites_of_one_process_measure_once_and_those_of_another_read_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, StepPlan(fused=True))

    choices = [StepChoices(tmp_path / site).choose(study(), num_exams=8, device=CPU) for site in ("a", "b", "a")]
    monkeypatch.setattr(calibration, "_known", {})
    choices.append(StepChoices(tmp_path / "a").choose(study(), num_exams=8, device=CPU))

    assert len(calls) == 1
    assert choices == [StepChoice(StepPlan(fused=True), {"fp32": 2.0, "fp32 fused": 1.0})] * 4
    assert choices[0].speed_up == 2.0


@pytest.mark.parametrize("text", ["", "{}", '{"plan": {"other": 1}, "seconds": {}, "dropped": {}}', "[1]"])
def test_damaged_choice_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    calls = counted(monkeypatch, PLAIN)
    StepChoices(tmp_path).choose(study(), num_exams=8, device=CPU)
    (file,) = (tmp_path / "step_plans").iterdir()
    file.write_text(text)
    monkeypatch.setattr(calibration, "_known", {})

    StepChoices(tmp_path).choose(study(), num_exams=8, device=CPU)

    assert len(calls) == 2


def test_other_sizes_are_measured_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, PLAIN)

    for agreed in (study(), study(batch_size=2), study(optimizer="sgd"), study(learning_rate=0.5)):
        StepChoices(tmp_path).choose(agreed, num_exams=8, device=CPU)

    assert len(calls) == 3


def test_plans_that_mean_something_else_in_a_new_version_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, PLAIN)

    for version in (1, 1, 2):
        monkeypatch.setattr(calibration, "_WAYS_VERSION", version)
        StepChoices(tmp_path).choose(study(), num_exams=8, device=CPU)

    assert len(calls) == 2


def test_short_run_and_fp32_measure_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, StepPlan(fused=True))
    short, plain = study(local_epochs=1), study(precision="fp32")

    choices = [StepChoices(tmp_path).choose(agreed, num_exams=8, device=CPU) for agreed in (short, plain)]

    assert num_steps_of_run(short, 8) < calibration.LEAST_STEPS < num_steps_of_run(plain, 8)
    assert choices == [StepChoice(), StepChoice()]
    assert calls == []


def test_what_was_measured_ahead_serves_a_short_run_and_every_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, StepPlan(fused=True))
    short = study(local_epochs=1)

    ahead = [StepChoices(tmp_path / site).choose(short, num_exams=8, device=CPU, however_short=True) for site in "ab"]
    monkeypatch.setattr(calibration, "_known", {})
    later = [StepChoices(tmp_path / site).choose(short, num_exams=8, device=CPU) for site in "ab"]

    assert len(calls) == 1
    assert ahead == later
    assert later[1].plan == StepPlan(fused=True)


def test_plan_that_fails_in_training_is_not_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, StepPlan(fused=True))
    choices = StepChoices(tmp_path)
    choices.drop(study(), choices.choose(study(), num_exams=8, device=CPU), "training failed", num_exams=8, device=CPU)

    again = choices.choose(study(), num_exams=8, device=CPU)
    monkeypatch.setattr(calibration, "_known", {})

    assert again == choices.choose(study(), num_exams=8, device=CPU)
    assert (again.plan, again.dropped) == (PLAIN, {"fp32 fused": "training failed"})


# --- pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extent", [1, 5, 12])
@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool3d(kernel_size=3, stride=2, padding=1),
        nn.MaxPool3d(2),
        nn.MaxPool3d((1, 3, 2), stride=(1, 2, 3), padding=(0, 1, 1), ceil_mode=True),
        nn.MaxPool3d(3, stride=1, padding=1, dilation=1),
    ],
    ids=str,
)
def test_quick_pooling_gives_the_same_values_and_gradients(dtype: torch.dtype, extent: int, layer: nn.Module) -> None:
    if extent < 2 and isinstance(layer, nn.MaxPool3d) and layer.kernel_size == 2:
        extent = 2
    # Values that repeat, so that which of several equal ones is the largest matters.
    values = torch.randint(0, 4, (2, 8, extent, extent, extent), generator=torch.Generator().manual_seed(0)).to(dtype)
    values[0, 0] = float("nan")
    images = values.clone().requires_grad_(), values.clone().requires_grad_()

    expected = layer(images[0])
    with QuickPooling():
        found = layer(images[1])
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected.backward(pull)
    found.backward(pull)

    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert torch.equal(images[1].grad, images[0].grad)  # type: ignore[arg-type]
    assert found.is_contiguous()


class Seen(TorchFunctionMode):
    """Notes the layout of what is pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.max_pool3d, functional.max_pool3d_with_indices):
            self.layouts.append(args[0].is_contiguous(memory_format=torch.channels_last_3d))
        return func(*args, **(kwargs or {}))


def test_evaluation_and_training_pool_with_the_channels_of_a_voxel_side_by_side() -> None:
    network = build_model(GROUP, num_sequences=3)

    with Seen() as seen:
        margins_of_exams(network, torch.zeros(1, 3, 16, 16, 16), batch_size=1)
        PLAIN.logits(network, torch.zeros(2, 3, 16, 16, 16))

    assert seen.layouts == [True, True]


def test_pooling_that_asks_for_places_or_has_few_channels_is_left_to_torch() -> None:
    with Seen() as seen, QuickPooling():
        _, places = functional.max_pool3d(torch.zeros(1, 8, 4, 4, 4), 2, return_indices=True)
        few = functional.max_pool3d(torch.ones(1, 3, 4, 4, 4), 2)

    assert places.dtype == torch.int64
    assert torch.equal(few, torch.ones(1, 3, 2, 2, 2))
    assert seen.layouts == [False, False]


# --- memory -----------------------------------------------------------------------------------------------------------

_STEPS_IN_A_THREAD = """
import resource, sys, threading
import torch
from client.acceleration.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
layer = torch.nn.Conv3d(8, 32, 3, padding=1)

def steps(number):
    for _ in range(number):
        layer(torch.ones(4, 8, 24, 24, 24)).relu().square().sum().backward()

def count():
    steps(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps(10)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=count)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_steps_in_a_thread_take_no_new_memory_from_the_system() -> None:
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", _STEPS_IN_A_THREAD, how], capture_output=True, check=True).stdout
        )
        for how in ("kept", "given back")
    }

    assert faults["given back"] > 1000
    assert faults["kept"] < faults["given back"] / 10


# --- a round ----------------------------------------------------------------------------------------------------------


def round_of(
    memory: Path, plan: StepPlan, exams: TrainingSet | None = None, **training: Any
) -> tuple[str, str, TrainingOutcome]:
    """State after a round by a plan, why the plan failed, and what was done."""
    agreed = study(local_epochs=2, **training)
    state = initial_state(agreed.model, num_sequences=3, seed=agreed.seed)
    network = build_model(agreed.model, num_sequences=3)
    set_state(network, state)
    task = TrainTask(agreed, "run", 1, (1.0, 1.0), 0.0, state, class_counts=(4, 4))
    outcome = LocalRound(
        task, "a", exams or patients(), SiteMemory(memory, run="run", study_digest="0" * 64), plan
    ).train(network)
    return state_digest(get_state(network)), outcome.failure, outcome.training


@pytest.mark.parametrize(
    ("plan", "error"),
    [(Broken(fused=True), "RuntimeError"), (Broken(channels_last=True), "TrainingError")],
    ids=["raises", "is not finite"],
)
def test_round_whose_plan_fails_is_the_round_of_plain_float32(tmp_path: Path, plan: StepPlan, error: str) -> None:
    state, failure, outcome = round_of(tmp_path / "fast", plan, keep_optimizer_state=True)

    assert failure == f"training failed ({error})"
    assert (state, "", outcome) == round_of(tmp_path / "plain", PLAIN, keep_optimizer_state=True)


def test_round_that_plain_float32_cannot_train_still_fails(tmp_path: Path) -> None:
    exams = patients()
    exams.images[:][3] = float("nan")

    with pytest.raises(TrainingError, match="lower learning_rate"):
        round_of(tmp_path, FAST[0], exams)
