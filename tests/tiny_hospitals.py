"""Hospitals of a few tiny NIfTI volumes, for tests of everything but the images themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

STUDY = {
    "name": "tiny",
    "seed": 3,
    "rounds": 2,
    "preprocessing": {"spacing_mm": [4.0, 4.0, 4.0], "size_voxels": [16, 16, 16], "crop": "lesion"},
    "model": {"width": 0.125, "num_groups": 4},
    "training": {"learning_rate": 1e-3, "batch_size": 4, "local_epochs": 1},
    "participation": {"min_sites": 1, "round_timeout_s": 120, "join_timeout_s": 60},
    "evaluation": {"min_pooled_sites": 1},
}


def study_text(**changes: object) -> str:
    """STUDY as YAML with some settings changed; a mapping changes only the settings it names."""
    values: dict[str, object] = dict(STUDY)
    for name, change in changes.items():
        old = values.get(name)
        values[name] = {**old, **change} if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return yaml.safe_dump(values)


def write_tiny_hospital(
    folder: Path,
    name: str,
    *,
    splits: Sequence[tuple[str, int, int]] = (("train", 4, 4), ("validation", 3, 3), ("test", 3, 3)),
    seed: int = 0,
    disclosure: Mapping[str, int] | None = None,
) -> Path:
    """Write a hospital whose two classes differ by the brightness of the lesion in T1ce.

    Args:
        folder: Where the hospital's own folder is made.
        name: Name of the site.
        splits: Split, patients with recurrence, patients with necrosis.
        seed: Makes hospitals differ.
        disclosure: What may leave the site; few limits by default.

    Returns:
        The path of its site.yaml.
    """
    home = folder / name
    home.mkdir(parents=True)
    rng = np.random.default_rng([seed, *name.encode()])
    rows = ["patient_id\tlabel\tsplit\tt1\tt2\tt1ce\tlesion_x\tlesion_y\tlesion_z"]
    for split, num_recurrence, num_necrosis in splits:
        for index in range(num_recurrence + num_necrosis):
            label = int(index >= num_recurrence)
            patient = f"{len(rows):04d}"
            for sequence in ("t1", "t2", "t1ce"):
                _write_volume(home / f"{patient}_{sequence}.nii.gz", rng, bright=2.0 * label * (sequence == "t1ce"))
            word = ("recurrence", "necrosis")[label]
            files = "\t".join(f"{patient}_{sequence}.nii.gz" for sequence in ("t1", "t2", "t1ce"))
            rows.append(f"{patient}\t{word}\t{split}\t{files}\t0\t0\t0")
    (home / "table.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = {
        "name": name,
        "data": {"table": "table.tsv"},
        "label_map": {"necrosis": 1, "recurrence": 0},
        "cache": "cache",
        "device": "cpu",
        "torch_threads": 1,
        "disclosure": dict(disclosure or {"min_patients": 1, "min_cell": 1, "max_bins": 256}),
    }
    path = home / "site.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _write_volume(path: Path, rng: np.random.Generator, *, bright: float) -> None:
    size, spacing = 24, 5.0
    grid = (np.indices((size, size, size)).transpose(1, 2, 3, 0) - (size - 1) / 2) * spacing
    distance = np.linalg.norm(grid, axis=-1)
    volume = 100.0 * (distance < 55) + 10.0 * rng.standard_normal(distance.shape)
    volume += 40.0 * (1 + bright) * (distance < 14)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -(size - 1) / 2 * spacing
    image = nib.Nifti1Image(np.clip(volume, 0, None).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
