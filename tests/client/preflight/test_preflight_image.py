"""A file is read once, to its end, and nothing that cannot be read passes for an image."""

import gzip
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.preflight.examine import examine, examine_image
from client.preflight.image import ImageFile, UnreadableError
from client.preflight.listing import Row
from client.preflight.registry import CHECKS
from client.preprocessing.head import block_means
from client.preprocessing.volume import read_volume

LIMIT_S = 10.0


def nifti(seed: int = 0, *, kind: type[nibabel.Nifti1Image] = nibabel.Nifti1Image, dtype: str = "<i2") -> bytes:
    """A bright ball on a grid of 5 mm, small enough to be mutated by the thousand."""
    rng = np.random.default_rng(seed)
    grid = (np.indices((26, 26, 24)).transpose(1, 2, 3, 0) - 12.0) * 5
    values = 500.0 * (np.linalg.norm(grid, axis=-1) < 50) + np.abs(rng.normal(0, 10, grid.shape[:3]))
    affine = np.array([[5.0, 0, 0, -60], [0, 5, 0, -60], [0, 0, 5, -60], [0, 0, 0, 1]])
    image = kind(values.astype(dtype), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return bytes(image.to_bytes())


def packed(plain: bytes) -> bytes:
    return gzip.compress(plain, compresslevel=1, mtime=0)


def blocks(data: bytes) -> list[str]:
    found = examine_image(ImageFile(lambda: data))
    return [check for check, _ in found if CHECKS[check].severity == "block"]


def test_a_sound_file_has_no_findings() -> None:
    assert examine_image(ImageFile(lambda: packed(nifti()))) == []
    assert examine_image(ImageFile(nifti)) == []
    assert examine_image(ImageFile(lambda: packed(nifti(kind=nibabel.Nifti2Image)))) == []


def test_a_file_is_read_once() -> None:
    reads = []

    def read() -> bytes:
        reads.append(1)
        return packed(nifti())

    image = ImageFile(read)
    examine_image(image)
    assert len(image.sha256) == len(image.voxel_digest) == 64
    assert reads == [1]


def test_coarse_values_are_those_of_preprocessing() -> None:
    affine = np.array([[0.9, 0.1, 0, -20], [-0.1, 1.1, 0, 5], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    voxels = np.random.default_rng(1).integers(0, 900, (50, 41, 13)).astype(np.int16)
    stored = nibabel.Nifti1Image(voxels, affine)
    stored.header.set_slope_inter(0.5, -3)
    data = bytes(stored.to_bytes())

    coarse, expected = ImageFile(lambda: data).coarse, block_means(read_volume(data, name="x"), 3.0)

    np.testing.assert_allclose(coarse.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(coarse.values, expected.values, rtol=1e-4, atol=1e-2)


def test_voxels_have_one_digest_whatever_the_header_and_the_byte_order_say() -> None:
    little = ImageFile(nifti)
    source = nibabel.Nifti1Image.from_bytes(nifti())
    header = source.header.as_byteswapped(">")
    swapped = nibabel.Nifti1Image(np.asarray(source.dataobj), source.affine, header)
    big = ImageFile(lambda: bytes(swapped.to_bytes()))
    other = bytearray(nifti())
    other[148:160] = b"another text"

    assert big.dtype == np.dtype(">i2")
    assert little.voxel_digest == big.voxel_digest == ImageFile(lambda: bytes(other)).voxel_digest
    assert little.voxel_digest != ImageFile(lambda: nifti(1)).voxel_digest


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "file-empty"),
    "trailer cut off": (lambda data: data[:-8], "gzip-damaged"),
    "half": (lambda data: data[: len(data) // 2], "gzip-damaged"),
    "wrong checksum": (lambda data: data[:-8] + bytes(4) + data[-4:], "gzip-damaged"),
    "wrong length": (lambda data: data[:-4] + bytes(4), "gzip-damaged"),
    "bytes after the end": (lambda data: data + b"more", "gzip-damaged"),
    "text": (lambda _: b"hello", "file-unreadable"),
    "voxels missing": (lambda data: packed(gzip.decompress(data)[:-100]), "file-unreadable"),
    "voxels too many": (lambda data: packed(gzip.decompress(data) + bytes(100)), "file-unreadable"),
    "a bomb": (lambda data: packed(gzip.decompress(data) + bytes(10**8)), "file-unreadable"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str) -> None:
    change, check = DAMAGE[name]

    assert blocks(change(packed(nifti()))) == [check]


def test_members_of_a_gzip_stream_are_read_one_after_another() -> None:
    plain = nifti()

    assert examine_image(ImageFile(lambda: packed(plain[:1000]) + packed(plain[1000:]))) == []


def test_a_header_that_promises_more_than_any_head_is_not_believed() -> None:
    plain = bytearray(nifti())
    plain[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()

    assert blocks(bytes(plain)) == ["file-too-large"]


def test_a_file_that_vanishes_is_a_finding(tmp_path: Path) -> None:
    row = Row(2, "row 2", "7", "", "necrosis", None, {"t1": "gone.nii"}, {"t1": tmp_path / "gone.nii"})

    assert [hit.check for hit in examine(row).hits] == ["file-absent"]


def test_the_name_of_a_case_is_not_in_what_was_found() -> None:
    with pytest.raises(UnreadableError) as raised:
        _ = ImageFile(lambda: b"").plain

    assert (raised.value.check, raised.value.detail) == ("file-empty", "has 0 bytes")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four accidents: a flipped bit, another byte, a piece lost, doubled or overwritten, a cut end."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not content:
            break
        limit = len(content) if rng.random() < 0.5 else min(len(content), 400)
        at, length = int(rng.integers(limit)), int(rng.integers(1, 40))
        match int(rng.integers(6)):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = int(rng.integers(256))
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at : at + length] = rng.bytes(length)
            case _:
                del content[at:]
    return bytes(content)


def require_found_or_sound(data: bytes) -> None:
    """A file without a finding can be prepared; and neither answer takes long."""
    started = time.monotonic()
    found = blocks(data)
    assert time.monotonic() - started < LIMIT_S
    if not found:
        read_volume(data, name="x")


def fuzz_files(seeds: range) -> None:
    plain, second = nifti(), nifti(kind=nibabel.Nifti2Image)
    floats = nifti(dtype="<f4")
    for seed in seeds:
        rng = np.random.default_rng(seed)
        base = (plain, second, floats)[seed % 3]
        match seed // 3 % 3:
            case 0:
                data = mutated(base, rng)
            case 1:
                data = mutated(packed(base), rng)
            case _:
                data = packed(mutated(base, rng))
        require_found_or_sound(data)


def test_mutated_images_end_in_a_finding() -> None:
    fuzz_files(range(200))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_seven_thousand_mutated_images_end_in_a_finding() -> None:
    fuzz_files(range(200, 7200))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=600))
def test_bytes_of_any_kind_end_in_a_finding(data: bytes) -> None:
    assert blocks(data)
    assert blocks(zlib.compress(data, wbits=31))
