"""Every architecture a study can name: its size, its shapes, its layers, and that it learns."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import resnet10, resnet18, resnet50
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from common.model_channels import RESNETS, Architecture, norm_channels
from common.model_state import state_digest
from common.models import build_model, initial_state, local_names
from common.models.norm import norm_layers
from common.study import ModelSpec

NAMES: tuple[Architecture, ...] = get_args(Architecture)

NUM_PARAMETERS: dict[str, tuple[int, int]] = {
    "resnet10": (14_357_442, 14_401_346),
    "resnet18": (32_987_202, 33_031_106),
    "resnet50": (46_159_170, 46_203_074),
    "densenet121": (11_244_674, 11_288_578),
    "vgg11": (27_656_258, 27_659_714),
    "vgg16": (44_137_410, 44_140_866),
    "mresnet": (10_986_146, 11_052_002),
}
"""Parameters with one and with three sequences."""

NUM_NORM_LAYERS = {
    "resnet10": 12,
    "resnet18": 17,
    "resnet50": 53,
    "densenet121": 121,
    "vgg11": 8,
    "vgg16": 13,
    "mresnet": 36,
}

GRAPHS, MACHINE_CODE = "aot_eager", "inductor"
"""What torch.compile makes of a network: the graphs of both passes alone, or, by a C++ compiler, machine code."""


def small(name: Architecture, **settings: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": name, "width": 0.125, "num_groups": 4, **settings})


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_paper(spec: ModelSpec, *, num_sequences: int) -> nn.Module:
    """The network without its numbers, which takes no time."""
    with torch.device("meta"):
        return build_model(spec, num_sequences=num_sequences)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_sequences", [1, 3])
def test_number_of_parameters(name: Architecture, num_sequences: int) -> None:
    model = on_paper(ModelSpec(name=name), num_sequences=num_sequences)

    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[name][num_sequences == 3]


def test_page_states_the_numbers_that_are_counted_here() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")

    for name in NAMES:
        one, three = NUM_PARAMETERS[name]
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.startswith(f"| `{name}` | {one:,} | {three:,} |")
        assert row.endswith(f"| {NUM_NORM_LAYERS[name]} |")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_sequences", [1, 3])
def test_two_logits_from_crops_of_any_size_from_16_voxels(name: Architecture, num_sequences: int) -> None:
    model = build_model(small(name), num_sequences=num_sequences)

    for size in [(16, 16, 16), (17, 20, 31)]:
        assert model(torch.zeros(2, num_sequences, *size)).shape == (2, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["group", "batch", "fedbn", "silobn"])
def test_norm_layers_are_all_of_the_kind_the_study_names(name: Architecture, norm: str) -> None:
    layers = norm_layers(on_paper(small(name, norm=norm), num_sequences=3))

    assert len(layers) == NUM_NORM_LAYERS[name]
    assert {type(layer) for layer in layers.values()} == {nn.GroupNorm if norm == "group" else nn.BatchNorm3d}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [0.125, 0.3, 1.0, 1.7])
def test_channels_told_beforehand_are_those_of_the_built_layers(name: Architecture, width: float) -> None:
    built = norm_layers(on_paper(ModelSpec(name=name, width=width, norm="batch"), num_sequences=3))

    assert norm_channels(name, width) == tuple(layer.num_features for layer in built.values())


@pytest.mark.parametrize("name", NAMES)
def test_norm_layers_that_stay_at_their_site(name: Architecture) -> None:
    fedbn, silobn = (local_names(small(name, norm=norm), num_sequences=3) for norm in ("fedbn", "silobn"))

    assert (len(fedbn), len(silobn)) == (5 * NUM_NORM_LAYERS[name], 3 * NUM_NORM_LAYERS[name])
    assert silobn < fedbn


@pytest.mark.parametrize("name", NAMES)
def test_initial_state_is_a_function_of_the_seed_alone(name: Architecture) -> None:
    torch.manual_seed(1)
    one = initial_state(small(name), num_sequences=3, seed=5)
    torch.manual_seed(2)

    again = initial_state(small(name), num_sequences=3, seed=5)
    other = initial_state(small(name), num_sequences=3, seed=6)

    assert state_digest(again) == state_digest(one)
    assert state_digest(other) != state_digest(one)


@pytest.mark.parametrize("name", NAMES)
def test_network_learns_eight_patients_by_heart(name: Architecture) -> None:
    model = build_model(small(name), num_sequences=1, generator=seeded()).train()
    blobs, labels = torch.randn(8, 1, 4, 4, 4, generator=seeded(2)), torch.tensor([0, 1] * 4)
    exams = functional.interpolate(blobs, size=(16, 16, 16), mode="trilinear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(exams), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if loss < 0.05:
            break

    assert (model(exams).argmax(dim=1) == labels).all()
    assert loss < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_takes_part_in_the_result(name: Architecture) -> None:
    model = build_model(small(name), num_sequences=2, generator=seeded()).train()

    exams, labels = torch.randn(2, 2, 32, 32, 32, generator=seeded(2)), torch.tensor([0, 1])
    functional.cross_entropy(model(exams), labels).backward()  # type: ignore[no-untyped-call]

    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", NAMES)
def test_network_is_one_graph_to_torch_compile(name: Architecture) -> None:
    torch.compiler.reset()
    model = build_model(small(name), num_sequences=1, generator=seeded()).eval()
    exams = torch.randn(2, 1, 16, 16, 16, generator=seeded(2))

    traced = torch.compile(model, backend="eager", fullgraph=True)

    with torch.no_grad():
        torch.testing.assert_close(traced(exams), model(exams))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, GRAPHS) for name in NAMES] + [("resnet10", MACHINE_CODE if shutil.which("g++") else GRAPHS)],
)
def test_compiled_network_computes_and_trains_alike(name: Architecture, backend: str) -> None:
    torch.compiler.reset()
    model = build_model(small(name), num_sequences=1, generator=seeded()).train()
    exams, labels = torch.randn(2, 1, 32, 32, 32, generator=seeded(2)), torch.tensor([0, 1])

    gradients = []
    for network in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        functional.cross_entropy(network(exams), labels).backward()  # type: ignore[no-untyped-call]
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        pytest.param("resnet10", lambda: resnet10(n_input_channels=1, conv1_t_stride=2, num_classes=2), id="resnet10"),
        pytest.param(
            "resnet18",
            lambda: resnet18(n_input_channels=1, conv1_t_stride=2, num_classes=2, shortcut_type="A"),
            id="resnet18",
        ),
        pytest.param(
            "resnet50",
            lambda: resnet50(n_input_channels=1, conv1_t_stride=2, num_classes=2, bias_downsample=False),
            id="resnet50",
        ),
        pytest.param("densenet121", lambda: DenseNet(3, 1, 2), id="densenet121"),
    ],
)
def test_network_computes_what_monais_does(name: Architecture, twin: Callable[[], nn.Module]) -> None:
    ours, theirs = build_model(ModelSpec(name=name, norm="batch"), num_sequences=1, generator=seeded()), twin()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    exam = torch.randn(1, 1, 32, 32, 32, generator=seeded(2))

    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(exam), theirs.eval()(exam))


@pytest.mark.parametrize("name", RESNETS)
def test_dilated_network_has_the_same_state_and_four_times_the_resolution(name: Architecture) -> None:
    exam = torch.zeros(1, 1, 32, 32, 32)
    sizes: dict[bool, torch.Size] = {}
    shapes = {}
    for dilated in (False, True):
        model = build_model(small(name, dilated=dilated), num_sequences=1)
        model.get_submodule("avgpool").register_forward_pre_hook(
            lambda _, maps, dilated=dilated: sizes.update({dilated: maps[0].shape[2:]})
        )
        model(exam)
        shapes[dilated] = {entry: tensor.shape for entry, tensor in model.state_dict().items()}

    assert sizes == {False: (1, 1, 1), True: (4, 4, 4)}
    assert shapes[True] == shapes[False]


def test_dilated_convolutions_reach_as_far_as_medicalnets() -> None:
    model = build_model(small("resnet50", dilated=True), num_sequences=1)

    dilations = {
        stage: {c.dilation for c in model.get_submodule(stage).modules() if getattr(c, "kernel_size", 0) == (3, 3, 3)}
        for stage in ("layer1", "layer2", "layer3", "layer4")
    }
    assert dilations == {"layer1": {(1,) * 3}, "layer2": {(1,) * 3}, "layer3": {(2,) * 3}, "layer4": {(4,) * 3}}


@pytest.mark.parametrize("name", ["densenet121", "mresnet"])
def test_stem_stride_of_one_keeps_the_resolution(name: Architecture) -> None:
    shapes = {}
    for stride in (1, 2):
        model = build_model(small(name, stem_stride=stride), num_sequences=1)
        stem = next(module for module in model.modules() if isinstance(module, nn.Conv3d))
        shapes[stride] = stem(torch.zeros(1, 1, 16, 16, 16)).shape[2]

    assert shapes == {1: 16, 2: 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"name": "vgg11", "stem_stride": 1}, "stem_stride has no meaning for vgg11", id="vgg stem"),
        pytest.param({"name": "mresnet", "dilated": True}, "dilated is for resnet10, .* not for mresnet", id="dilated"),
        pytest.param(
            {"name": "vgg16", "initial_weights": "0" * 64}, "initial_weights is for resnet10", id="weights of a VGG"
        ),
        pytest.param(
            {"initial_weights": "0" * 64, "width": 0.5}, "fits networks of width 1, not of width 0.5", id="narrow"
        ),
        pytest.param({"initial_weights": "resnet_10.pth"}, "should match pattern", id="no digest"),
        pytest.param({"norm": "batch", "width": 0.01}, "leaves a layer of resnet10 without channels", id="too narrow"),
        pytest.param(
            {"name": "densenet121", "width": 0.125},
            r"8 groups do not divide the layers' channels \[12, 20, 28, 36, 44, 52, 60, 68, \.\.\.\]",
            id="densenet's groups",
        ),
        pytest.param({"name": "mresnet", "width": 0.125}, r"8 groups do not .* \[4\]", id="half the width"),
    ],
)
def test_settings_that_do_not_fit_the_architecture_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate(settings)
