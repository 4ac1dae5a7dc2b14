"""A volume and its place in the world, read from NIfTI bytes with every doubt refused."""

import gzip
import math
from dataclasses import dataclass

import nibabel
import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from common.errors import DataError

FloatArray = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Point = npt.NDArray[np.float64]
Shape = tuple[int, int, int]

MIN_SPACING_MM = 0.1
MAX_SPACING_MM = 20.0
MAX_DISAGREEMENT_MM = 0.5
"""The qform is a quaternion in float32; near a turn by 180 degrees its rounding alone moves a corner by up to .3 mm."""
MIN_VOXELS = 4


@dataclass(frozen=True)
class Volume:
    """One volume on its own grid.

    Attributes:
        values: Shape (I, J, K), finite.
        affine: From voxel indices to world mm in RAS; shape (4, 4), invertible.
    """

    values: FloatArray
    affine: Affine

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        i, j, k = self.values.shape
        return i, j, k

    @property
    def spacing_mm(self) -> npt.NDArray[np.float64]:
        """Distance of neighbouring voxels along each axis; shape (3,)."""
        spacing: npt.NDArray[np.float64] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return spacing

    def to_world(self, indices: npt.ArrayLike) -> Point:
        """World mm of voxel indices; shape (..., 3) to (..., 3)."""
        world: Point = np.asarray(indices, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def to_indices(self, world: npt.ArrayLike) -> Point:
        """Voxel indices, not rounded, of points in world mm; shape (..., 3) to (..., 3)."""
        inverse = np.linalg.inv(self.affine)
        indices: Point = np.asarray(world, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
        return indices


def read_volume(data: bytes, *, name: str) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, gzipped or not.

    The gzip stream is read to its end: nibabel alone accepts one with a wrong checksum or a cut end.

    Args:
        data: The whole file.
        name: How the file is named in a message.

    Raises:
        DataError: The file is damaged, not a single 3D volume of real numbers, or says no clear place in the world.
    """
    image = _image(_plain(data, name), name)
    if len(image.shape) > 3 and image.shape[3:] == (1,) * (len(image.shape) - 3):
        image = image.slicer[(..., *(0,) * (len(image.shape) - 3))]
    if len(image.shape) != 3 or min(image.shape) < MIN_VOXELS:
        raise DataError(
            f"{name}: has shape {image.shape}, expected one 3D volume of at least {MIN_VOXELS} voxels along each "
            "axis; export a single volume"
        )
    affine = _affine(image, name)
    if image.get_data_dtype().kind not in "iuf":
        raise DataError(
            f"{name}: voxels are of type {image.get_data_dtype()} (colour or complex), expected plain numbers; "
            "export the grey-scale volume"
        )
    try:
        values: FloatArray = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: the voxels cannot be read ({error}); export the file again") from None
    lowest, highest = float(values.min()), float(values.max())  # NaN, where any voxel is
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        num_bad = int(np.count_nonzero(~np.isfinite(values)))
        raise DataError(f"{name}: holds {num_bad} voxels that are NaN or infinite; export the volume again")
    if lowest == highest:
        raise DataError(f"{name}: every voxel is {lowest:g}, so the volume shows nothing; export it again")
    return Volume(values, affine)


def _plain(data: bytes, name: str) -> bytes:
    if not data:
        raise DataError(f"{name}: is empty (0 bytes); export the file again")
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        plain: bytes = igzip.decompress(data)  # type: ignore[no-untyped-call]  # half the time of zlib
        return plain
    except (EOFError, gzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]  # isal 1.9.1's stub is wrong
        raise DataError(
            f"{name}: the compressed data are damaged or cut short ({error}); copy or export the file again"
        ) from None


def _image(data: bytes, name: str) -> nibabel.Nifti1Image:
    kind = nibabel.Nifti2Image if data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
    try:
        return kind.from_bytes(data)
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: is not a readable NIfTI file ({reason}); export it again") from None


def _affine(image: nibabel.Nifti1Image, name: str) -> Affine:
    header = image.header
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not has_sform and not has_qform:
        raise DataError(
            f"{name}: sform and qform codes are both 0, so its place in the world is unknown; "
            "convert it from DICOM again, for example by dcm2niix"
        )
    affine: Affine = np.asarray(image.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * spacing.prod() + 1e-12:
        raise DataError(
            f"{name}: its affine is singular or not finite, so its place in the world is unknown; "
            "convert it from DICOM again"
        )
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        raise DataError(
            f"{name}: voxels measure {' x '.join(f'{mm:.4g}' for mm in spacing)} mm, expected {MIN_SPACING_MM} to "
            f"{MAX_SPACING_MM:g} mm along each axis (units of metres?); convert it from DICOM again"
        )
    if has_sform and has_qform:
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
        corners[:, :3] *= np.array(image.shape[:3]) - 1
        apart = np.linalg.norm((corners @ (header.get_sform() - header.get_qform()).T)[:, :3], axis=1).max()
        if apart > MAX_DISAGREEMENT_MM:
            raise DataError(
                f"{name}: sform and qform place the volume up to {apart:.1f} mm apart, expected at most "
                f"{MAX_DISAGREEMENT_MM} mm; convert it from DICOM again, or delete the wrong one"
            )
    return affine
