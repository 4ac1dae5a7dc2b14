"""All checks of one exam's files, each file read once. Runs in a worker process, without torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from client.exam import SEQUENCES
from client.preflight.findings import Hit
from client.preflight.image import ImageFile, UnreadableError
from client.preflight.listing import MASKS, Row
from client.preflight.modality import check_modality
from client.preflight.personal import check_header, check_sidecar
from client.preflight.pictures import draw_case
from client.preprocessing.head import Head, find_head
from client.preprocessing.volume import (
    MAX_DISAGREEMENT_MM,
    MAX_SPACING_MM,
    MIN_SPACING_MM,
    MIN_VOXELS,
)
from common.errors import DataError

MAX_SHEAR_DEG = 0.5
GRID_TOLERANCE_MM = 1e-3
DIRECTION_TOLERANCE_DEG = 0.1
LEAST_OVERLAP = 0.5

_UNUSUAL_SPACING_MM = (0.2, 10.0)
_UNUSUAL_EXTENT_MM = (120.0, 350.0)
_LEAST_SLICES = 12
_SATURATED_SHARE = 0.01
_ISLAND_CM3 = 0.1
_FORBIDDEN_UNITS = {1: "metres", 3: "micrometres"}

Found = Iterator[tuple[str, str]]
"""Ids of checks, and what was found."""


@dataclass(frozen=True)
class FileFacts:
    """What is kept of a file that was read.

    Attributes:
        path: Where it lies.
        sha256: Of its bytes; "" where it could not be read.
        voxel_digest: Of its voxels; "" likewise.
        num_bytes: Its size on disk.
    """

    path: Path
    sha256: str
    voxel_digest: str
    num_bytes: int


@dataclass(frozen=True)
class Examined:
    """What was found in one exam.

    Attributes:
        number: Its row.
        hits: What is wrong.
        files: What is kept of every file, by role.
        picture: A PNG of the readable sequences; empty unless asked for.
    """

    number: int
    hits: tuple[Hit, ...]
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    picture: bytes = b""


@dataclass(frozen=True)
class Drawing:
    """Asks for a picture of every exam.

    Attributes:
        crop_mm: Edges of the study's crop; None draws none.
    """

    crop_mm: tuple[float, float, float] | None = None


def examine(row: Row, drawing: Drawing | None = None) -> Examined:
    """Read all files of an exam, check them, and draw them if asked to."""
    hits: list[Hit] = []
    files: dict[str, FileFacts] = {}
    images: dict[str, ImageFile] = {}
    heads: dict[str, Head] = {}
    placed: dict[str, ImageFile] = {}
    for role, path in row.files.items():
        image = ImageFile.at(path)
        found = [*examine_image(image, mask=role in MASKS), *check_sidecar(path)]
        hits += [Hit(check, row.name, f"{role}: {detail}") for check, detail in found]
        files[role] = _facts(path, image)
        blocked = {check for check, _ in found} & _NO_VALUES
        if files[role].voxel_digest and not blocked & _NO_PLACE:
            placed[role] = image
        if files[role].voxel_digest and not blocked and role in SEQUENCES:
            images[role] = image
            try:
                heads[role] = find_head(image.coarse, name="")
            except DataError:
                hits.append(Hit("no-head", row.name, f"{role}: shows no head"))
    of_exam = [*check_grids({role: image for role, image in placed.items() if role in SEQUENCES})]
    of_exam += [*_check_lesion(row, placed), *_check_copies(files), *check_modality(heads)]
    hits += [Hit(check, row.name, detail) for check, detail in of_exam]
    picture = b""
    if drawing is not None and images:
        volumes = {role: image.coarse for role, image in images.items()}
        picture = draw_case(volumes, centre=row.point, crop_mm=drawing.crop_mm)
    return Examined(row.number, tuple(hits), files, picture)


_NO_PLACE = frozenset({"place-unknown", "affine-singular", "spacing-impossible"})
_NO_VALUES = _NO_PLACE | {"voxels-not-finite", "voxels-constant", "affine-sheared", "transforms-disagree"}


def _facts(path: Path, image: ImageFile) -> FileFacts:
    try:
        sha256, size = image.sha256, len(image.raw)
    except UnreadableError:
        return FileFacts(path, "", "", 0)
    try:
        return FileFacts(path, sha256, image.voxel_digest, size)
    except UnreadableError:
        return FileFacts(path, sha256, "", size)


def examine_image(image: ImageFile, *, mask: bool = False) -> list[tuple[str, str]]:
    """All that is wrong with one file.

    Args:
        image: The file.
        mask: Whether it is a mask, whose values are not those of an image.
    """
    found: list[tuple[str, str]] = []
    try:
        with np.errstate(all="ignore"):  # numbers of a damaged header
            found += check_header(image)
            found += check_place(image)
            found += _check_kind(image)
            found += _check_mask(image) if mask else check_values(image)
    except UnreadableError as fault:
        found.append((fault.check, fault.detail))
    return found


def check_place(image: ImageFile) -> Found:
    """Families 4 and 13: whether the header places the volume in the world, and how large it is there."""
    header = image.header
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not has_sform and not has_qform:
        yield "place-unknown", "sform and qform codes are both 0"
        return
    units = int(header["xyzt_units"]) & 7
    if units in _FORBIDDEN_UNITS:
        yield "units-not-mm", f"lengths are in {_FORBIDDEN_UNITS[units]}"
    affine = image.affine
    matrix = affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(matrix)) < 1e-3 * spacing.prod() + 1e-12:
        yield "affine-singular", "the affine is singular or not finite"
        return
    told = " x ".join(f"{mm:.4g}" for mm in spacing)
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        yield "spacing-impossible", f"voxels measure {told} mm"
        return
    if spacing.min() < _UNUSUAL_SPACING_MM[0] or spacing.max() > _UNUSUAL_SPACING_MM[1]:
        yield "spacing-unusual", f"voxels measure {told} mm"
    directions = matrix / spacing
    skew = np.abs(directions.T @ directions - np.eye(3)).max()
    if skew > np.sin(np.deg2rad(MAX_SHEAR_DEG)):
        yield "affine-sheared", f"axes are {np.rad2deg(np.arcsin(min(skew, 1.0))):.1f} degrees off a right angle"
    if has_sform and has_qform:
        yield from _check_transforms(image)
    if "".join(nibabel.aff2axcodes(affine)) != "RAS":
        yield "not-ras", f"axes run {''.join(nibabel.aff2axcodes(affine))}"
    shape = image.shape[:3]
    if len(shape) == 3:
        extent = spacing * np.array(shape)
        if extent.min() < _UNUSUAL_EXTENT_MM[0] or extent.max() > _UNUSUAL_EXTENT_MM[1]:
            yield "field-of-view-unusual", f"shows {' x '.join(f'{mm:.0f}' for mm in extent)} mm"
        if min(shape) < _LEAST_SLICES:
            yield "few-slices", f"has {min(shape)} slices"


def _check_transforms(image: ImageFile) -> Found:
    apart = _corners_apart(image)
    if apart is None:
        yield "transforms-disagree", "the qform's quaternion is no rotation"
    elif not apart <= MAX_DISAGREEMENT_MM:  # NaN disagrees, too
        yield "transforms-disagree", f"sform and qform are up to {apart:.1f} mm apart"


def _corners_apart(image: ImageFile) -> float | None:
    """How far apart sform and qform place a corner, mm; None where the qform is none."""
    try:
        qform = image.header.get_qform()
    except ValueError:
        return None
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array((*image.shape, 1, 1)[:3]) - 1
    difference = image.header.get_sform() - qform
    return float(np.linalg.norm((corners @ difference.T)[:, :3], axis=1).max())


def _check_kind(image: ImageFile) -> Found:
    """Family 14; raises where the file holds no single volume, read to its last byte."""
    shape = image.voxels.shape
    if len(image.shape) > 3:
        yield "trailing-one", f"has shape {image.shape}"
    if min(shape) < MIN_VOXELS:
        yield "not-3d", f"has shape {shape}, expected {MIN_VOXELS} voxels or more along each axis"


def check_values(image: ImageFile) -> Found:
    """Family 7: what the numbers themselves give away."""
    voxels = image.voxels.transpose()  # in the order of the bytes
    slope, inter = image.scaling
    lowest, highest = voxels.min(), voxels.max()
    # Through float32, as preprocessing reads them: a huge float64, or slope, is infinite there.
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.array([lowest, highest], dtype=np.float32) * np.float32(slope) + np.float32(inter)
    if not np.isfinite(ends).all():
        num_bad = int(np.count_nonzero(~np.isfinite(voxels))) if voxels.dtype.kind == "f" else 0
        yield "voxels-not-finite", f"{num_bad} voxels are NaN or infinite" if num_bad else "values are beyond float32"
        return
    if ends[0] == ends[1]:
        yield "voxels-constant", f"every voxel is {float(ends[0]):g}"
        return
    if min(ends) < 0:
        spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
        voxel_cm3 = float(spacing.prod()) / 1000
        negative = voxels * np.float32(slope) + np.float32(inter) < -1e-3 * float(np.abs(ends).max())
        pieces, count = ndimage.label(negative)
        largest = int(np.bincount(pieces.ravel())[1:].max()) if count else 0
        if largest * voxel_cm3 >= _ISLAND_CM3:
            yield "negative-islands", f"{largest} connected voxels are below 0"
    share = float(np.mean(voxels == (highest if slope > 0 else lowest)))
    head = float(np.mean(voxels > lowest + 0.05 * (float(highest) - float(lowest)))) if share > 1e-4 else 1.0
    if share > _SATURATED_SHARE * max(head, 1e-9):
        yield "saturated", f"{share / max(head, 1e-9):.1%} of the bright voxels have the largest value"


def _check_mask(image: ImageFile) -> Found:
    voxels = image.voxels
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        yield "voxels-not-finite", "the mask holds NaN or infinite values"
    elif voxels.min() == voxels.max():
        yield "mask-empty", f"every voxel is {voxels.flat[0]:g}"


def check_grids(images: Mapping[str, ImageFile]) -> Found:
    """Family 3: the sequences of an exam against the first of them."""
    if len(images) < 2:
        return
    (first, reference), *others = images.items()
    for role, image in others:
        own, other = image.affine, reference.affine
        spacing, expected = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (own, other))
        same_size = image.grid_shape == reference.grid_shape
        same_spacing = bool((np.abs(spacing - expected) <= GRID_TOLERANCE_MM).all())
        cosines = np.sum((own[:3, :3] / spacing) * (other[:3, :3] / expected), axis=0)
        turned = float(np.rad2deg(np.arccos(np.clip(cosines, -1, 1))).max())
        shift = float(np.abs(own[:3, 3] - other[:3, 3]).max())
        if same_size and same_spacing and turned > 90.0:
            yield "orientation-differs", f"{role} against {first}: axes are turned by {turned:.0f} degrees"
            continue
        overlap = _overlap(image, reference)
        if overlap < LEAST_OVERLAP:
            yield "little-overlap", f"{role} and {first} share {overlap:.0%} of the smaller field of view"
        elif not same_size or not same_spacing or turned > DIRECTION_TOLERANCE_DEG or shift > GRID_TOLERANCE_MM:
            found = f"shapes {image.grid_shape} and {reference.grid_shape}, origins {shift:.3g} mm apart"
            yield "grid-differs", f"{role} against {first}: {found}, axes turned by {turned:.2g} degrees"


def _overlap(image: ImageFile, reference: ImageFile) -> float:
    """Share of the smaller field of view that lies in the larger one, from 9³ points."""
    smaller, larger = sorted(
        (image, reference), key=lambda each: abs(np.linalg.det(each.affine[:3, :3])) * np.prod(each.grid_shape)
    )
    steps = np.stack(np.meshgrid(*(np.linspace(0, n - 1, 9) for n in smaller.grid_shape), indexing="ij"), axis=-1)
    world = steps.reshape(-1, 3) @ smaller.affine[:3, :3].T + smaller.affine[:3, 3]
    inverse = np.linalg.inv(larger.affine)
    indices = world @ inverse[:3, :3].T + inverse[:3, 3]
    inside = (indices > -1).all(axis=1) & (indices < np.array(larger.grid_shape)).all(axis=1)
    return float(inside.mean())


def _check_lesion(row: Row, placed: Mapping[str, ImageFile]) -> Found:
    volumes = [image for role, image in placed.items() if role in SEQUENCES]
    if row.point is None or not volumes:
        return
    for image in volumes:
        inverse = np.linalg.inv(image.affine)
        indices = inverse[:3, :3] @ np.array(row.point) + inverse[:3, 3]
        if (indices > -1).all() and (indices < np.array(image.grid_shape)).all():
            return
    yield "lesion-outside", f"the lesion's point {[round(mm, 1) for mm in row.point]} lies outside every volume"


def _check_copies(files: Mapping[str, FileFacts]) -> Found:
    first: dict[str, str] = {}
    for role, facts in files.items():
        if facts.voxel_digest:
            other = first.setdefault(facts.voxel_digest, role)
            if other != role:
                yield "t1-is-t1ce", f"{role} and {other} hold the same voxels"
