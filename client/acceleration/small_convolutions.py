"""Convolutions over few voxels, and their gradients, by the way that is quick and right there.

The last stages of a network see crops of one to four voxels along each axis. oneDNN 3.12, with which torch 2.13
convolves on the CPU, computes the gradient of the weights slowly there, and in bfloat16 wrongly: it takes in memory
that is not its own, so that it is off by any factor, or NaN, or the process ends. That was seen up to as many voxels as
the kernel spans; below twice as many, that gradient is never left to bfloat16. The outcome and the gradient of the
images are right and quick.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv3d_input, conv3d_weight
from torch.overrides import TorchFunctionMode


class SmallConvolutions(TorchFunctionMode):
    """Within the block, 3D convolutions over fewer than twice the voxels that their kernel spans go their own way.

    Where weights meet nothing but padding, the convolution is a product of matrices without these weights. Where the
    outcome has fewer voxels than the kernel has places, the gradient of the weights alone is such a product, and
    elsewhere it is computed in float32. Those that are dilated or in groups are convolutions in float32 whatever
    autocast says.
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
            if isinstance(padding, tuple) and spans_most_of(images, weight, dilation):
                if groups == 1 and set(dilation) == {1}:
                    return small_convolution(images, weight, bias, strides=strides, padding=padding)
                with torch.autocast(images.device.type, enabled=False):
                    whole = None if bias is None else bias.float()
                    return func(images.float(), weight.float(), whole, strides, padding, dilation, groups)
        return func(*args, **(kwargs or {}))


def spans_most_of(images: Tensor, weight: Tensor, dilation: Sequence[int]) -> bool:
    """Whether a kernel spans more than half of the voxels there are along some axis."""
    spans = (step * (size - 1) + 1 for size, step in zip(weight.shape[2:], dilation, strict=True))
    return any(extent < 2 * span for extent, span in zip(images.shape[2:], spans, strict=True))


def small_convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None, *, strides: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The convolution, in autocast's precision where that is on; gradients of weights of float32 are float32.

    Args:
        images: Shape (B, C, D, H, W).
        weight: Shape (K, C, d, h, w).
        bias: Shape (K,).
        strides: Along each axis.
        padding: Zeros at each end of each axis.

    Returns:
        Shape (B, K, D', H', W').
    """
    used = [
        _used(*axis) for axis in zip(images.shape[2:], weight.shape[2:], strides, padding, strict=True)
    ]  # of each axis, which weights meet voxels
    if any(len(places) < kernel for places, kernel in zip(used, weight.shape[2:], strict=True)):
        return _product(images, weight, bias, _Steps(tuple(strides), tuple(padding)), used)
    kind = images.device.type
    if torch.is_autocast_enabled(kind):
        images = images.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        outcome: Tensor = _Convolution.apply(images, weight, bias, _Steps(tuple(strides), tuple(padding)))  # type: ignore[no-untyped-call]
        return outcome


@dataclass(frozen=True)
class _Steps:
    """Strides, and zeros at each end, along each axis."""

    strides: tuple[int, ...]
    padding: tuple[int, ...]


class _Convolution(torch.autograd.Function):
    """A convolution in the precision of its images, with a way of its own to the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, steps: _Steps) -> Tensor:
        same = weight.to(images.dtype)
        ctx.save_for_backward(images, same)
        ctx.steps, ctx.kept = steps, weight.dtype
        offsets = None if bias is None else bias.to(images.dtype)
        return functional.conv3d(images, same, offsets, steps.strides, steps.padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (images, weight), (pull,), steps = ctx.saved_tensors, gradients, ctx.steps
        of_images, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_images = conv3d_input(images.shape, weight, pull, steps.strides, steps.padding)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(images, weight.shape, pull, steps, ctx.kept)
        if ctx.needs_input_grad[2]:
            of_bias = pull.to(ctx.kept).sum((0, 2, 3, 4))
        return of_images, of_weight, of_bias, None


def _gradient_of_weight(images: Tensor, shape: torch.Size, pull: Tensor, steps: _Steps, dtype: torch.dtype) -> Tensor:
    if prod(pull.shape[2:]) < prod(shape[2:]):
        around = [zeros for axis in reversed(steps.padding) for zeros in (axis, axis)]  # `pad` begins at the last axis
        rows = _patches(functional.pad(images, around), shape[2:], steps.strides)
        return torch.mm(pull.transpose(0, 1).flatten(1), rows).view(shape).to(dtype)
    gradient: Tensor = conv3d_weight(  # type: ignore[no-untyped-call]
        images.to(dtype), shape, pull.to(dtype), steps.strides, steps.padding
    )
    return gradient


def _product(images: Tensor, weight: Tensor, bias: Tensor | None, steps: _Steps, used: Sequence[range]) -> Tensor:
    """The convolution as one product of matrices, without the weights that meet nothing but padding."""
    sizes: list[int] = []
    pads: list[int] = []
    for axis, (extent, places) in enumerate(zip(images.shape[2:], used, strict=True)):
        stride, zeros, kernel = steps.strides[axis], steps.padding[axis], weight.shape[2 + axis]
        size = (extent + 2 * zeros - kernel) // stride + 1
        if len(places) < kernel:  # else its gradient would be copied into zeros of its size, which is slow
            weight = weight.narrow(2 + axis, places.start, len(places))
        before = zeros - places.start
        pads = [before, (size - 1) * stride + len(places) - extent - before, *pads]
        sizes.append(size)
    rows = _patches(functional.pad(images, pads), weight.shape[2:], steps.strides)
    product = functional.linear(rows, weight.reshape(len(weight), -1), bias)
    return product.view(len(images), *sizes, len(weight)).permute(0, 4, 1, 2, 3).contiguous()


def _used(extent: int, kernel: int, stride: int, padding: int) -> range:
    """Places of a kernel along an axis that meet a voxel somewhere."""
    size = (extent + 2 * padding - kernel) // stride + 1
    first, last = max(0, padding - (size - 1) * stride), min(kernel - 1, extent - 1 + padding)
    return range(first, last + 1)


def _patches(images: Tensor, kernel: Sequence[int], strides: Sequence[int]) -> Tensor:
    """What each voxel of the outcome is made from: (B, C, D, H, W) to (B * D' * H' * W', C * d * h * w)."""
    patches = images
    for axis in range(3):
        patches = patches.unfold(2 + axis, kernel[axis], strides[axis])  # (B, C, D', H', W', d, h, w)
    return patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)
