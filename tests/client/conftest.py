"""A small hospital of plain heads: a bright ball with a brighter lesion, on any grid."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from client.config import SiteConfig, read_site_config
from common.study import Study, parse_study

Array = npt.NDArray[np.float64]
DEFAULT_AFFINE: Array = np.array([[4.0, 0, 0, -100], [0, 4, 0, -100], [0, 0, 4, -100], [0, 0, 0, 1]])
SHAPE = (50, 50, 50)

STUDY = """
name: test
seed: 7
rounds: 1
preprocessing: {spacing_mm: [4, 4, 4], size_voxels: [16, 16, 16], crop: lesion}
training: {learning_rate: 1e-3, batch_size: 4, local_epochs: 1}
participation: {min_sites: 1}
"""


def plain_head(
    affine: Array = DEFAULT_AFFINE,
    shape: tuple[int, int, int] = SHAPE,
    *,
    lesion: tuple[float, float, float] = (24.0, 8.0, 4.0),
    contrast: float = 1.0,
    seed: int = 0,
) -> Array:
    """Values of a head of radius 80 mm about the world's origin, 1000 bright, with a lesion of radius 14 mm."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    head = np.linalg.norm(world, axis=-1) < 80
    inside = np.linalg.norm(world - np.array(lesion), axis=-1) < 14
    noise = np.random.default_rng(seed).normal(0, 10, shape)
    values: Array = np.abs(1000.0 * head + 1000 * contrast * inside + noise)
    return values


def write_volume(path: Path, values: npt.NDArray[np.generic], affine: Array = DEFAULT_AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


@dataclass(frozen=True)
class SmallHospital:
    """A folder with site.yaml, table.tsv and volumes."""

    folder: Path

    @property
    def table(self) -> Path:
        return self.folder / "table.tsv"

    def config(self) -> SiteConfig:
        return read_site_config(self.folder / "site.yaml")

    def edit_table(self, old: str, new: str) -> None:
        text = self.table.read_text()
        assert old in text
        self.table.write_text(text.replace(old, new))


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY, origin="study.yaml")


@pytest.fixture
def make_hospital(tmp_path: Path) -> Callable[[int], SmallHospital]:
    def make(num_patients: int) -> SmallHospital:
        folder = tmp_path / "hospital"
        rows = ["patient_id\tlabel\tt1\tt2\tt1ce\tlesion_x\tlesion_y\tlesion_z"]
        for number in range(num_patients):
            files = [f"scans/{number:03d}_{sequence}.nii.gz" for sequence in ("t1", "t2", "t1ce")]
            for place, file in enumerate(files):
                head = plain_head(contrast=0.5 * place, seed=3 * number + place)
                write_volume(folder / file, head.astype(np.int16))
            label = "necrosis" if number % 3 == 0 else "recurrence"
            rows.append("\t".join([f"{number:03d}", label, *files, "24", "8", "4"]))
        (folder / "table.tsv").write_text("\n".join(rows) + "\n")
        (folder / "site.yaml").write_text(
            "name: hospital-a\ndata: {table: table.tsv}\nlabel_map: {necrosis: 1, recurrence: 0}\ncache: cache\n"
        )
        return SmallHospital(folder)

    return make
