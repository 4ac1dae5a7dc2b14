"""Mutated tables and sidecars end in a finding or are sound; nothing else is raised."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from client.config import read_site_config
from client.preflight.personal import check_sidecar
from client.preflight.run import run_preflight
from client.sources.reading import read_source
from tests.tiny_hospitals import write_tiny_hospital

LIMIT_S = 10.0
SIDECAR = {"Manufacturer": "X", "EchoTime": 0.01, "PatientName": "X", "Nested": [{"AcquisitionDate": "2020"}, 1, None]}


def mutated_text(data: bytes, rng: np.random.Generator) -> bytes:
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at, length = int(rng.integers(max(len(content), 1))), int(rng.integers(1, 30))
        match int(rng.integers(6)):
            case 0:
                content[at : at + 1] = rng.choice([b"\t", b"\n", b'"', b"\x00", b"\xff", b"/", b",", b"{", b"]", b"0"])
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = content[at : at + length]
            case 3:
                content[at : at + length] = rng.bytes(length)
            case 4:
                other = int(rng.integers(max(len(content), 1)))
                content[at:at] = content[other : other + length]
            case _:
                content[at : at + 1] = bytes([int(rng.integers(256))])
    return bytes(content)


def fuzz_tables(folder: Path, seeds: range) -> None:
    site = write_tiny_hospital(folder, "a", splits=(("train", 1, 1),))
    config, table = read_site_config(site), site.parent / "table.tsv"
    sound = table.read_bytes()
    for seed in seeds:
        table.write_bytes(mutated_text(sound, np.random.default_rng(seed)))
        started = time.monotonic()
        preflight = run_preflight(config, None)
        assert time.monotonic() - started < LIMIT_S
        reading = read_source(config, None)
        assert preflight.blocked or not (reading.faults or reading.unreadable), f"seed {seed}"


def fuzz_sidecars(folder: Path, seeds: range) -> None:
    sound = json.dumps(SIDECAR).encode()
    for seed in seeds:
        (folder / "a.json").write_bytes(mutated_text(sound, np.random.default_rng(seed)))
        found = [check for check, _ in check_sidecar(folder / "a.nii.gz")]
        assert set(found) <= {"sidecar-personal", "sidecar-unreadable"}
        try:
            values = json.loads((folder / "a.json").read_bytes())
        except ValueError:
            assert found == ["sidecar-unreadable"], f"seed {seed}"
        else:
            if isinstance(values, dict) and values.get("PatientName"):
                assert found == ["sidecar-personal"], f"seed {seed}"


def test_mutated_tables_end_in_a_finding(tmp_path: Path) -> None:
    fuzz_tables(tmp_path, range(60))


def test_mutated_sidecars_end_in_a_finding(tmp_path: Path) -> None:
    fuzz_sidecars(tmp_path, range(200))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_thousand_mutated_tables_and_sidecars_end_in_a_finding(tmp_path: Path) -> None:
    fuzz_tables(tmp_path, range(100, 1600))
    fuzz_sidecars(tmp_path, range(200, 1700))
