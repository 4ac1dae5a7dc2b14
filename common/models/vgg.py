"""VGG11 and VGG16 in 3D (Simonyan and Zisserman 2015, arXiv:1409.1556, configurations A and D)."""

from torch import Tensor, nn

from common.model_channels import VGG_STAGES, widened


class VGG(nn.Module):
    """Five stages of 3 x 3 x 3 convolutions, each with batch norm and ReLU, and a maximum over 2 x 2 x 2 behind each.

    Two things differ from the paper: every convolution is normalised, and a mean over all voxels with one linear
    layer stands for its three fully connected ones, which fix the size of the crop and would hold most parameters.
    An odd voxel at the border is kept by the maxima, so that crops from one voxel on come through all five.

    Args:
        name: "vgg11" or "vgg16".
        num_sequences: Channels of the input.
        width: Factor on the channels of every layer.
    """

    def __init__(self, name: str, *, num_sequences: int, width: float) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = num_sequences
        for stage, widths in enumerate(VGG_STAGES[name], start=1):
            for index, wanted in enumerate(widened(w, width) for w in widths):
                self.features.add_module(
                    f"conv{stage}_{index + 1}", nn.Conv3d(channels, wanted, 3, padding=1, bias=False)
                )
                self.features.add_module(f"norm{stage}_{index + 1}", nn.BatchNorm3d(wanted))
                self.features.add_module(f"relu{stage}_{index + 1}", nn.ReLU(inplace=True))
                channels = wanted
            self.features.add_module(f"pool{stage}", nn.MaxPool3d(2, ceil_mode=True))
        self.fc = nn.Linear(channels, 2)
        for module in self.features.children():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """From (B, num_sequences, D, H, W) to (B, 2)."""
        maps: Tensor = self.features(x)  # (B, C, D / 32, H / 32, W / 32)
        logits: Tensor = self.fc(maps.mean(dim=(2, 3, 4)))
        return logits
