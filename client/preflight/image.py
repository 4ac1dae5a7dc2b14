"""One image file: read once, decompressed to its last byte, parts worked out when they are first asked for."""

import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from client.preprocessing.volume import Affine, FloatArray, Shape, Volume

MAX_PLAIN_BYTES = 512 * 2**20
COARSE_MM = 3.0
"""Edge of the blocks on which images are looked at; that of `client.preprocessing.head`."""

_HEADER_BYTES = {348: 352, 540: 544}
"""Size that a header states -> bytes until its extensions' flags end."""
_CHUNK = 4 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_FEXTRA, _FNAME, _FCOMMENT = 4, 8, 16

Array = npt.NDArray[Any]


class UnreadableError(Exception):
    """A file cannot be read as an image.

    Attributes:
        check: Id of the check that finds it.
        detail: What was found.
    """

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(detail)
        self.check = check
        self.detail = detail


@dataclass(frozen=True)
class GzipHeader:
    """What a gzip wrapper says beside the data (RFC 1952): flags of free text."""

    has_name: bool
    has_comment: bool
    has_extra: bool


class ImageFile:
    """A NIfTI-1 or NIfTI-2 file, gzipped or not.

    The file is read at the first question and never again. A gzip stream is followed to its trailer, whose checksum
    and length are compared: nibabel alone loads a file whose end is cut off or whose checksum is wrong.

    Args:
        read: Gives the file's bytes; called once.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read

    @classmethod
    def at(cls, path: Path) -> "ImageFile":
        """The image in a file."""
        return cls(path.read_bytes)

    @cached_property
    def raw(self) -> bytes:
        """The file's bytes.

        Raises:
            UnreadableError: They cannot be read.
        """
        try:
            return self._read()
        except OSError as error:
            raise UnreadableError("file-absent", f"cannot be read ({error.strerror or error})") from None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.raw).hexdigest()

    @cached_property
    def gzip_header(self) -> GzipHeader | None:
        """What the gzip wrapper says; None without one."""
        if self.raw[:2] != _GZIP_MAGIC or len(self.raw) < 10:
            return None
        flags = self.raw[3]
        return GzipHeader(bool(flags & _FNAME), bool(flags & _FCOMMENT), bool(flags & _FEXTRA))

    @cached_property
    def _plain_or_fault(self) -> "memoryview | UnreadableError":
        try:
            return memoryview(_unpacked(self.raw))
        except UnreadableError as fault:
            return fault

    @property
    def plain(self) -> memoryview:
        """The whole NIfTI file without its wrapper.

        Raises:
            UnreadableError: The file is empty, damaged, or not as long as its header says.
        """
        if isinstance(self._plain_or_fault, UnreadableError):
            raise self._plain_or_fault
        return self._plain_or_fault

    @cached_property
    def header(self) -> nibabel.Nifti1Header:
        """The header as nibabel reads it.

        Raises:
            UnreadableError: It is no NIfTI header.
        """
        return _header(bytes(self.plain[:544]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis as stored."""
        return tuple(int(n) for n in self.header.get_data_shape())

    @property
    def dtype(self) -> "np.dtype[Any]":
        """How voxels are stored."""
        dtype: np.dtype[Any] = self.header.get_data_dtype()
        return dtype

    @property
    def num_extension_bytes(self) -> int:
        """Bytes of header extensions: all between the header and the voxels, if the flag before them is set."""
        start = _HEADER_BYTES[int(self.header["sizeof_hdr"])]
        return int(self.header["vox_offset"]) - start if self.plain[start - 4] else 0

    @cached_property
    def voxels(self) -> Array:
        """Stored numbers, before slope and intercept; shape (I, J, K), a fourth axis of length 1 taken off.

        Raises:
            UnreadableError: The file does not hold one grey-scale volume.
        """
        if self.dtype.kind not in "iuf":
            raise UnreadableError("not-grey", f"voxels are of type {self.dtype}")
        shape = self.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3:
            raise UnreadableError("not-3d", f"has shape {self.shape}")
        count = int(np.prod(shape, dtype=np.int64))
        offset = int(self.header["vox_offset"])
        return np.frombuffer(self.plain, dtype=self.dtype, count=count, offset=offset).reshape(shape, order="F")

    @cached_property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept; (1, 0) where the header has none."""
        slope, inter = self.header.get_slope_inter()
        return (1.0, 0.0) if slope is None else (float(slope), float(inter))

    @property
    def affine(self) -> Affine:
        """From voxel indices to world mm, as nibabel takes it; shape (4, 4)."""
        affine: Affine = np.asarray(self.header.get_best_affine(), dtype=np.float64)
        return affine

    @cached_property
    def voxel_digest(self) -> str:
        """SHA-256 of shape and stored numbers, whatever the header and the wrapper say, in hexadecimal."""
        voxels = self.voxels
        digest = hashlib.sha256(f"{voxels.shape} {voxels.dtype.newbyteorder('<').str}".encode())
        if voxels.dtype.byteorder == ">":
            voxels = voxels.astype(voxels.dtype.newbyteorder("<"))
        digest.update(voxels.ravel(order="F").view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def coarse(self) -> Volume:
        """Means over blocks of about 3 mm, with slope and intercept; a rest at the far end is cut off.

        The same as `client.preprocessing.head.block_means`, whole planes added at a time.
        """
        affine = self.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        factors = np.minimum(np.maximum(1, np.rint(COARSE_MM / spacing)), self.voxels.shape).astype(int)
        values = self.voxels.transpose()  # in the order of the bytes
        for axis, factor in enumerate(factors[::-1].tolist()):
            count = values.shape[axis] // factor
            part = np.moveaxis(values, axis, 0)[: count * factor]
            total = part[::factor].astype(np.float32)
            for first in range(1, factor):
                total += part[first::factor]
            if factor > 1:
                total *= np.float32(1 / factor)
            values = np.moveaxis(total, 0, axis)
        slope, inter = self.scaling
        scaled: FloatArray = np.ascontiguousarray(values.transpose()) * np.float32(slope) + np.float32(inter)
        coarse_affine = affine @ np.diag([*factors.astype(float), 1.0])
        coarse_affine[:3, 3] = affine[:3, :3] @ ((factors - 1) / 2) + affine[:3, 3]
        return Volume(scaled, coarse_affine)

    @property
    def grid_shape(self) -> Shape:
        """Shape of `voxels`."""
        i, j, k = self.voxels.shape
        return i, j, k


def _header(start: bytes) -> nibabel.Nifti1Header:
    kind, size = nibabel.Nifti1Header, 348
    if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        kind, size = nibabel.Nifti2Header, 540
    try:
        with LoggingOutputSuppressor():  # what nibabel would log is raised or mended
            header = kind(start[:size], check=True)
            header.get_data_dtype()
            shape = header.get_data_shape()
            header.get_best_affine()
            header.get_slope_inter()
    except (HeaderDataError, WrapStructError, ValueError, KeyError, np.linalg.LinAlgError) as error:
        raise UnreadableError("file-unreadable", f"is not a readable NIfTI file ({error})") from None
    if bytes(header["magic"].item())[:2] != b"n+":
        raise UnreadableError("file-unreadable", "is a header whose voxels lie in another file")
    offset = float(header["vox_offset"])
    if not (size + 4 <= offset < MAX_PLAIN_BYTES and offset == int(offset)):
        raise UnreadableError("file-unreadable", f"says that its voxels begin at byte {offset:g}")
    if not shape or min(shape) < 1:
        raise UnreadableError("file-unreadable", f"has shape {tuple(int(n) for n in shape)}")
    return header


def _expected_bytes(start: bytes) -> int:
    """How long the NIfTI file is by its own header.

    Raises:
        UnreadableError: There is no header, or it promises too much.
    """
    if len(start) < 352:
        raise UnreadableError("file-unreadable", f"holds {len(start)} bytes, too few for a NIfTI header")
    header = _header(start)
    sizes = [int(size) for size in header.get_data_shape()]  # Python's: a damaged header may promise over 64 bits
    total = int(header["vox_offset"]) + math.prod(sizes) * int(header.get_data_dtype().itemsize)
    if total > MAX_PLAIN_BYTES:
        raise UnreadableError("file-too-large", f"takes {total / 2**20:.0f} MB by its header")
    return total


def _unpacked(raw: bytes) -> bytes | bytearray:
    """The NIfTI file inside, exactly as long as its header says."""
    if not raw:
        raise UnreadableError("file-empty", "has 0 bytes")
    if raw[:2] != _GZIP_MAGIC:
        expected = _expected_bytes(raw[:544])
        if len(raw) != expected:
            raise UnreadableError("file-unreadable", f"holds {len(raw)} bytes, its header says {expected}")
        return raw
    start = _first_bytes(raw)
    plain = bytearray(_expected_bytes(start))
    filled = 0
    rest = raw
    while rest:
        stream = zlib.decompressobj(wbits=31)
        waiting = rest
        while waiting or not stream.eof:
            try:
                part = stream.decompress(waiting, _CHUNK)
            except zlib.error as error:
                raise UnreadableError("gzip-damaged", f"the compressed data are damaged ({error})") from None
            if filled + len(part) > len(plain):
                raise UnreadableError("file-unreadable", f"holds more than the {len(plain)} bytes of its header")
            plain[filled : filled + len(part)] = part
            filled += len(part)
            if stream.eof:
                break
            waiting = stream.unconsumed_tail
            if not waiting and not part:
                raise UnreadableError("gzip-damaged", "the compressed data end too early")
        rest = stream.unused_data
        if rest and rest[:2] != _GZIP_MAGIC:
            raise UnreadableError("gzip-damaged", f"{len(rest)} bytes follow the end of the compressed data")
    if filled != len(plain):
        raise UnreadableError("file-unreadable", f"holds {filled} bytes, its header says {len(plain)}")
    return plain


def _first_bytes(raw: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        return stream.decompress(raw[: 64 * 1024], 544)
    except zlib.error as error:
        raise UnreadableError("gzip-damaged", f"the compressed data are damaged ({error})") from None
