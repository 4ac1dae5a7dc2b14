"""The chain whose time is compared makes the same arrays as ours, on oblique, thin and thick slices."""

from pathlib import Path

import pytest

from common.study import PreprocessingSpec
from simulations.benchmark.prepare import LARGEST_DIFFERENCE, ours, same_result, shortest, write_exam

SPEC = PreprocessingSpec(spacing_mm=(4.0, 4.0, 4.0), size_voxels=(24, 24, 24), crop="lesion")


@pytest.mark.parametrize("hospital", ["B", "C"])
def test_monais_chain_ends_with_the_same_voxels_as_ours(hospital: str, tmp_path: Path) -> None:
    exam = write_exam(hospital, tmp_path, spacing_mm=3.0)

    made, theirs = ours(exam, SPEC), same_result(exam, SPEC)()

    assert made.shape == theirs.shape == (3, 24, 24, 24)
    assert abs(made - theirs).max() < LARGEST_DIFFERENCE
    assert made.std() > 0.3
    assert abs(made - shortest(exam, SPEC)()).max() > 1, "the shortest chain is said to have another result"
