"""A NIfTI file with the same voxels and the same place in the world, and no free text that could name a person."""

import gzip

from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from client.preprocessing.volume import read_volume
from common.errors import DataError

FREE_TEXT = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
"""Fields of the header that converters fill with times, names and comments; NIfTI-2 lacks the last two."""
_GZIP = b"\x1f\x8b"
_NO_EXTENSION = bytes(4)


def with_fresh_header(data: bytes, *, name: str) -> bytes:
    """The gzipped file without free text, without extensions and without a name or a time in the gzip header.

    The bytes of the voxels, their scaling and both transforms stay as they are.

    Args:
        data: A NIfTI-1 or NIfTI-2 file, gzipped or not.
        name: How the file is named in a message.

    Raises:
        DataError: The file is not a volume that could be prepared.
    """
    read_volume(data, name=name)
    plain = gzip.decompress(data) if data[:2] == _GZIP else data
    is_second = plain[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    kind = Nifti2Header if is_second else Nifti1Header
    size = int(kind.sizeof_hdr)
    try:
        header = kind(plain[:size])
    except (HeaderDataError, WrapStructError) as error:
        raise DataError(f"{name}: its header cannot be read ({error}); export the file again") from None
    begin = int(header["vox_offset"])
    length = int(header.get_data_dtype().itemsize)
    for extent in header.get_data_shape():
        length *= int(extent)
    voxels = plain[begin : begin + length]
    if begin < size or len(voxels) < length:
        raise DataError(f"{name}: has {len(voxels)} bytes of voxels, expected {length}; export the file again")
    for field in FREE_TEXT:
        if field in header.structarr.dtype.names:
            header.structarr[field] = b""
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    return gzip.compress(header.binaryblock + _NO_EXTENSION + voxels, compresslevel=6, mtime=0)
