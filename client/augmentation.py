"""Random changes to training crops, as the study bounds them: one pass over a batch, the same on every device."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from common.study import AugmentationSpec


def augment(
    batch: Tensor,
    spec: AugmentationSpec,
    *,
    spacing_mm: tuple[float, float, float],
    generator: torch.Generator,
) -> Tensor:
    """Mirror, move, turn, scale, brighten and add noise, each exam in its own way.

    A channel that is zero throughout is an absent sequence and stays so. Where a moved crop has no values, those of its
    border go on. A spec of zeros alone gives back the batch itself.

    Args:
        batch: z-scores; shape (B, C, D, H, W), on any device. Not changed.
        spec: Bounds and probabilities; 0 switches a change off.
        spacing_mm: Voxel size along D, H and W.
        generator: On the CPU. All random numbers come from it, so results do not depend on the device.

    Returns:
        Same shape, dtype and device.
    """
    if spec.flip_probability:
        batch = _mirrored(batch, spec.flip_probability, generator)
    if spec.rotation_degrees or spec.scaling or spec.translation_mm:
        batch = _moved(batch, spec, spacing_mm, generator)
    if spec.intensity or spec.noise or spec.drop_sequence:
        present = _present(batch)
        if spec.drop_sequence:
            present = present & ~_dropped(present, spec.drop_sequence, generator)
        batch = _recoloured(batch, present, spec, generator)
    return batch


def _mirrored(batch: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(len(batch), 3, generator=generator) < probability
    exams = [
        exam.flip([1 + axis for axis in range(3) if axes[axis]]) if any(axes) else exam
        for exam, axes in zip(batch, chosen.tolist(), strict=True)
    ]
    return torch.stack(exams)


def _moved(
    batch: Tensor,
    spec: AugmentationSpec,
    spacing_mm: tuple[float, float, float],
    generator: torch.Generator,
) -> Tensor:
    """One trilinear interpolation per exam by a random rotation, scaling and shift about the crop's middle."""
    draws = 2 * torch.rand(len(batch), 7, generator=generator) - 1  # (B, 7) in [-1, 1)
    rotation = _rotations(draws[:, :3] * math.radians(spec.rotation_degrees))
    turned = rotation * (1 + draws[:, 3, None, None] * spec.scaling)  # (B, 3, 3)
    shift_mm = draws[:, 4:] * spec.translation_mm  # (B, 3)
    # grid_sample counts axes from the last (W, H, D); -1 and 1 are the middles of the outermost voxels.
    half_mm = torch.tensor([(n - 1) * mm / 2 for n, mm in zip(batch.shape[2:], spacing_mm, strict=True)])
    half_mm = half_mm.clamp(min=1e-6).flip(0)
    theta = torch.empty(len(batch), 3, 4)
    theta[:, :, :3] = turned.flip(1).flip(2) * half_mm[None, None, :] / half_mm[None, :, None]
    theta[:, :, 3] = shift_mm.flip(1) / half_mm
    grid = moved_places(theta.to(batch), batch.shape[2:])
    return functional.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=True)


def moved_places(theta: Tensor, size: torch.Size) -> Tensor:
    """Where each voxel's value comes from: what `affine_grid` gives with aligned corners, bit by bit.

    That makes the unmoved places anew for every exam of every batch, which takes it most of its time.

    Args:
        theta: Shape (B, 3, 4).
        size: (D, H, W).

    Returns:
        Shape (B, D, H, W, 3), axes W, H, D from -1 to 1.
    """
    places = _unmoved_places(size, theta.device, theta.dtype).expand(len(theta), -1, -1)
    return places.bmm(theta.transpose(1, 2)).view(len(theta), *size, 3)


@lru_cache(maxsize=1)
def _unmoved_places(size: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The places of a crop's voxels, and a 1 for the shift; shape (1, D * H * W, 4)."""
    unmoved = torch.eye(3, 4, device=device, dtype=dtype)[None]
    grid = functional.affine_grid(unmoved, [1, 1, *size], align_corners=True)
    return functional.pad(grid, (0, 1), value=1.0).view(1, -1, 4)


def _rotations(angles: Tensor) -> Tensor:
    """Rotation matrices about the three axes in turn; radians of shape (B, 3) to (B, 3, 3)."""
    product = torch.eye(3).expand(len(angles), 3, 3)
    for axis in range(3):
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        turn[:, first, first], turn[:, first, second] = cos, -sin
        turn[:, second, first], turn[:, second, second] = sin, cos
        product = product @ turn
    return product


def _present(batch: Tensor) -> Tensor:
    """Which sequences of an exam are there, that is not zero throughout: shape (B, C), on the batch's device."""
    if batch.device.type == "cpu":  # a plane is enough where every sequence shows in it; elsewhere, asking is a wait
        plane = (batch[:, :, batch.shape[2] // 2] != 0).flatten(2).any(dim=2)
        if bool(plane.all()):
            return plane
    return (batch != 0).flatten(2).any(dim=2)


def _dropped(present: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Which sequences are blanked: at most one of an exam, and only where another one remains; shape (B, C)."""
    chance = torch.rand(len(present), generator=generator).to(present.device)
    lots = torch.rand(present.shape, generator=generator).to(present.device).masked_fill(~present, -1.0)
    chosen = functional.one_hot(lots.argmax(dim=1), present.shape[1]).bool()
    return chosen & ((chance < probability) & (present.sum(dim=1) > 1))[:, None]


def _recoloured(batch: Tensor, present: Tensor, spec: AugmentationSpec, generator: torch.Generator) -> Tensor:
    """Contrast, brightness and noise of every volume; those not present become zero."""
    draws = torch.rand(3, *batch.shape[:2], generator=generator).to(batch)  # (3, B, C)
    gain = (1 + (2 * draws[0] - 1) * spec.intensity) * present
    shift = (2 * draws[1] - 1) * spec.intensity * present
    changed = torch.addcmul(shift[..., None, None, None], batch, gain[..., None, None, None])
    if spec.noise:
        noise = torch.randn(batch.shape, generator=generator).to(batch)
        changed.addcmul_(noise, (draws[2] * spec.noise * present)[..., None, None, None])
    return changed
