"""Files with the layout of MedicalNet's: made-up numbers under the names, shapes and prefix of the real ones."""

from collections import OrderedDict
from io import BytesIO

import torch
from monai.networks.nets.resnet import ResNet
from torch import Tensor

BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
SHORTCUTS = {"resnet10": "B", "resnet18": "A", "resnet34": "A", "resnet50": "B"}


def medicalnet_weights(name: str, *, width: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    """Weights as a file of MedicalNet names them: a ResNet without head, of one channel, "module." before each name.

    The real ones have width 1.
    """
    with torch.device("meta"):
        twin = ResNet(
            block="bottleneck" if name == "resnet50" else "basic",
            layers=list(BLOCKS[name]),
            block_inplanes=[64, 128, 256, 512],
            n_input_channels=1,
            conv1_t_stride=2,
            shortcut_type=SHORTCUTS[name],
            widen_factor=width,
            bias_downsample=False,
            feed_forward=False,
        )
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (f"module.{entry}", _numbers(entry, tensor, generator)) for entry, tensor in twin.state_dict().items()
    )


def _numbers(entry: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.tensor(7)
    small = 0.02 * torch.randn(like.shape, generator=generator)
    return small.abs() + 0.5 if "running_var" in entry or (like.ndim == 1 and entry.endswith("weight")) else small


def medicalnet_file(name: str, *, width: float = 1.0, weights: dict[str, Tensor] | None = None) -> bytes:
    """The bytes of such a file."""
    buffer = BytesIO()
    torch.save({"state_dict": medicalnet_weights(name, width=width) if weights is None else weights}, buffer)
    return buffer.getvalue()
