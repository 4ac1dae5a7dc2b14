"""A study that begins from a file of weights begins from that very file, or not at all."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.study import Study, parse_study
from server.cli import main as serve
from server.initial_weights import require_weights
from server.report import write_report
from server.run_folder import Participants, RunFolder, create_run_folder
from simulations.cli import main as simulate
from tests.medicalnet_file import medicalnet_file
from tests.served_federation import write_federation
from tests.tiny_federation import carry_on, write_hospitals
from tests.tiny_hospitals import study_text


def weights_study(payload: bytes, *, name: str = "resnet10", norm: str = "group", rounds: int = 1) -> str:
    model = {"name": name, "norm": norm, "width": 1.0, "initial_weights": hashlib.sha256(payload).hexdigest()}
    return study_text(rounds=rounds, model=model, training={"local_epochs": None, "local_steps": 1})


def parsed(text: str) -> Study:
    return parse_study(text, origin="study.yaml")


def written(folder: Path, payload: bytes) -> Path:
    path = folder / "resnet_10_23dataset.pth"
    path.write_bytes(payload)
    return path


@pytest.fixture(scope="module")
def payload() -> bytes:
    return medicalnet_file("resnet10")


def test_run_starts_from_the_file_and_says_so_in_its_record(tmp_path: Path, payload: bytes) -> None:
    sites = write_hospitals(tmp_path, "north")
    text = weights_study(payload)
    weights = require_weights(parsed(text), written(tmp_path, payload))
    participants = Participants(tuple(sites), "registered", "in-process")
    folder = create_run_folder(tmp_path / "run", study_text=text, participants=participants, initial_weights=weights)

    run = carry_on(folder, sites)

    first = torch.load(BytesIO(payload), weights_only=True)["state_dict"]["module.layer3.0.conv2.weight"]
    report = run.record["initial_weights"]
    np.testing.assert_allclose(run.model("final")["layer3.0.conv2.weight"], first.numpy(), atol=2e-3)  # after one step
    assert run.record["outcome"] == "COMPLETE"
    assert report["sha256"] == hashlib.sha256(payload).hexdigest()
    assert len(report["loaded"]) == 12 + 2 * 12
    assert report["missing"] == ["fc.weight", "fc.bias"]
    assert len(report["zeroed"]) == 3
    assert {name.rpartition(".")[2] for name in report["unexpected"]} >= {"running_mean", "running_var"}
    page = write_report(folder).read_text(encoding="utf-8")
    assert f"<code>{report['sha256']}</code>" in page
    assert "2: fc.weight, fc.bias" in page


def test_study_that_names_weights_is_refused_without_the_file(payload: bytes) -> None:
    with pytest.raises(ConfigError, match=r"begins from a file of weights .* give it with --initial-weights FILE"):
        require_weights(parsed(weights_study(payload)), None)


def test_file_that_the_study_does_not_name_is_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(ConfigError, match="the study names no file of weights; write its SHA-256"):
        require_weights(parsed(study_text()), written(tmp_path, payload))


def test_absent_file_is_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pth: unreadable \(FileNotFoundError\)"):
        require_weights(parsed(weights_study(payload)), tmp_path / "absent.pth")


def test_command_refuses_before_anything_is_made(
    tmp_path: Path, payload: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = write_hospitals(tmp_path, "north")
    study = tmp_path / "study.yaml"
    study.write_text(weights_study(payload), encoding="utf-8")

    code = simulate(["--study", str(study), "--site", str(sites["north"]), "--out", str(tmp_path / "run")])

    assert code == 2
    assert "give it with --initial-weights FILE" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_server_s_command_keeps_a_copy_in_the_folder_of_the_run(
    tmp_path: Path, payload: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = write_federation(tmp_path / "federation", ["a", "b"])
    study, file = tmp_path / "study.yaml", written(tmp_path, payload)
    study.write_text(weights_study(payload), encoding="utf-8")
    words = ["run", str(study), "--name", "first", "--federation", str(federation.path)]

    refused = serve(words)
    made = list(federation.runs.iterdir())
    accepted = serve([*words, "--initial-weights", str(file)])

    assert (refused, made, accepted) == (2, [], 0)
    assert "give it with --initial-weights FILE" in capsys.readouterr().err
    assert RunFolder(federation.runs / "first").initial_weights.read_bytes() == payload


def test_run_does_not_begin_when_the_copy_in_its_folder_was_damaged(tmp_path: Path, payload: bytes) -> None:
    sites = write_hospitals(tmp_path, "north")
    participants = Participants(tuple(sites), "registered", "in-process")
    folder: RunFolder = create_run_folder(
        tmp_path / "run", study_text=weights_study(payload), participants=participants, initial_weights=payload[:-1]
    )

    with pytest.raises(ConfigError, match=r"initial_weights\.pth: SHA-256 is .*, the study names"):
        carry_on(folder, sites)
    assert not folder.progress.exists()
