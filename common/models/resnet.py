"""The 3D ResNets of Hara et al. (2018, arXiv:1711.09577), as in MONAI, and their dilated form."""

from functools import partial

from monai.networks.nets.resnet import ResNet, ResNetBlock
from torch import Tensor, nn
from torch.nn import functional

from common.model_channels import RESNET_BLOCKS, RESNET_STAGES

_DILATIONS = {"layer3": 2, "layer4": 4}
"""Stages that MedicalNet dilates instead of striding, and by how much (Chen et al. 2019, arXiv:1904.00625)."""


def build_resnet(
    name: str, *, num_sequences: int, width: float, stem_stride: int, dilated: bool, head: bool = True
) -> nn.Module:
    """A ResNet with batch norm. ResNet10, 18 and 50 have the blocks and shortcuts of MedicalNet's files.

    Args:
        name: "resnet10", "resnet18" or "resnet50".
        num_sequences: Channels of the input.
        width: Factor on the channels of every layer.
        stem_stride: Stride of the first convolution.
        dilated: Whether the last two stages keep the resolution and dilate their convolutions, by 2 and 4: the
            result is then an 8th of the input's size, and not a 32nd, with a stem of stride 2.
        head: Whether two logits come out; else the pooled features of the last stage.
    """
    model: nn.Module = ResNet(
        block="bottleneck" if name == "resnet50" else "basic",
        layers=list(RESNET_BLOCKS[name]),
        block_inplanes=list(RESNET_STAGES),
        spatial_dims=3,
        n_input_channels=num_sequences,
        num_classes=2,
        conv1_t_stride=stem_stride,
        shortcut_type="A" if name == "resnet18" else "B",
        widen_factor=width,
        feed_forward=head,
        bias_downsample=name == "resnet10",  # useless in front of batch norm; MedicalNet has none
    )
    for block in model.modules():
        if isinstance(block, ResNetBlock) and isinstance(block.downsample, partial):
            block.downsample = PaddedShortcut(block.conv1, block.conv2)
    if dilated:
        for stage_name, dilation in _DILATIONS.items():
            _dilate(model.get_submodule(stage_name), dilation)
    return model


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: voxels at a stride, and zeros for new channels (He et al. 2016, option A).

    MONAI 1.6.1 does the same by a function that cuts the gradient off (`out.data`).

    Args:
        first: First convolution of the block, whose input and stride it shares.
        last: Last convolution of the block, whose number of channels it meets.
    """

    def __init__(self, first: nn.Conv3d, last: nn.Conv3d) -> None:
        super().__init__()
        self.stride = first.stride[0]
        self.num_new_channels = last.out_channels - first.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, D, H, W) to (B, C + new, D / stride, H / stride, W / stride)."""
        step = self.stride
        return functional.pad(x[:, :, ::step, ::step, ::step], (0, 0, 0, 0, 0, 0, 0, self.num_new_channels))


def _dilate(stage: nn.Module, dilation: int) -> None:
    for module in stage.modules():
        if isinstance(module, PaddedShortcut):
            module.stride = 1
        elif isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
            if module.kernel_size == (3, 3, 3):
                module.dilation = module.padding = (dilation, dilation, dilation)
