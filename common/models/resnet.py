"""The 3D ResNets of Hara et al. (2018, arXiv:1711.09577), as in MONAI."""

from monai.networks.nets.resnet import resnet10
from torch import nn

from common.study import ModelSpec


def build_resnet(spec: ModelSpec, *, num_sequences: int) -> nn.Module:
    """A ResNet with batch norm. ResNet10 has one basic block per stage."""
    return resnet10(  # type: ignore[no-any-return]
        spatial_dims=3,
        n_input_channels=num_sequences,
        num_classes=2,
        conv1_t_stride=spec.stem_stride,
        widen_factor=spec.width,
    )
