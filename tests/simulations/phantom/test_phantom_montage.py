"""The picture of a hospital."""

from pathlib import Path

import pytest
from PIL import Image

from common.errors import DataError
from simulations.phantom.hospital import HOSPITALS, PhantomOptions, write_hospital
from simulations.phantom.montage import write_montage


def test_montage_shows_three_sequences_of_both_classes(tmp_path: Path) -> None:
    options = PhantomOptions(spacing_mm=8.0, label_noise=0.0)
    hospital = write_hospital(HOSPITALS["F"], tmp_path / "hospital-f", options, num_patients=5)

    write_montage(hospital.folder, tmp_path / "pictures" / "f.png")

    with Image.open(tmp_path / "pictures" / "f.png") as picture:
        width, height = picture.size
        grey = picture.convert("L")
        thirds = [grey.crop((width * n // 3, 0, width * (n + 1) // 3, height)) for n in range(3)]
        bright = [sum(third.histogram()[100:]) for third in thirds]
    assert height > width
    assert min(bright[0], bright[2]) > 20 * bright[1]  # this hospital has no T2


def test_montage_of_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such table"):
        write_montage(tmp_path, tmp_path / "a.png")
