"""One way to compute the steps of training."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.acceleration.pooling import QuickPooling
from client.acceleration.small_convolutions import SmallConvolutions


@dataclass(frozen=True)
class StepPlan:
    """How the steps of a round are computed. The default is plain float32.

    Weights, gradients, optimiser state, loss and the statistics of normalisation layers are float32 in every plan.

    Attributes:
        bf16: Whether convolutions multiply in bfloat16, and activations are kept in it.
        channels_last: Whether the channels of a voxel lie side by side in memory.
        products: Whether convolutions over fewer voxels than their kernel spans are products of matrices.
        fused: Whether the optimiser steps over all parameters in one pass.
    """

    bf16: bool = False
    channels_last: bool = False
    products: bool = False
    fused: bool = False

    @property
    def name(self) -> str:
        """The plan in words, such as "bf16 products fused"."""
        words = {"channels_last": self.channels_last, "products": self.products, "fused": self.fused}
        return " ".join(["bf16" if self.bf16 else "fp32", *(word for word, used in words.items() if used)])

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """The model's output in float32.

        Args:
            model: With parameters in float32.
            images: Shape (B, C, D, H, W), float32, on the model's device.
        """
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        with ExitStack() as stack:
            if self.products:
                stack.enter_context(SmallConvolutions())
            if not self.channels_last:
                stack.enter_context(QuickPooling())
            if self.bf16:
                stack.enter_context(torch.autocast(images.device.type, torch.bfloat16))
            logits: Tensor = model(images)
        return logits.float()


PLAIN = StepPlan()
"""Float32 and nothing else: the same bytes for the same seed and number of threads."""


def possible_plans(device: torch.device) -> tuple[StepPlan, ...]:
    """The plans that a device can carry out, the plain one first."""
    if device.type == "cuda":
        plans = [PLAIN, StepPlan(fused=True), StepPlan(channels_last=True, fused=True)]
        if torch.cuda.get_device_capability(device) >= (8, 0):
            plans += [StepPlan(bf16=True, fused=True), StepPlan(bf16=True, channels_last=True, fused=True)]
        return tuple(plans)
    plans = [PLAIN, StepPlan(products=True, fused=True)]
    if torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"):
        plans.append(StepPlan(bf16=True, products=True, fused=True))  # without products its gradients are wrong
    return tuple(plans)
