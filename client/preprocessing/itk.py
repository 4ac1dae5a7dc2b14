"""SimpleITK, the extra `prep`: asked for where a study needs it, and the way to its images."""

from types import ModuleType
from typing import Any

import numpy as np

from client.preprocessing.volume import Volume
from common.errors import ConfigError
from common.study import PreprocessingSpec

WORLD_TO_LPS = np.diag([-1.0, -1.0, 1.0])
"""ITK's world grows to the left and to the back, NIfTI's to the right and to the front."""

_MAX_SHEAR = 1e-3


def require_extras(spec: PreprocessingSpec) -> None:
    """Check that what a study's preprocessing needs is installed.

    Raises:
        ConfigError: It is not; says how to install it.
    """
    if spec.registration != "none" or spec.bias_correction != "none":
        simpleitk()


def simpleitk() -> ModuleType:
    """The library.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise ConfigError(
            "the study's preprocessing (registration or bias_correction) needs SimpleITK, which is not installed "
            "here; run `pip install 'gliorn[prep]'` in this environment"
        ) from None
    library: ModuleType = SimpleITK
    return library


def to_image(volume: Volume) -> Any:
    """A volume as an image of ITK, on the same place of the world.

    Where the affine is sheared, which ITK does not know, the nearest axes at right angles take its place.
    """
    spacing = volume.spacing_mm
    directions = volume.affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > _MAX_SHEAR:
        left, _, right = np.linalg.svd(directions)
        directions = left @ right
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(volume.values.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((WORLD_TO_LPS @ volume.affine[:3, 3]).tolist())
    image.SetDirection((WORLD_TO_LPS @ directions).ravel().tolist())
    return image
