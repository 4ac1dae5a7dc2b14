"""Every network a study can name goes through a run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest

from common.model_channels import Architecture
from common.study import parse_study
from server.global_state import initial_global_state
from tests.tiny_federation import run_federation, write_hospitals
from tests.tiny_hospitals import study_text


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    splits = (("train", 2, 2), ("validation", 1, 1), ("test", 1, 1))
    return write_hospitals(tmp_path_factory.mktemp("hospitals"), "north", "south", splits=splits)


NETWORKS = [{"name": name} for name in get_args(Architecture)] + [
    {"name": "resnet50", "norm": "batch", "dilated": True},
    {"name": "densenet121", "norm": "batch"},
    {"name": "vgg16", "norm": "batch"},
    {"name": "mresnet", "norm": "batch", "stem_stride": 1},
]


@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: "-".join(str(value) for value in model.values()))
def test_network_goes_through_a_round_and_the_test(
    tmp_path: Path, sites: Mapping[str, Path], model: Mapping[str, object]
) -> None:
    text = study_text(rounds=1, model=model)

    run = run_federation(tmp_path / "run", text, sites, workers=1)

    start = initial_global_state(parse_study(text, origin="study.yaml"))
    assert run.record["outcome"] == "COMPLETE"
    assert run.model("final").keys() == start.keys()
    assert all((run.model("final")[name] != start[name]).any() for name in start if start[name].ndim == 5)
    assert all(math.isfinite(site["train_loss"]) for site in run.rounds[0]["sites"].values())
