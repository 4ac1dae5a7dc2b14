"""A file of MedicalNet is taken for what it is, and a wrong one is refused with what differs."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import resnet10
from torch import Tensor, nn

from common.errors import ConfigError
from common.model_channels import Architecture
from common.model_state import Array
from common.models import build_model, initial_state, local_names, set_state
from common.models.medicalnet import WeightsReport, read_weights, with_weights
from common.study import ModelSpec
from tests.medicalnet_file import medicalnet_file, medicalnet_weights

WIDTH = 0.125
"""The real files have width 1; narrow ones are the same and quicker."""


def digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def taken(
    payload: bytes, spec: ModelSpec, *, num_sequences: int = 1, absent: frozenset[str] = frozenset()
) -> tuple[dict[str, Array], WeightsReport]:
    state = initial_state(spec, num_sequences=num_sequences, seed=1)
    return with_weights(
        {name: array for name, array in state.items() if name not in absent},
        read_weights(io.BytesIO(payload), sha256=digest(payload), origin="FILE"),
        places_of_norm=local_names(spec.model_copy(update={"norm": "fedbn"}), num_sequences=num_sequences),
        sha256=digest(payload),
        origin="FILE",
    )


def changed(**changes: Tensor | None) -> bytes:
    """ResNet10's file with some entries changed, and without those that are None; "__" is a dot."""
    named = {f"module.{name.replace('__', '.')}": tensor for name, tensor in changes.items()}
    weights = medicalnet_weights("resnet10", width=WIDTH) | named
    return medicalnet_file("resnet10", weights={n: w for n, w in weights.items() if w is not None})


@pytest.mark.parametrize("name", ["resnet10", "resnet18", "resnet50"])
def test_file_of_batch_norm_is_taken_whole_but_for_the_head(name: Architecture) -> None:
    spec = ModelSpec(name=name, norm="batch", width=WIDTH)
    weights = medicalnet_weights(name, width=WIDTH)

    state, report = taken(medicalnet_file(name, width=WIDTH), spec)

    assert set(report.loaded) == {entry.removeprefix("module.") for entry in weights}
    assert report.missing == ("fc.weight", "fc.bias")
    assert report.unexpected == ()
    assert report.zeroed == (
        tuple(f"layer{stage}.0.downsample.0.bias" for stage in (2, 3, 4)) if name == "resnet10" else ()
    )
    for entry in report.loaded:
        np.testing.assert_array_equal(state[entry], weights[f"module.{entry}"].numpy())


def test_resnet10_with_the_file_computes_what_medicalnets_twin_does() -> None:
    spec = ModelSpec(norm="batch", width=WIDTH)
    state, _ = taken(medicalnet_file("resnet10", width=WIDTH), spec)
    ours = build_model(spec, num_sequences=1).eval()
    set_state(ours, state)
    ours.fc = nn.Identity()
    theirs = resnet10(
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
        widen_factor=WIDTH,
    ).eval()
    theirs.load_state_dict(
        {n.removeprefix("module."): w for n, w in medicalnet_weights("resnet10", width=WIDTH).items()}
    )
    exam = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        torch.testing.assert_close(ours(exam), theirs(exam))


@pytest.mark.parametrize("num_sequences", [2, 3])
def test_equal_sequences_give_what_one_gives(num_sequences: int) -> None:
    spec = ModelSpec(width=WIDTH, num_groups=4)
    exam = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    results = []
    for channels in (1, num_sequences):
        state, _ = taken(medicalnet_file("resnet10", width=WIDTH), spec, num_sequences=channels)
        model = build_model(spec, num_sequences=channels).eval()
        set_state(model, state)
        with torch.no_grad():
            results.append(model.get_submodule("conv1")(exam.expand(-1, channels, -1, -1, -1)))

    torch.testing.assert_close(results[1], results[0])


def test_group_norm_takes_weight_and_bias_and_finds_the_statistics_unexpected() -> None:
    state, report = taken(medicalnet_file("resnet10", width=WIDTH), ModelSpec(width=WIDTH, num_groups=4))

    weights = medicalnet_weights("resnet10", width=WIDTH)
    np.testing.assert_array_equal(state["layer1.0.bn2.weight"], weights["module.layer1.0.bn2.weight"].numpy())
    assert len(report.unexpected) == 12 * 3
    assert {name.rpartition(".")[2] for name in report.unexpected} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize(("norm", "num_entries"), [("fedbn", 5), ("silobn", 3)])
def test_what_stays_at_the_sites_is_not_taken(norm: str, num_entries: int) -> None:
    spec = ModelSpec.model_validate({"norm": norm, "width": WIDTH})
    absent = local_names(spec, num_sequences=1)

    state, report = taken(medicalnet_file("resnet10", width=WIDTH), spec, absent=absent)

    assert not absent & state.keys()
    assert len(report.unexpected) == 12 * num_entries


def test_file_without_wrapping_and_prefix_is_read_as_well() -> None:
    bare = {n.removeprefix("module."): w for n, w in medicalnet_weights("resnet10", width=WIDTH).items()}

    _, report = taken(saved(bare), ModelSpec(norm="batch", width=WIDTH))

    assert report.unexpected == ()


def test_another_file_than_the_study_names_is_refused_unread() -> None:
    with pytest.raises(ConfigError, match=rf"FILE: SHA-256 is {digest(b'other')}, the study names 00.*model.initial_w"):
        read_weights(io.BytesIO(b"other"), sha256="0" * 64, origin="FILE")


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a file of weights", id="text"),
        pytest.param(medicalnet_file("resnet10", width=WIDTH)[:20_000], id="cut short"),
        pytest.param(saved({"state_dict": Path("x")}), id="an object"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(payload: bytes) -> None:
    with pytest.raises(ConfigError, match=r"FILE: not readable as weights alone .*expected a file of MedicalNet"):
        read_weights(io.BytesIO(payload), sha256=digest(payload), origin="FILE")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"a": 3}}], ids=["list", "nothing", "a number"])
def test_file_without_weights_is_refused(content: object) -> None:
    payload = saved(content)

    with pytest.raises(ConfigError, match="FILE: holds no weights by name"):
        read_weights(io.BytesIO(payload), sha256=digest(payload), origin="FILE")


@pytest.mark.parametrize(
    ("payload", "spec", "differs"),
    [
        pytest.param(
            medicalnet_file("resnet18", width=WIDTH),
            {"name": "resnet10"},
            "layer2.0.downsample.0.weight is missing",
            id="18 for 10",
        ),
        pytest.param(
            medicalnet_file("resnet10", width=WIDTH),
            {"name": "resnet18"},
            "layer1.1.conv1.weight is missing",
            id="10 for 18",
        ),
        pytest.param(
            medicalnet_file("resnet34", width=WIDTH),
            {"name": "resnet18"},
            "layer1.2.bn1.bias is beyond it",
            id="34 for 18",
        ),
        pytest.param(
            changed(layer1__0__conv1__weight=torch.zeros(8, 4, 3, 3, 3)),
            {},
            r"layer1\.0\.conv1\.weight has shape \(8, 4, 3, 3, 3\) .* the study's network \(8, 8, 3, 3, 3\)",
            id="shape",
        ),
        pytest.param(changed(conv1__weight=torch.zeros(8, 2, 7, 7, 7)), {}, r"conv1\.weight has shape", id="channels"),
        pytest.param(changed(layer4__0__bn1__weight=None), {}, r"layer4\.0\.bn1\.weight is missing", id="missing"),
        pytest.param(changed(conv_seg__weight=torch.zeros(3)), {}, r"conv_seg\.weight is beyond it", id="a head"),
        pytest.param(
            changed(layer4__0__bn1__weight=torch.full((64,), torch.nan)), {}, r"bn1\.weight holds numbers", id="NaN"
        ),
    ],
)
def test_file_of_another_network_is_refused_with_what_differs(
    payload: bytes, spec: Mapping[str, object], differs: str
) -> None:
    with pytest.raises(ConfigError, match=differs):
        taken(payload, ModelSpec.model_validate({"norm": "batch", "width": WIDTH, **spec}))
