"""DenseNet121 in 3D (Huang et al. 2017, arXiv:1608.06993), as in MONAI."""

from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn
from torch.nn import functional

from common.model_channels import DENSENET_BLOCKS, DENSENET_BOTTLENECK, DENSENET_FEATURES, DENSENET_GROWTH, widened


def build_densenet(*, num_sequences: int, width: float, stem_stride: int) -> nn.Module:
    """A DenseNet121 with batch norm.

    The averages between its blocks keep an odd voxel at the border, which MONAI drops, so that a crop of 16 voxels
    does not vanish before the last block; sizes that stay even are computed as in MONAI.

    Args:
        num_sequences: Channels of the input.
        width: Factor on the channels of the stem and on those that every layer adds.
        stem_stride: Stride of the first convolution.
    """
    model: nn.Module = DenseNet(
        spatial_dims=3,
        in_channels=num_sequences,
        out_channels=2,
        init_features=widened(DENSENET_FEATURES, width),
        growth_rate=widened(DENSENET_GROWTH, width),
        block_config=DENSENET_BLOCKS,
        bn_size=DENSENET_BOTTLENECK,
    )
    stem = model.get_submodule("features.conv0")
    assert isinstance(stem, nn.Conv3d)
    stem.stride = (stem_stride, stem_stride, stem_stride)
    for transition in [module for module in model.modules() if isinstance(getattr(module, "pool", None), nn.AvgPool3d)]:
        transition.pool = Halving()
    return model


class Halving(nn.Module):
    """Mean over 2 x 2 x 2 voxels; of those there are, at the border of an odd size."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, D, H, W) to (B, C, D / 2, H / 2, W / 2), rounded up."""
        kernel = [min(2, size) for size in x.shape[2:]]  # torch wants none larger than the image
        return functional.avg_pool3d(x, kernel, stride=2, ceil_mode=True)
