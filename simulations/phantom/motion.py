"""The truth about misregistration: how each sequence of a phantom exam lies to its T1ce."""

import numpy as np

from simulations.phantom.exam import draw_exam
from simulations.phantom.grid import Array
from simulations.phantom.spec import HospitalSpec, PhantomOptions, random_stream


def true_motions(spec: HospitalSpec, index: int, options: PhantomOptions) -> dict[str, Array]:
    """From the world mm of T1 and of T2 to those of T1ce, by sequence; shape (4, 4).

    Drawn again from the exam's own random stream, so it is what the images of this patient were drawn with.

    Args:
        spec: The hospital.
        index: Number of the patient there, from 0.
        options: The options that the hospital was written with.
    """
    stream = random_stream(options.seed, spec.name, "exam", index)
    poses = draw_exam(spec.scanner, options.spacing_mm, options.misregistration_mm, stream).poses
    return {sequence: np.linalg.inv(poses["t1ce"]) @ poses[sequence] for sequence in ("t1", "t2")}
