"""The images of a site's exams: read from the cache when a step asks for them, kept where memory has room."""

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from client.preprocessing.volume import FloatArray

ReadImage = Callable[[int, FloatArray], None]
"""Writes the image of the exam at a place into an array of shape (C, D, H, W)."""


class Images(Protocol):
    """Images of exams by their place, float32: a tensor, or what stands for one. Those asked for are not changed."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, D, H, W)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, places: Tensor | slice, /) -> Tensor:
        """Some of them; shape (B, C, D, H, W)."""


class StoredImages:
    """Images that are read each time they are asked for, into main memory."""

    def __init__(self, num_exams: int, image_shape: tuple[int, ...], read: ReadImage) -> None:
        """Read nothing yet.

        Args:
            num_exams: N.
            image_shape: (C, D, H, W).
            read: Reads one.
        """
        self.shape = torch.Size((num_exams, *image_shape))
        self._read = read

    @property
    def nbytes(self) -> int:
        """Bytes of all of them in memory."""
        return self.shape.numel() * torch.float32.itemsize

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    def __getitem__(self, places: Tensor | slice) -> Tensor:
        """Read some of them."""
        wanted = _as_list(places, len(self))
        batch = torch.empty((len(wanted), *self.shape[1:]))
        for image, place in zip(batch.numpy(), wanted, strict=True):
            self._read(place, image)
        return batch


class KeptImages:
    """Images that are asked for once and kept on a device from then on, one place for each.

    On the CPU the system gives the memory when an image comes. Threads that ask for the same image at once both get it,
    and both keep it.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        """Keep nothing yet.

        Args:
            images: Where they come from.
            device: Where they are kept.
        """
        self.shape = images.shape
        self._images = images
        self._kept = torch.empty(tuple(images.shape), device=device)
        self._is_there = [False] * len(images)
        if device.type == "cpu":
            with _promising:
                _promised.add(self)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self._kept.nbytes

    @property
    def nbytes_to_come(self) -> int:
        """Bytes of those that nobody has asked for yet."""
        return self._is_there.count(False) * (self.nbytes // max(len(self), 1))

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    def __getitem__(self, places: Tensor | slice) -> Tensor:
        """Some of them, on the device; a slice shares its memory with what is kept."""
        wanted = _as_list(places, len(self))
        for place in wanted:
            if not self._is_there[place]:
                self._kept[place : place + 1].copy_(
                    _ready_to_go(self._images[place : place + 1], self._kept.device), non_blocking=True
                )
                self._is_there[place] = True
        if isinstance(places, slice):
            return self._kept[places]
        if self._kept.device.type != "cpu":
            return self._kept[places.to(self._kept.device)]
        batch = torch.empty((len(wanted), *self.shape[1:]))
        # By numpy: torch would start threads of its own beside those of the step that computes meanwhile.
        for image, place in zip(batch.numpy(), wanted, strict=True):
            image[...] = self._kept[place].numpy()
        return batch


_promised: "weakref.WeakSet[KeptImages]" = weakref.WeakSet()
_promising = threading.Lock()


def promised_bytes() -> int:
    """Main memory that images of this process will take when they are asked for, and do not take yet."""
    with _promising:
        return sum(images.nbytes_to_come for images in _promised)


def near_device(images: Images, device: torch.device) -> Images:
    """The images kept on a CUDA device where they take at most half of what it has free; else as they are."""
    if device.type != "cuda":
        return images
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return KeptImages(images, device) if images.nbytes <= free // 2 else images


def batches_of(
    images: Images,
    order: Iterator[Tensor],
    device: torch.device,
    *,
    change: Callable[[Tensor], Tensor] = lambda batch: batch,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches on a device. The next one is made ready by a thread while the caller computes with the last one.

    The thread reads it. Where the caller computes by one thread of the CPU, it changes it too, on a core that would
    be idle; more threads of torch's own beside those of the caller would take theirs, and a GPU is not waited for.

    The order is asked for a batch's places when the one before it has been changed, as a plain loop does it, so that
    both may draw from one generator. Close the iterator where it is left before its end.

    Args:
        images: Of all exams.
        order: Places of the batches.
        device: Where the batches are wanted; a copy to it is queued, not waited for.
        change: Done to each batch on the device, in the caller's thread or in the other one.

    Yields:
        Places and changed images of a batch.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return _changed_ahead(images, order, change)
    return _read_ahead(images, order, device, change)


def _changed_ahead(
    images: Images, order: Iterator[Tensor], change: Callable[[Tensor], Tensor]
) -> Generator[tuple[Tensor, Tensor], None, None]:
    def make() -> tuple[Tensor, Tensor] | None:
        places = next(order, None)
        return None if places is None else (places, change(images[places]))

    with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
        coming = pool.submit(make)
        while (batch := coming.result()) is not None:
            coming = pool.submit(make)
            yield batch


def _read_ahead(
    images: Images, order: Iterator[Tensor], device: torch.device, change: Callable[[Tensor], Tensor]
) -> Generator[tuple[Tensor, Tensor], None, None]:
    def read(places: Tensor) -> Tensor:
        return _ready_to_go(images[places], device)

    with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:

        def ask(places: Tensor) -> "Future[Tensor]":
            if not isinstance(images, Tensor):
                return pool.submit(read, places)
            there: Future[Tensor] = Future()  # a tensor has nothing to read, and a copy of it takes torch's own threads
            there.set_result(read(places.to(images.device)))
            return there

        following = next(order, None)
        coming = None if following is None else ask(following)
        while following is not None and coming is not None:
            places = following
            batch = change(coming.result().to(device, non_blocking=True))
            following = next(order, None)
            coming = None if following is None else ask(following)
            yield places, batch


def _ready_to_go(batch: Tensor, device: torch.device) -> Tensor:
    """In pinned memory where it is to be copied to a CUDA device, so that the copy can be queued."""
    return batch.pin_memory() if device.type == "cuda" and batch.device.type == "cpu" else batch


def _as_list(places: Tensor | slice, num_exams: int) -> list[int]:
    if isinstance(places, slice):
        return list(range(num_exams)[places])
    wanted: list[int] = places.tolist()
    return wanted
