"""Max pooling in bfloat16 with the channels of a voxel side by side: torch then compares several at once on the CPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class QuickPooling(TorchFunctionMode):
    """Within the block, 3D max pooling of bfloat16 values goes by way of that layout, with equal values and gradients.

    The pooling behind the stem of a ResNet10, of 8 images of 64 channels and 24³ voxels, took one thread 35 ms that way
    instead of 70 ms, forward and backward. In float32 the way there and back takes what it saves.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pool; pass everything else on."""
        if func is functional.max_pool3d and args[0].dtype == torch.bfloat16:
            images = args[0].contiguous(memory_format=torch.channels_last_3d)
            return func(images, *args[1:], **(kwargs or {})).contiguous()
        return func(*args, **(kwargs or {}))
