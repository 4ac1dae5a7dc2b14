"""Sites that have a patient in common: the coordinator learns how many, of those that agreed, and of nobody whom."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from flwr.app import ConfigRecord, Message

from client.app import SITE_CONFIG_KEY
from client.app import app as client_app
from server.run_folder import RunFolder
from server.statistics_note import note_statistics, statistics_file, statistics_page
from server.statistics_page import read_statistics, statistics_lines
from server.statistics_run import carry_statistics
from simulations.engines.in_process import InProcessGrid
from simulations.phantom.federation import write_hospitals
from simulations.phantom.spec import PhantomOptions
from tests.tiny_federation import Answer, FaultyClientApp, begin_run
from tests.tiny_hospitals import study_text

AGREED = {"min_patients": 1, "min_cell": 1, "max_bins": 256, "statistics": True, "duplicates": True}
STUDY = study_text(
    preprocessing={"missing_sequence": "zero_fill"},
    augmentation={"drop_sequence": 0.1},
    split={"validation": 0.3, "test": 0.3},
)


def disclose(site: Path, **settings: object) -> None:
    config = yaml.safe_load(site.read_text())
    site.write_text(yaml.safe_dump({**config, "disclosure": settings, "device": "cpu", "torch_threads": 1}))


def save_again(volume: Path) -> None:
    """Turned, as floating-point numbers and with a header of its own: what another hospital's converter writes."""
    image = nibabel.load(volume)
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
    again = nibabel.Nifti1Image(np.asarray(turned.get_fdata(), dtype=np.float32), turned.affine)
    again.header.set_xyzt_units("mm")
    nibabel.save(again, volume)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A's first patient is B's last, whose files B saved again; C shares nobody."""
    options = PhantomOptions(spacing_mm=6.0, duplicate_patient=("A", "B"))
    counts = {"A": 6, "B": 6, "C": 6}
    paths = write_hospitals(tmp_path_factory.mktemp("phantoms"), list(counts), options, num_patients=counts)
    for path in paths:
        disclose(path, **AGREED)
    for volume in (paths[1].parent / "sub-B006").rglob("*.nii.gz"):
        save_again(volume)
    return {path.parent.name: path for path in paths}


def run(
    path: Path, sites: Mapping[str, Path], *, app: Any = client_app, study: str = STUDY
) -> tuple[RunFolder, dict[str, Any]]:
    folder = begin_run(path, study, sites)
    note_statistics(folder)
    grid = InProcessGrid(app, {name: {SITE_CONFIG_KEY: str(site)} for name, site in sites.items()}, workers=1)
    carry_statistics(grid, folder, now=lambda: datetime.now(UTC))
    return folder, json.loads(statistics_file(folder).read_text())["duplicates"]


def test_a_patient_of_two_hospitals_is_counted_though_the_files_differ(
    hospitals: Mapping[str, Path], tmp_path: Path
) -> None:
    folder, found = run(tmp_path / "run", hospitals)

    assert {tuple(pair["sites"]): pair["patients"] for pair in found["pairs"]} == {
        ("hospital-a", "hospital-b"): [1, 1],
        ("hospital-a", "hospital-c"): [0, 0],
        ("hospital-b", "hospital-c"): [0, 0],
    }
    assert found["missing"] == {}
    lines = "\n".join(statistics_lines(read_statistics(folder)))
    assert "Patients in common, of 3 pairs of sites:\n  hospital-a and hospital-b: 1\n" in lines
    assert "hospital-a and hospital-b: 1" in statistics_page(folder).read_text()
    assert not [file for file in folder.path.rglob("*") if file.is_file() and b"sub-B006" in file.read_bytes()]


def test_a_site_that_has_not_agreed_is_not_compared_and_a_liar_is_left_out(
    hospitals: Mapping[str, Path], tmp_path: Path
) -> None:
    def one_patient_less(message: Message, answer: Answer) -> Message:
        reply = answer()
        patients = reply.content["blinded-patients"]
        assert isinstance(patients, ConfigRecord)
        groups = patients["0"]
        assert isinstance(groups, list)
        patients["0"] = groups[1:]
        return reply

    silent = hospitals["hospital-c"].with_name("silent.yaml")
    silent.write_bytes(hospitals["hospital-c"].read_bytes())
    disclose(silent, **{**AGREED, "duplicates": False})
    liar = FaultyClientApp("hospital-b", one_patient_less, message_type="query.duplicates")

    _, found = run(tmp_path / "run", {**hospitals, "hospital-c": silent}, app=liar)

    assert found == {
        "sites": ["hospital-a"],
        "missing": {
            "hospital-b": "duplicates: shows [5] patients, registered 6",
            "hospital-c": "does not let its patients be compared",
        },
        "pairs": [],
    }
