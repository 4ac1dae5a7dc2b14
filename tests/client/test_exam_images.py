"""Images that are read when they are asked for: the same numbers, kept or not, and never damaged ones."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from client.augmentation import augment
from client.config import SiteConfig, read_site_config
from client.exam_images import KeptImages, StoredImages, batches_of, promised_bytes
from client.main_memory import left_in_group
from client.prepare import prepare_site
from client.preprocessing.volume import FloatArray
from client.site import Site
from common.errors import DataError
from common.model_state import state_digest
from common.models import initial_state
from common.study import AugmentationSpec, Study, parse_study
from common.tasks import TrainReply, TrainTask
from tests.tiny_hospitals import study_text, write_tiny_hospital

CPU = torch.device("cpu")


class Reading:
    """Exams of one voxel, each with its place as value, that note what is read."""

    def __init__(self, num_exams: int) -> None:
        self.places: list[int] = []
        self.images = StoredImages(num_exams, (1, 1, 1, 1), self._read)

    def _read(self, place: int, image: FloatArray) -> None:
        self.places.append(place)
        image.fill(place)


@pytest.fixture
def agreed() -> Study:
    return parse_study(study_text(), origin="study")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreed: Study) -> SiteConfig:
    """A site whose exams are in the cache, in files that have settled."""
    monkeypatch.setattr("client.digests.SETTLED_NS", 0)
    config = read_site_config(write_tiny_hospital(tmp_path, "a"))
    prepare_site(config, agreed)
    return config


def train(config: SiteConfig, agreed: Study) -> TrainReply:
    state = initial_state(agreed.model, num_sequences=3, seed=agreed.seed)
    return Site.open(config, agreed).train(TrainTask(agreed, "run", 1, (1.0, 1.0), 0.0, state, class_counts=(3, 2)))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def channels(config: SiteConfig) -> list[Path]:
    return sorted((config.cache / "exams").glob("*.channel.exam"))


def test_kept_images_are_read_once_and_others_each_time() -> None:
    kept, stored = Reading(3), Reading(3)
    images = KeptImages(kept.images, CPU)

    for each in (images, stored.images):
        for places in ([2, 0], [0, 0]):
            assert each[torch.tensor(places)].flatten().tolist() == places

    assert kept.places == [2, 0]
    assert stored.places == [2, 0, 0, 0]


def test_a_slice_of_images_is_that_of_a_tensor() -> None:
    images = KeptImages(Reading(5).images, CPU)

    assert images[1:4].flatten().tolist() == [1, 2, 3]
    assert images[:].flatten().tolist() == [0, 1, 2, 3, 4]


def test_memory_that_images_will_take_is_promised_until_they_are_there() -> None:
    before = promised_bytes()
    images = KeptImages(Reading(5).images, CPU)

    assert promised_bytes() - before == 5 * 4
    images[:3]
    assert promised_bytes() - before == 2 * 4
    del images
    assert promised_bytes() == before


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_order_is_asked_for_after_the_batch_before_it_was_changed(threads: int) -> None:
    told: list[str] = []

    def order() -> Iterator[torch.Tensor]:
        for place in range(3):
            told.append(f"order {place}")
            yield torch.tensor([place])

    def change(batch: torch.Tensor) -> torch.Tensor:
        told.append(f"change {int(batch)}")
        return batch + 10

    with closing(batches_of(Reading(3).images, order(), CPU, change=change)) as batches:
        found = [(int(places), int(batch)) for places, batch in batches]

    assert told == ["order 0", "change 0", "order 1", "change 1", "order 2", "change 2"]
    assert found == [(0, 10), (1, 11), (2, 12)]


def test_batches_are_changed_beside_a_caller_that_computes_by_one_thread(threads: int) -> None:
    where: set[int] = set()

    def change(batch: torch.Tensor) -> torch.Tensor:
        where.add(threading.get_ident())
        return batch

    order = iter([torch.tensor([0, 1]), torch.tensor([2, 3])])
    with closing(batches_of(torch.zeros(4, 1, 2, 2, 2), order, CPU, change=change)) as batches:
        num_batches = sum(1 for _ in batches)

    assert num_batches == 2
    assert (threading.get_ident() in where) == (threads > 1)


def test_images_are_augmented_alike_beside_the_caller_and_by_it() -> None:
    images, spec = torch.randn(6, 2, 8, 8, 8), AugmentationSpec()
    before = torch.get_num_threads()

    def augmented(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)

        def change(batch: torch.Tensor) -> torch.Tensor:
            return augment(batch, spec, spacing_mm=(1.0, 1.0, 1.0), generator=generator)

        def order() -> Iterator[torch.Tensor]:
            for _ in range(3):
                yield torch.randperm(6, generator=generator)[:2]

        with closing(batches_of(images, order(), CPU, change=change)) as batches:
            return torch.cat([batch for _, batch in batches])

    try:
        beside, by_the_caller = augmented(1), augmented(2)
    finally:
        torch.set_num_threads(before)

    assert not torch.equal(beside[:2], images[:2])
    assert torch.equal(beside, by_the_caller)


def test_what_goes_wrong_in_reading_is_raised_where_the_batch_is_wanted(threads: int) -> None:
    def read(place: int, image: FloatArray) -> None:
        raise DataError("unfit")

    with (
        pytest.raises(DataError, match="unfit"),
        closing(batches_of(StoredImages(2, (1, 1, 1, 1), read), iter([torch.tensor([0])]), CPU)) as batches,
    ):
        next(batches)


def test_a_round_gives_the_same_bytes_whether_images_are_kept_or_not(
    config: SiteConfig, agreed: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train(config, agreed)
    monkeypatch.setattr("client.prepare.available_memory", lambda: 0)

    assert isinstance(prepare_site(config, agreed).splits["train"].images, StoredImages)
    again = train(config, agreed)

    assert state_digest(again.state) == state_digest(kept.state)
    assert (again.evaluation, again.train_loss) == (kept.evaluation, kept.train_loss)


@pytest.mark.parametrize(("spare", "kind"), [(0, KeptImages), (-2, StoredImages)], ids=["half", "over half"])
def test_images_are_kept_up_to_half_of_the_memory_that_is_free(
    spare: int, kind: type, config: SiteConfig, agreed: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 20 * 3 * 16**3 * 4
    monkeypatch.setattr("client.prepare.promised_bytes", lambda: 1000)
    monkeypatch.setattr("client.prepare.available_memory", lambda: 2 * needed + 1000 + spare)

    assert isinstance(prepare_site(config, agreed).splits["train"].images, kind)


@pytest.mark.parametrize("memory", [None, 0], ids=["kept", "read each time"])
def test_entry_that_is_damaged_after_the_site_was_opened_is_made_again(
    memory: int | None, config: SiteConfig, agreed: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare_site(config, agreed).splits["train"].images[:].clone()
    monkeypatch.setattr("client.prepare.available_memory", lambda: memory)
    site = Site.open(config, agreed)
    whole = [entry.read_bytes() for entry in channels(config)]
    for entry in channels(config):
        flip_a_byte(entry)

    for split in site.cohort.splits.values():
        split.images[:]

    assert torch.equal(site.cohort.splits["train"].images[:], expected)
    assert [entry.read_bytes() for entry in channels(config)] == whole


def test_damaged_entry_whose_files_have_changed_since_is_not_trained_on(config: SiteConfig, agreed: Study) -> None:
    site = Site.open(config, agreed)
    for entry in channels(config):
        entry.unlink()
    other = np.flatnonzero([exam.label for exam in site.cohort.cohort.exams])
    first, second = site.cohort.cohort.exams_of("train")[0], site.cohort.cohort.exams[int(other[-1])]
    first.volumes["t1"].write_bytes(second.volumes["t1"].read_bytes())

    with pytest.raises(DataError, match="its files are not those that it was prepared from"):
        site.cohort.splits["train"].images[:1]


def test_opening_a_site_reads_no_image(config: SiteConfig, agreed: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.prepare._channels", None)

    assert Site.open(config, agreed).cohort.num_from_cache == 20


def test_a_group_leaves_its_limit_less_what_it_cannot_give_up(tmp_path: Path) -> None:
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 500\ninactive_file 200\n")):
        (tmp_path / f"memory.{name}").write_text(text)

    assert left_in_group(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in_group(tmp_path) is None
    assert left_in_group(tmp_path / "none") is None
