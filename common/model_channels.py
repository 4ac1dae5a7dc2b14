"""What is known of a network without building it: its family, and the channels of its normalisation layers."""

from typing import Literal

Architecture = Literal["resnet10", "resnet18", "resnet50", "densenet121", "vgg11", "vgg16", "mresnet"]

RESNETS = ("resnet10", "resnet18", "resnet50")
VGGS = ("vgg11", "vgg16")

RESNET_STAGES = (64, 128, 256, 512)
"""Channels of the four stages of a ResNet, which its bottleneck blocks widen fourfold at their ends."""

RESNET_BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
"""Residual blocks of each stage."""

DENSENET_FEATURES, DENSENET_GROWTH, DENSENET_BOTTLENECK = 64, 32, 4
"""Channels behind DenseNet's stem, channels every layer adds, and factor of the growth inside a layer."""

DENSENET_BLOCKS = (6, 12, 24, 16)
"""Layers of each dense block of DenseNet121."""

VGG_STAGES = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
"""Channels of the convolutions of each stage of configurations A and D."""

MRESNET_RESOLUTIONS = (1, 2, 4)
"""Voxels along an axis that become one voxel in front of each branch of MResNet."""

MRESNET_BRANCH_WIDTH = 0.5
"""Width of a branch of MResNet, relative to ResNet10."""


def widened(channels: int, width: float) -> int:
    """Channels of a layer in a network of another width, rounded down."""
    return int(channels * width)


def norm_channels(name: Architecture, width: float) -> tuple[int, ...]:
    """Channels of every normalisation layer, in the order of the network's modules.

    Args:
        name: Architecture.
        width: Factor on the number of channels of every layer.
    """
    match name:
        case "densenet121":
            return _densenet_channels(width)
        case "vgg11" | "vgg16":
            return tuple(widened(channels, width) for stage in VGG_STAGES[name] for channels in stage)
        case "mresnet":
            return _resnet_channels("resnet10", width * MRESNET_BRANCH_WIDTH) * len(MRESNET_RESOLUTIONS)
        case _:
            return _resnet_channels(name, width)


def _resnet_channels(name: str, width: float) -> tuple[int, ...]:
    stages = [widened(channels, width) for channels in RESNET_STAGES]
    channels = [stages[0]]
    for index, (stage, num_blocks) in enumerate(zip(stages, RESNET_BLOCKS[name], strict=True)):
        block = [stage, stage, 4 * stage] if name == "resnet50" else [stage, stage]
        # ResNet18's shortcuts have no layers; ResNet10's first stage changes neither channels nor resolution.
        with_layers = name == "resnet50" or (name == "resnet10" and index > 0)
        channels += block + [block[-1]] * with_layers + block * (num_blocks - 1)
    return tuple(channels)


def _densenet_channels(width: float) -> tuple[int, ...]:
    growth = widened(DENSENET_GROWTH, width)
    features = widened(DENSENET_FEATURES, width)
    channels = [features]
    for index, num_layers in enumerate(DENSENET_BLOCKS):
        for _ in range(num_layers):
            channels += [features, DENSENET_BOTTLENECK * growth]
            features += growth
        channels.append(features)  # of the transition, or of the layer in front of the head
        if index < len(DENSENET_BLOCKS) - 1:
            features //= 2
    return tuple(channels)
