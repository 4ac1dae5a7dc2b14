"""The same voxels are the same however the file is written; blinded by two sites they match, by one they do not."""

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.duplicates import blinded, blinded_again, blinding_key, voxel_fingerprint
from client.preprocessing.volume import read_volume
from common.duplicates import BlindedPatients
from common.errors import ProtocolError
from simulations.phantom.patient import PatientJob, write_patient
from simulations.phantom.spec import HOSPITALS, PhantomOptions

VOLUMES = arrays(np.int16, st.tuples(*(st.integers(2, 5),) * 3))
HASHES = st.integers(0, 7).map(lambda number: hashlib.sha256(bytes([number])).digest())
PATIENTS = st.lists(st.lists(HASHES, min_size=1, max_size=3), max_size=4)
KEYS = st.integers(0, 1000).map(lambda number: hashlib.sha256(b"key" + bytes(str(number), "ascii")).digest())


@given(values=VOLUMES, axes=st.permutations(range(3)), flips=st.sets(st.integers(0, 2)), data=st.data())
@settings(max_examples=60, deadline=None)
def test_turning_scaling_and_another_type_keep_the_fingerprint(
    values: np.ndarray, axes: list[int], flips: set[int], data: st.DataObject
) -> None:
    slope, offset = data.draw(st.sampled_from([1.0, 0.5, 3.0])), data.draw(st.integers(-500, 500))

    turned = np.flip(values.transpose(axes), tuple(flips)).astype(np.float32) * np.float32(slope) + np.float32(offset)

    assert voxel_fingerprint(turned) == voxel_fingerprint(values.astype(np.float32))


@given(values=VOLUMES)
@settings(max_examples=30, deadline=None)
def test_one_more_voxel_of_a_value_is_another_image(values: np.ndarray) -> None:
    counts = np.unique(values, return_counts=True)[1]
    other = values.copy()
    other.flat[0] = other.flat[-1] if other.flat[0] != other.flat[-1] else other.flat[0] ^ 1

    if not np.array_equal(np.unique(other, return_counts=True)[1], counts):
        assert voxel_fingerprint(other.astype(np.float32)) != voxel_fingerprint(values.astype(np.float32))


@given(first=PATIENTS, second=PATIENTS, keys=st.tuples(KEYS, KEYS))
@settings(max_examples=40, deadline=None)
def test_points_blinded_by_both_sites_count_what_the_plain_ones_count(
    first: list[list[bytes]], second: list[list[bytes]], keys: tuple[bytes, bytes]
) -> None:
    key_a, key_b = keys
    plain = {image for patient in second for image in patient}
    shared = sum(not plain.isdisjoint(patient) for patient in first)

    of_first, of_second = blinded(first, key_a), blinded(second, key_b)

    assert blinded_again(of_first, key_b).num_shared_with(blinded_again(of_second, key_a)) == shared
    assert len({len(group) for group in of_first.groups}) <= 1


def test_points_of_one_site_match_neither_those_of_another_nor_of_another_run_nor_a_guess() -> None:
    image, secret = bytes(range(32)), b"s" * 32
    of_run = {run: blinded([[image]], blinding_key(secret, run=run, study_digest="d")) for run in ("1", "2")}
    guess = blinded([[image]], b"g" * 32)

    assert of_run["1"].num_shared_with(of_run["2"]) == 0
    assert of_run["1"].num_shared_with(guess) == 0
    assert image not in of_run["1"].groups


def test_a_point_that_would_tell_of_the_secret_is_refused() -> None:
    with pytest.raises(ProtocolError, match="small order"):
        blinded_again(BlindedPatients((bytes(32),)), b"k" * 32)


@pytest.mark.parametrize("groups", [[b"x" * 31], [b"x" * 32, b"x" * 64], [b""]], ids=["cut", "uneven", "empty"])
def test_groups_that_are_no_points_are_refused(groups: list[bytes]) -> None:
    with pytest.raises(ProtocolError, match="duplicates: "):
        BlindedPatients.from_groups(groups)


def test_an_image_is_recognised_in_a_file_that_another_hospital_wrote(tmp_path: Path) -> None:
    options = PhantomOptions(spacing_mm=6.0)
    record = write_patient(PatientJob(HOSPITALS["A"], 0, 0, "sub-A001", tmp_path, options))
    other = write_patient(PatientJob(HOSPITALS["A"], 1, 0, "sub-A002", tmp_path, options))
    image = nibabel.load(tmp_path / record.images["t1"])
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
    again = nibabel.Nifti2Image(turned.get_fdata().astype(np.float32), turned.affine)
    again.header["descrip"] = b"saved again"

    def fingerprint(data: bytes) -> bytes:
        return voxel_fingerprint(read_volume(data, name="e").values)

    original = fingerprint((tmp_path / record.images["t1"]).read_bytes())
    assert fingerprint(again.to_bytes()) == original
    assert original not in [fingerprint((tmp_path / other.images[name]).read_bytes()) for name in ("t1", "t2", "t1ce")]
    assert original != fingerprint((tmp_path / record.images["t1ce"]).read_bytes())
