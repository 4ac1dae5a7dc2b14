"""Hospitals whose images are a bright ball in a head of noise: written in seconds, so that only training costs time."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

SEQUENCES = ("t1", "t2", "t1ce")
_SIZE, _SPACING_MM = 24, 5.0


def write_made_up_hospital(folder: Path, name: str, *, splits: Sequence[tuple[str, int]], seed: int) -> Path:
    """Write a hospital whose classes differ by the brightness of the ball in T1ce.

    Args:
        folder: Where the hospital's own folder is made.
        name: Name of the site.
        splits: Split and patients of each class in it.
        seed: Makes hospitals differ.

    Returns:
        The path of its site.yaml. It computes with one thread on the CPU.
    """
    home = folder / name
    home.mkdir(parents=True)
    rng = np.random.default_rng([seed, *name.encode()])
    rows = [["patient_id", "label", "split", *SEQUENCES, "lesion_x", "lesion_y", "lesion_z"]]
    for split, num_of_class in splits:
        for index in range(2 * num_of_class):
            patient, label = f"{len(rows):04d}", index % 2
            files = [f"{patient}_{sequence}.nii" for sequence in SEQUENCES]
            for sequence, file in zip(SEQUENCES, files, strict=True):
                _write_volume(home / file, rng, is_bright=bool(label) and sequence == "t1ce")
            rows.append([patient, ("recurrence", "necrosis")[label], split, *files, "0", "0", "0"])
    (home / "table.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")
    site = {
        "name": name,
        "data": {"table": "table.tsv"},
        "label_map": {"necrosis": 1, "recurrence": 0},
        "cache": "cache",
        "device": "cpu",
        "torch_threads": 1,
        "disclosure": {"min_patients": 1, "min_cell": 1, "max_bins": 256},
    }
    (home / "site.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")
    return home / "site.yaml"


def _write_volume(path: Path, rng: np.random.Generator, *, is_bright: bool) -> None:
    places = (np.indices((_SIZE, _SIZE, _SIZE)) - (_SIZE - 1) / 2) * _SPACING_MM
    distance = np.sqrt((places**2).sum(axis=0))
    volume = 100.0 * (distance < 55) + 10.0 * rng.standard_normal(distance.shape)
    volume += (120.0 if is_bright else 40.0) * (distance < 14)
    affine = np.diag([_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -(_SIZE - 1) / 2 * _SPACING_MM
    image = nib.Nifti1Image(np.clip(volume, 0, None).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
