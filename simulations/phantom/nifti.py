"""NIfTI files as a careful converter writes them: units, both transforms, no free text, no name in the gzip header."""

import os
import zlib
from pathlib import Path

import nibabel as nib

from simulations.phantom.exam import Stored
from simulations.phantom.grid import Array

_SCANNER_COORDINATES = 1


def nifti_bytes(voxels: Stored, affine: Array) -> bytes:
    """A gzipped NIfTI-1 file with qform and sform set to scanner coordinates; the same bytes at every call."""
    header = nib.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_xyzt_units("mm", "sec")
    header.set_dim_info(freq=0, phase=1, slice=2)
    header.set_qform(affine, code=_SCANNER_COORDINATES)
    header.set_sform(affine, code=_SCANNER_COORDINATES)
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    no_extension = bytes(4)
    # Mostly noise, for which entropy coding alone is as small as a search for repeats, and faster.
    packer = zlib.compressobj(level=1, wbits=31, strategy=zlib.Z_RLE)
    packed = [packer.compress(header.binaryblock + no_extension), packer.compress(voxels.tobytes(order="F"))]
    return b"".join([*packed, packer.flush()])


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
