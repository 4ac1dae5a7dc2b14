"""How long one patient takes to prepare: GlioRN's chain against MONAI's, on the same core, with the same result.

Two chains of MONAI's dictionary transforms stand against ours. The first, `same_result`, makes what ours makes: it
smooths a volume that is finer than the grid, resamples it onto a grid along the world's axes, crops it and divides by
the brightness of the head. The middle of the crop and that brightness are handed to it, so finding them costs it
nothing. The second, `shortest`, leaves out what MONAI's own example chains leave out: it does not smooth, keeps the
scanner's oblique axes and divides by the brightness of the crop. Its result is another one.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialCropd,
    SpatialResample,
)
from scipy import ndimage
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from client.preprocessing.grid import Grid, smoothing_sigmas
from client.preprocessing.head import find_head
from client.preprocessing.pipeline import Z_LIMIT, ExamFiles, prepare_exam
from client.preprocessing.volume import FloatArray, Volume, read_volume
from common.study import PreprocessingSpec, Sequence
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement, Options
from simulations.phantom.patient import PatientJob, write_patient
from simulations.phantom.spec import HOSPITALS, PhantomOptions

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of a prepared voxel, in standard deviations, at which results count as the same."""

LEAST_RATIO = 2.0
SEQUENCES: tuple[Sequence, ...] = ("t1", "t2", "t1ce")
_REACH_MM = 130.0


@dataclass(frozen=True)
class PhantomFiles:
    """One phantom exam on disk.

    Attributes:
        volumes: The file of every sequence.
        lesion: Middle of the crop, world mm in RAS.
    """

    volumes: Mapping[Sequence, Path]
    lesion: tuple[float, float, float]


def write_exam(hospital: str, folder: Path, *, spacing_mm: float | None) -> PhantomFiles:
    """Draw the first patient of a hospital; `spacing_mm` None is the resolution of its scanner."""
    job = PatientJob(HOSPITALS[hospital], 0, 0, f"sub-{hospital}001", folder, PhantomOptions(spacing_mm=spacing_mm))
    record = write_patient(job)
    return PhantomFiles({name: folder / record.images[name] for name in SEQUENCES}, record.lesion)


def ours(exam: PhantomFiles, spec: PreprocessingSpec) -> FloatArray:
    """GlioRN's chain from the files to the array; shape (sequences, D, H, W)."""
    contents = {sequence: path.read_bytes() for sequence, path in exam.volumes.items()}
    return prepare_exam(ExamFiles("exam", contents, lesion_point=exam.lesion), spec, SEQUENCES).image


def same_result(exam: PhantomFiles, spec: PreprocessingSpec) -> Callable[[], FloatArray]:
    """MONAI's chain for the same array. What is handed to it is worked out here, outside its time."""
    grid = Grid(exam.lesion, spec.spacing_mm, spec.size_voxels)
    around, more = _around(grid)
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True, dtype=torch.float32)
    affine = torch.from_numpy(around.affine)
    steps: list[object] = [
        LoadImaged(SEQUENCES),
        EnsureChannelFirstd(SEQUENCES),
        Orientationd(SEQUENCES, axcodes="RAS", labels=None),
    ]
    for sequence, path in exam.volumes.items():
        head = find_head(read_volume(path.read_bytes(), name=sequence), name=sequence)
        steps.append(NormalizeIntensityd(sequence, subtrahend=np.array(head.mean), divisor=np.array(head.std)))
    steps += [
        Lambdad(SEQUENCES, lambda image: _smoothed(image, grid)),
        Lambdad(SEQUENCES, lambda image: resample(image, dst_affine=affine, spatial_size=around.shape)),
        SpatialCropd(SEQUENCES, roi_start=more, roi_end=[n + m for n, m in zip(grid.shape, more, strict=True)]),
        ScaleIntensityRanged(SEQUENCES, -Z_LIMIT, Z_LIMIT, -Z_LIMIT, Z_LIMIT, clip=True),
    ]
    return _run(steps, exam)


def shortest(exam: PhantomFiles, spec: PreprocessingSpec) -> Callable[[], FloatArray]:
    """MONAI's chain as its examples have it: another result, and less work."""
    return _run(
        [
            LoadImaged(SEQUENCES),
            EnsureChannelFirstd(SEQUENCES),
            Orientationd(SEQUENCES, axcodes="RAS", labels=None),
            Spacingd(SEQUENCES, pixdim=spec.spacing_mm, mode="bilinear"),
            CenterSpatialCropd(SEQUENCES, roi_size=spec.size_voxels),
            NormalizeIntensityd(SEQUENCES),
        ],
        exam,
    )


def _run(steps: list[object], exam: PhantomFiles) -> Callable[[], FloatArray]:
    chain = Compose(steps)
    paths = {sequence: str(path) for sequence, path in exam.volumes.items()}

    def run() -> FloatArray:
        made = chain(dict(paths))
        image: FloatArray = np.concatenate([made[sequence].numpy() for sequence in SEQUENCES])
        return image

    return run


def _around(grid: Grid) -> tuple[Grid, list[int]]:
    """A grid of the whole head that holds the voxels of a crop's, and how many more it has at each side."""
    more = [math.ceil(max(0.0, _REACH_MM - mm * n / 2) / mm) for mm, n in zip(grid.spacing_mm, grid.shape, strict=True)]
    i, j, k = (n + 2 * m for n, m in zip(grid.shape, more, strict=True))
    return Grid(grid.centre, grid.spacing_mm, (i, j, k)), more


def _smoothed(image: MetaTensor, grid: Grid) -> MetaTensor:
    """The whole volume, smoothed as a part of it is in ours."""
    sigmas = smoothing_sigmas(Volume(image[0].numpy(), image.affine.numpy()), grid)
    smooth = ndimage.gaussian_filter(image[0].numpy(), sigmas, mode="nearest") if sigmas.any() else image[0].numpy()
    return MetaTensor(torch.from_numpy(smooth)[None], affine=image.affine)


def largest_difference(exam: PhantomFiles, spec: PreprocessingSpec) -> float:
    """Between our array and that of the same chain by MONAI, in standard deviations."""
    return float(np.abs(ours(exam, spec) - same_result(exam, spec)()).max())


def _case(hospital: str, exam: PhantomFiles, spec: PreprocessingSpec, repeats: int) -> list[Measurement]:
    """Seconds of processor time on one thread; the chains take turns, and the medians count."""
    difference = largest_difference(exam, spec)
    chains = {
        "GlioRN": lambda: ours(exam, spec),
        "MONAI, same result": same_result(exam, spec),
        "MONAI, shortest": shortest(exam, spec),
    }
    seconds: dict[str, list[float]] = {name: [] for name in chains}
    for turn in range(repeats + 1):
        for name, chain in chains.items():
            start = time.process_time()
            chain()
            if turn > 0:  # the first turn pays for imports and caches
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    case = f"hospital {hospital}, {spec.size_voxels[0]}³ voxels of {spec.spacing_mm[0]:g} mm"
    measured = [Measurement(f"{case}: patient, {name}", medians[name], "s") for name in chains]
    same, short = (medians[name] / medians["GlioRN"] for name in ("MONAI, same result", "MONAI, shortest"))
    measured += [
        Measurement(f"{case}: MONAI, same result / GlioRN", same, "x", f">= {LEAST_RATIO:g}", same >= LEAST_RATIO),
        Measurement(f"{case}: MONAI, shortest / GlioRN", short, "x", note="another result, and less work"),
    ]
    measured.append(
        Measurement(
            f"{case}: largest difference from MONAI, same result",
            difference,
            "sd",
            f"<= {LARGEST_DIFFERENCE:g}",
            difference <= LARGEST_DIFFERENCE,
        )
    )
    return measured


def run(options: Options) -> BenchmarkResult:
    """Measure on exams of several hospitals, at the resolution of their scanners unless it shall be quick.

    Raises:
        AssertionError: The two results differ, so that their times are not those of the same work.
    """
    hospitals = "A" if options.quick else "ABCE"
    cases = ((2.0, 32),) if options.quick else ((2.0, 32), (1.0, 96))
    exam_spacing_mm = 3.0 if options.quick else None
    measured: list[Measurement] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            for hospital in hospitals:
                exam = write_exam(hospital, options.work, spacing_mm=exam_spacing_mm)
                for mm, size in cases:
                    spec = PreprocessingSpec(spacing_mm=(mm,) * 3, size_voxels=(size,) * 3, crop="lesion")
                    measured += _case(hospital, exam, spec, options.repeats)
    finally:
        torch.set_num_threads(threads)
    for measurement in measured:
        assert measurement.unit != "sd" or measurement.reached, f"{measurement.name} is {measurement.value}"
    return BenchmarkResult(
        "prepare",
        tuple(measured),
        {"threads": 1, "repeats": options.repeats, "exams": "3 mm" if options.quick else "native resolution"},
    )


BENCHMARK = Benchmark(
    "prepare", "Time to prepare a patient on one core, against the plain chain of MONAI with the same result", run
)
