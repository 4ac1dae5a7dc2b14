"""Convolutions over fewer voxels than their kernel spans, as products of matrices.

The last stages of a network see crops of one to three voxels along each axis. oneDNN 3.12, with which torch 2.13
convolves on the CPU, is slow there, and in bfloat16 it is wrong: its gradient of the weights takes in memory that is
not its own, so that it is off by any factor, or NaN, or the process ends. That was seen up to as many voxels as the
kernel spans; below twice as many, bfloat16 is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class SmallConvolutions(TorchFunctionMode):
    """Within the block, 3D convolutions over fewer voxels than their kernel spans are products of matrices.

    Those over fewer than twice as many, and small ones that are dilated or in groups, are convolutions in float32
    whatever autocast says.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute such a convolution; pass everything else on."""
        if func is functional.conv3d and not kwargs and len(args) == 7:
            images, weight, bias, strides, padding, dilation, groups = args
            if isinstance(padding, tuple) and spans_most_of(images, weight, dilation, share=0.5):
                small = spans_most_of(images, weight, dilation, share=1.0)
                if small and groups == 1 and set(dilation) == {1}:
                    return small_convolution(images, weight, bias, strides=strides, padding=padding)
                with torch.autocast(images.device.type, enabled=False):
                    whole = None if bias is None else bias.float()
                    return func(images.float(), weight.float(), whole, strides, padding, dilation, groups)
        return func(*args, **(kwargs or {}))


def spans_most_of(images: Tensor, weight: Tensor, dilation: Sequence[int], *, share: float) -> bool:
    """Whether a kernel spans more than this share of the voxels there are along some axis."""
    spans = (step * (size - 1) + 1 for size, step in zip(weight.shape[2:], dilation, strict=True))
    return any(share * extent < span for extent, span in zip(images.shape[2:], spans, strict=True))


def small_convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, *, strides: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The convolution as one product of matrices, in autocast's precision where that is on.

    Weights that meet nothing but padding are left out.

    Args:
        images: Shape (B, C, D, H, W).
        weight: Shape (K, C, d, h, w).
        bias: Shape (K,).
        strides: Along each axis.
        padding: Zeros at each end of each axis.

    Returns:
        Shape (B, K, D', H', W').
    """
    sizes: list[int] = []
    pads: list[int] = []
    for axis, (extent, kernel) in enumerate(zip(images.shape[2:], weight.shape[2:], strict=True)):
        stride, zeros = strides[axis], padding[axis]
        size = (extent + 2 * zeros - kernel) // stride + 1
        first, last = max(0, zeros - (size - 1) * stride), min(kernel - 1, extent - 1 + zeros)
        if last - first + 1 < kernel:  # else its gradient would be copied into zeros of its size, which is slow
            weight = weight.narrow(2 + axis, first, last - first + 1)
        before = zeros - first
        pads = [before, (size - 1) * stride + last - first + 1 - extent - before, *pads]  # `pad` begins at the last
        sizes.append(size)
    patches = functional.pad(images, pads)
    for axis in range(3):
        patches = patches.unfold(2 + axis, weight.shape[2 + axis], strides[axis])  # (B, C, D', H', W', d, h, w)
    rows = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(len(images) * sizes[0] * sizes[1] * sizes[2], -1)
    product = functional.linear(rows, weight.reshape(len(weight), -1), bias)
    return product.view(len(images), *sizes, len(weight)).permute(0, 4, 1, 2, 3).contiguous()
