"""Whether each sequence is the one it is taken for: ranks and differences inside the head, on blocks of 3 mm."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from client.preprocessing.head import Head
from client.preprocessing.volume import Volume


@dataclass(frozen=True)
class Looks:
    """What tells the sequences of an exam apart; None where a sequence it needs is missing.

    Attributes:
        t1_t2_rank: Spearman's rank correlation of T1 and T2 inside the brain.
        csf_rank: Mean rank in T2, 0 to 1, of the voxels inside the brain that are darkest in T1.
        uptake: What is brighter in T1ce than in T1 against what is darker: (high - low) / (high + low) of the tails.
    """

    t1_t2_rank: float | None = None
    csf_rank: float | None = None
    uptake: float | None = None


BRAIN_DEPTH_MM, FLUID_DEPTH_MM = 20.0, 30.0
"""Deeper below the skin than this is no bone, which is dark everywhere; and hardly any fluid but the ventricles'."""
MAX_T1_T2_RANK = 0.0
MIN_CSF_RANK = 0.5
MIN_UPTAKE = 0.1
"""Of 300 phantom exams from six scanners the least is stated in docs/preflight.md; a swap gives a negative value."""

_FLUID_SHARE = 0.02
_TAIL = 0.005
_LEAST_VOXELS = 500


def looks_of(heads: Mapping[str, Head]) -> Looks:
    """Measure what tells the sequences apart; the sequences must be registered to each other, at least roughly."""
    reference = heads.get("t1") or heads.get("t1ce")
    if reference is None or len(heads) < 2:
        return Looks()
    padded = np.pad(reference.mask, 1)
    depth = ndimage.distance_transform_edt(padded, sampling=reference.coarse.spacing_mm)[1:-1, 1:-1, 1:-1]
    brain = depth > BRAIN_DEPTH_MM
    if np.count_nonzero(brain) < _LEAST_VOXELS:
        return Looks()
    values = {role: _on(head.coarse, reference.coarse) for role, head in heads.items()}
    rank = fluid_rank = uptake = None
    if "t1" in values and "t2" in values:
        rank = float(stats.spearmanr(values["t1"][brain], values["t2"][brain]).statistic)
        deep = depth > FLUID_DEPTH_MM
        if np.count_nonzero(deep) >= _LEAST_VOXELS:
            fluid_rank = _fluid_rank(values["t1"][deep], values["t2"][deep])
    if "t1" in values and "t1ce" in values:
        uptake = _uptake(values["t1"], values["t1ce"], reference.mask, brain)
    return Looks(*(None if value is None or not np.isfinite(value) else value for value in (rank, fluid_rank, uptake)))


def check_modality(heads: Mapping[str, Head]) -> Iterator[tuple[str, str]]:
    """Family 8, as far as the exam has the sequences for it."""
    looks = looks_of(heads)
    if looks.t1_t2_rank is not None and looks.t1_t2_rank > MAX_T1_T2_RANK:
        yield "t2-like-t1", f"rank correlation of T1 and T2 is {looks.t1_t2_rank:.2f}"
    if looks.csf_rank is not None and looks.csf_rank < MIN_CSF_RANK:
        yield "csf-dark-in-t2", f"the fluid's mean rank in T2 is {looks.csf_rank:.2f} of 1"
    if looks.uptake is not None and looks.uptake < MIN_UPTAKE:
        yield "no-contrast", f"contrast of T1ce - T1 is {looks.uptake:.2f}, expected {MIN_UPTAKE} to 1"


def _on(volume: Volume, grid: Volume) -> npt.NDArray[np.float32]:
    """A volume's values at the voxels of another; the nearest ones outside of it."""
    if volume.shape == grid.shape and np.allclose(volume.affine, grid.affine, atol=1e-3):
        return volume.values
    points = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    indices = np.moveaxis(volume.to_indices(grid.to_world(points)), -1, 0)
    sampled: npt.NDArray[np.float32] = ndimage.map_coordinates(volume.values, indices, order=1, mode="nearest")
    return sampled


def _fluid_rank(t1: npt.NDArray[np.float32], t2: npt.NDArray[np.float32]) -> float:
    ranks = stats.rankdata(t2) / t2.size
    return float(ranks[t1 <= np.quantile(t1, _FLUID_SHARE)].mean())


def _uptake(
    t1: npt.NDArray[np.float32],
    t1ce: npt.NDArray[np.float32],
    head: npt.NDArray[np.bool_],
    brain: npt.NDArray[np.bool_],
) -> float | None:
    before, after = float(np.median(t1[brain])), float(np.median(t1ce[brain]))
    if before <= 0 or after <= 0:
        return None
    difference = (t1ce / after - t1 / before)[head]
    low, high = np.quantile(difference, [_TAIL, 1 - _TAIL])
    spread = abs(high) + abs(low)
    return float((high + low) / spread) if spread > 0 else 0.0
