"""The coil's slow shading of a volume, by N4 (SimpleITK, extra `prep`)."""

import numpy as np

from client.preprocessing.head import Head, brightness
from client.preprocessing.itk import simpleitk, to_image
from client.preprocessing.volume import FloatArray, Volume

_ITERATIONS = (50, 50, 30)
_CONTROL_POINTS = (4, 4, 4)
_LEAST_SHARE_OF_MEAN = 0.01
_FEWEST_BLOCKS = 20


def estimate_bias(head: Head) -> FloatArray:
    """The factor by which the coil brightens each block of a head's coarse volume.

    N4 (Tustison 2010, IEEE Trans. Med. Imaging 29:1310) on every second block of about 3 mm inside the head, three
    levels of B-splines, on one thread. What it models varies over more than 40 mm, so the blocks hold all of it.

    Args:
        head: Where the head is in a volume.

    Returns:
        Shape of `head.coarse`, positive; geometric mean 1 inside the head.
    """
    sitk = simpleitk()
    least = np.float32(_LEAST_SHARE_OF_MEAN * abs(head.mean))  # N4 takes logarithms
    image = to_image(Volume(np.maximum(head.coarse.values, least), head.coarse.affine))
    mask = to_image(Volume(head.mask.astype(np.float32), head.coarse.affine))
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetNumberOfThreads(1)
    method.SetMaximumNumberOfIterations(_ITERATIONS)
    method.SetNumberOfControlPoints(_CONTROL_POINTS)
    steps = [2 if count >= 2 * _FEWEST_BLOCKS else 1 for count in image.GetSize()]
    method.Execute(sitk.Shrink(image, steps), sitk.Shrink(sitk.Cast(mask, sitk.sitkUInt8), steps))
    logarithm = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0).astype(np.float64)
    field: FloatArray = np.exp(logarithm - logarithm[head.mask].mean()).astype(np.float32)
    return field


def without_bias(head: Head, field: FloatArray, *, name: str) -> Head:
    """A head whose coarse volume, mean and sd are those without the shading."""
    coarse = Volume(head.coarse.values / field, head.coarse.affine)
    return Head(coarse, head.mask, *brightness(coarse, head.mask, name=name))
