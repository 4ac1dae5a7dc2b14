"""MResNet: residual networks at three resolutions of the same crop, fused in front of the head."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.model_channels import MRESNET_BRANCH_WIDTH, MRESNET_RESOLUTIONS, RESNET_STAGES, widened
from common.models.resnet import build_resnet


class MResNet(nn.Module):
    """A multi-scale ResNet.

    The readable text of the paper whose table names an "MResNet" does not define it. This is the closest reading: the
    crop in full, half and quarter resolution goes through a ResNet10 of half the width each, side by side; their
    pooled features are fused by a layer with ReLU, without which the sum of three networks would do the same, and a
    linear head follows. Figures of this network are figures of this reading.

    Args:
        num_sequences: Channels of the input.
        width: Factor on the channels of every layer.
        stem_stride: Stride of the first convolution of every branch.
    """

    def __init__(self, *, num_sequences: int, width: float, stem_stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            build_resnet(
                "resnet10",
                num_sequences=num_sequences,
                width=width * MRESNET_BRANCH_WIDTH,
                stem_stride=stem_stride,
                dilated=False,
                head=False,
            )
            for _ in MRESNET_RESOLUTIONS
        )
        num_features = widened(RESNET_STAGES[-1], width * MRESNET_BRANCH_WIDTH)
        self.fusion = nn.Linear(len(MRESNET_RESOLUTIONS) * num_features, num_features)
        self.fc = nn.Linear(num_features, 2)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, num_sequences, D, H, W) to (B, 2)."""
        features = [
            branch(x if scale == 1 else functional.avg_pool3d(x, scale, ceil_mode=True))
            for branch, scale in zip(self.branches, MRESNET_RESOLUTIONS, strict=True)
        ]  # each (B, C)
        logits: Tensor = self.fc(functional.relu(self.fusion(torch.cat(features, dim=1))))
        return logits
