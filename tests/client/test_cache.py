"""The cache of prepared exams and its filling: never stale, never half-written, checked when read."""

import logging
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import nibabel
import numpy as np
import pytest
import torch

from client.cache import ExamCache
from client.config import SiteConfig
from client.digests import SETTLED_NS, DigestMemo, file_state, has_settled, sha256_of
from client.loader import PreparedCohort
from client.prepare import prepare_site
from client.preprocessing.stages import Arrays
from client.private_files import write_atomically
from client.table import SPLITS
from common.errors import ConfigError, DataError
from common.study import Study

KEY = "0" * 64


class Hospital(Protocol):
    folder: Path

    def config(self) -> SiteConfig: ...
    def edit_table(self, old: str, new: str) -> None: ...


MakeHospital = Callable[[int], Hospital]


def a_channel() -> Arrays:
    values = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    return {"values": values, "brightness": np.array([1.0, 2.5])}


def entries(hospital: Hospital, stage: str = "*") -> list[Path]:
    return sorted((hospital.folder / "cache" / "exams").glob(f"*.{stage}.exam"))


def all_images(prepared: PreparedCohort) -> torch.Tensor:
    return torch.cat([prepared.splits[split].images[:] for split in SPLITS])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    cache = ExamCache(tmp_path / "cache")

    cache.write("channel", KEY, a_channel())

    read = cache.read("channel", KEY)
    assert read is not None
    for name, array in a_channel().items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_an_unknown_key_is_none(tmp_path: Path) -> None:
    assert ExamCache(tmp_path).read("centre", KEY) is None


@pytest.mark.parametrize("position", [0, 40, 200, -1])
def test_a_flipped_byte_anywhere_is_noticed(tmp_path: Path, position: int, caplog: pytest.LogCaptureFixture) -> None:
    cache = ExamCache(tmp_path)
    cache.write("channel", KEY, a_channel())
    file = tmp_path / "exams" / f"{KEY}.channel.exam"
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)

    with caplog.at_level(logging.WARNING):
        assert cache.read("channel", KEY) is None

    assert "damaged" in caplog.text


@pytest.mark.parametrize("length", [0, 10, 32, 100, 900])
def test_an_entry_that_was_cut_short_is_noticed(tmp_path: Path, length: int) -> None:
    cache = ExamCache(tmp_path)
    cache.write("channel", KEY, a_channel())
    os.truncate(tmp_path / "exams" / f"{KEY}.channel.exam", length)

    assert cache.read("channel", KEY) is None


def test_an_entry_under_another_key_is_noticed(tmp_path: Path) -> None:
    cache = ExamCache(tmp_path)
    cache.write("channel", KEY, a_channel())
    (tmp_path / "exams" / f"{KEY}.channel.exam").rename(tmp_path / "exams" / f"{'1' * 64}.channel.exam")

    assert cache.read("channel", "1" * 64) is None


def test_the_site_secret_is_drawn_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    secret = ExamCache(tmp_path).site_secret()

    assert ExamCache(tmp_path).site_secret() == secret
    assert len(secret) == 32
    assert stat.S_IMODE((tmp_path / "site_secret").stat().st_mode) == 0o600
    assert ExamCache(tmp_path / "other").site_secret() != secret


def test_the_cache_and_what_is_made_above_it_are_the_owners_alone(tmp_path: Path) -> None:
    ExamCache(tmp_path / "new" / "cache")

    for folder in ("new", "new/cache", "new/cache/exams"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


def test_a_damaged_site_secret_is_refused(tmp_path: Path) -> None:
    ExamCache(tmp_path).site_secret()
    (tmp_path / "site_secret").write_bytes(b"short")

    with pytest.raises(ConfigError, match="holds 5 bytes, expected 32"):
        ExamCache(tmp_path).site_secret()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_atomically(file, b"new")

    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_second_time_everything_comes_from_the_cache(make_hospital: MakeHospital, study: Study) -> None:
    config = make_hospital(4).config()

    first = prepare_site(config, study)
    second = prepare_site(config, study)

    assert (first.num_from_cache, second.num_from_cache) == (0, 4)
    assert torch.equal(all_images(first), all_images(second))
    assert first.digests == second.digests
    assert first.centre_counts == {"point": 4}


def test_a_changed_volume_is_prepared_again(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(3)
    before = all_images(prepare_site(hospital.config(), study))
    file = hospital.folder / "scans" / "001_t2.nii.gz"
    times = file.stat()
    image = nibabel.load(file)
    changed = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1].astype(np.int16), image.affine)
    nibabel.save(changed, file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    after = prepare_site(hospital.config(), study)

    assert after.num_from_cache == 2
    assert not torch.equal(before, all_images(after))


@pytest.mark.parametrize(
    "change",
    [{"size_voxels": (17, 16, 16)}, {"spacing_mm": (4.0, 4.0, 5.0)}, {"crop": "head"}],
    ids=["size", "spacing", "crop"],
)
def test_another_setting_is_prepared_anew(make_hospital: MakeHospital, study: Study, change: dict[str, object]) -> None:
    config = make_hospital(3).config()
    prepare_site(config, study)
    other = study.model_copy(update={"preprocessing": study.preprocessing.model_copy(update=change)})

    assert prepare_site(config, other).num_from_cache == 0
    assert prepare_site(config, study).num_from_cache == 3


def test_a_moved_point_is_prepared_anew_and_other_sequences_are_not(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(3)
    prepare_site(hospital.config(), study)

    hospital.edit_table("001_t1ce.nii.gz\t24\t", "001_t1ce.nii.gz\t25\t")

    assert prepare_site(hospital.config(), study).num_from_cache == 2
    fewer = study.model_copy(update={"sequences": ("t1ce", "t1")})
    assert prepare_site(hospital.config(), fewer).num_from_cache == 3


def test_a_damaged_entry_is_made_again(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(3)
    before = prepare_site(hospital.config(), study)
    os.truncate(entries(hospital, "channel")[1], 5000)

    after = prepare_site(hospital.config(), study)

    assert after.num_from_cache == 2
    assert torch.equal(all_images(before), all_images(after))
    assert prepare_site(hospital.config(), study).num_from_cache == 3


@pytest.fixture
def files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.digests.SETTLED_NS", 0)


@pytest.mark.usefixtures("files_settle_at_once")
def test_known_files_are_not_read_again(
    make_hospital: MakeHospital, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_hospital(3).config()
    prepare_site(config, study)
    monkeypatch.setattr("client.prepare._prepare_one", None)

    assert prepare_site(config, study).num_from_cache == 3


@pytest.mark.usefixtures("files_settle_at_once")
def test_nothing_in_the_cache_folder_names_a_patient_or_a_path(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(3)
    hospital.edit_table("001\trec", "SMITHJOHN\trec")

    prepare_site(hospital.config(), study)

    assert (hospital.folder / "cache" / "digests.json").stat().st_size > 9 * 128
    for file in (hospital.folder / "cache").rglob("*"):
        assert "SMITHJOHN" not in file.name
        if file.is_file():
            assert b"SMITHJOHN" not in file.read_bytes()
            assert b"_t1ce" not in file.read_bytes()


def test_all_unfit_exams_are_told_at_once_and_the_fit_ones_are_kept(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(4)
    for patient in ("000", "002"):
        file = hospital.folder / "scans" / f"{patient}_t1.nii.gz"
        file.write_bytes(file.read_bytes()[:-5])

    with pytest.raises(DataError) as error:
        prepare_site(hospital.config(), study)

    text = str(error.value)
    assert "2 faults" in text
    assert "row 2 (patient 000): t1: the compressed data are damaged" in text
    assert "row 4 (patient 002): t1: the compressed data are damaged" in text
    assert len(entries(hospital, "channel")) == 2 * 3


def test_several_processes_give_the_same_as_one(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(4)
    alone = all_images(prepare_site(hospital.config(), study, workers=1))
    for entry in entries(hospital):
        entry.unlink()
    seen: list[tuple[int, int]] = []

    together = prepare_site(hospital.config(), study, workers=2, on_exam=lambda done, total: seen.append((done, total)))

    assert together.num_from_cache == 0
    assert torch.equal(all_images(together), alone)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_two_processes_may_fill_one_cache_at_once(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(4)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=prepare_site, args=(hospital.config(), study)) for _ in range(3)]

    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(entries(hospital, "channel")) == 4 * 3
    assert prepare_site(hospital.config(), study).num_from_cache == 4


def test_two_exams_of_a_patient_share_an_index_and_count_once(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(4)
    text = (hospital.folder / "table.tsv").read_text().splitlines()
    ids = ["exam_id", "1", "1", "2", "1"]
    (hospital.folder / "table.tsv").write_text(
        "\n".join(f"{line}\t{exam}" for line, exam in zip(text, ids, strict=True))
    )
    hospital.edit_table("002\trec", "001\trec")

    prepared = prepare_site(hospital.config(), study)

    train = prepared.splits["train"]
    both = {split: part.num_exams - part.num_patients for split, part in prepared.splits.items()}
    assert sum(both.values()) == 1
    assert sum(part.num_patients for part in prepared.splits.values()) == 3
    assert sum(prepared.splits["train"].class_counts) == train.num_patients


def test_zero_filled_sequences_are_counted(make_hospital: MakeHospital, study: Study) -> None:
    hospital = make_hospital(3)
    hospital.edit_table("scans/001_t2.nii.gz", "n/a")
    filled = study.model_copy(
        update={"preprocessing": study.preprocessing.model_copy(update={"missing_sequence": "zero_fill"})}
    )

    prepared = prepare_site(hospital.config(), filled)

    assert prepared.missing_counts == {"t1": 0, "t2": 1, "t1ce": 0}
    assert int((~all_images(prepared).flatten(2).any(2)).sum()) == 1


def remembered(file: Path) -> DigestMemo:
    memo = DigestMemo(b"", salt=b"salt")
    memo.remember({file: (file_state(file), sha256_of(file.read_bytes()))})
    return DigestMemo(memo.encoded(), salt=b"salt")


def test_a_file_settles_two_seconds_after_its_last_change(tmp_path: Path) -> None:
    file = tmp_path / "volume.nii"
    file.write_bytes(b"one")
    changed_ns = file.stat().st_ctime_ns

    assert not has_settled(file, now_ns=changed_ns + SETTLED_NS)
    assert has_settled(file, now_ns=changed_ns + SETTLED_NS + 1)


def test_a_digest_of_an_unsettled_file_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "volume.nii"
    file.write_bytes(b"one")
    memo = DigestMemo(b"", salt=b"")

    assert not memo.remember({file: ("", sha256_of(b"one"))})
    assert memo.digest(file) is None


def test_a_digest_is_remembered_until_the_file_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "volume.nii"
    file.write_bytes(b"one")
    memo = remembered(file)
    before = memo.digest(file)
    times = file.stat()

    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert before == sha256_of(b"one")
    assert memo.digest(file) is None


@pytest.mark.parametrize("stored", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff"])
def test_a_damaged_memo_counts_as_empty(stored: bytes, tmp_path: Path) -> None:
    file = tmp_path / "volume.nii"
    file.write_bytes(b"one")

    assert DigestMemo(stored, salt=b"").digest(file) is None
