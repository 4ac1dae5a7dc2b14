"""A picture of a hospital: three sequences of two patients of each class, an axial slice through the lesion."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import DataError

PATIENTS_PER_CLASS = 2
_TITLES = {"t1": "T1", "t2": "T2", "t1ce": "T1 with contrast"}

Row = Mapping[str, str]
Image = npt.NDArray[np.float32]


def write_montage(folder: Path, path: Path) -> None:
    """Draw a written hospital as a PNG.

    Image right is the patient's right (R marks it) and up is the front; slices follow the image's own axes.

    Args:
        folder: Of the hospital; its table.tsv names the images and the lesions.
        path: Of the picture.

    Raises:
        DataError: There is no table, or it is empty.
    """
    rows = _choose(_read_table(folder / "table.tsv"))
    figure = Figure(figsize=(3 * 3.2, len(rows) * 3.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(_TITLES), squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        for name, ax in zip(_TITLES, axes, strict=True):
            _show(ax, folder, row, name)
    for name, ax in zip(_TITLES.values(), grid[0], strict=True):
        ax.set_title(name, color="white")
    figure.suptitle(f"{folder.name}: synthetic phantoms, nobody was scanned", color="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, facecolor="black")


def _read_table(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such table, expected the folder of a written phantom hospital")
    with path.open(newline="") as lines:
        rows: list[Row] = list(csv.DictReader(lines, delimiter="\t"))
    if not rows:
        raise DataError(f"{path}: the table has no patient, expected one a line; write the hospital again")
    return rows


def _choose(rows: Sequence[Row]) -> list[Row]:
    """Some patients of each class, those with the most sequences first."""
    chosen = []
    for label in ("necrosis", "recurrence"):
        of_class = sorted(
            (row for row in rows if row["label"] == label), key=lambda row: sum(not row[name] for name in _TITLES)
        )
        chosen += of_class[:PATIENTS_PER_CLASS]
    return chosen


def _show(ax: Axes, folder: Path, row: Row, name: str) -> None:
    ax.set_facecolor("black")
    ax.set_xticks([])
    ax.set_yticks([])
    if name == "t1":
        ax.set_ylabel(f"{row['patient_id']}\n{row['label']}", color="white")
    if not row[name]:
        ax.text(0.5, 0.5, "absent", color="white", ha="center", transform=ax.transAxes)
        return
    image = nib.as_closest_canonical(nib.load(folder / row[name]))
    voxels: Image = np.asarray(image.dataobj, dtype=np.float32)
    point = np.array([float(row[f"lesion_{axis}"]) for axis in "xyz"])
    index = np.linalg.inv(image.affine) @ np.append(point, 1.0)
    level = int(np.clip(round(index[2]), 0, voxels.shape[2] - 1))
    width, height, _ = np.linalg.norm(image.affine[:3, :3], axis=0)
    brightest = _window(voxels)
    ax.imshow(voxels[:, :, level].T, cmap="gray", vmin=0, vmax=brightest, origin="lower", aspect=float(height / width))
    ax.text(0.97, 0.03, "R", color="white", ha="right", transform=ax.transAxes)


def _window(voxels: Image) -> float:
    """The value to show as white: few voxels of the brain are brighter, though the scalp's fat is."""
    middle = tuple(slice(round(0.25 * n), round(0.75 * n)) for n in voxels.shape)
    return float(np.percentile(voxels[middle], 99.0)) * 1.05
