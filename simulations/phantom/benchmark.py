"""How long a patient takes on one core: `python -m simulations.phantom.benchmark`."""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from simulations.phantom.patient import PatientJob, write_patient
from simulations.phantom.spec import HOSPITALS, PhantomOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """Processor time of one patient with three sequences, drawn, written and compressed.

    Attributes:
        hospital: Letter.
        spacing_mm: Lower bound of the voxel edges, None for the scanner's own.
        fastest_s: Of all repeats, seconds of processor time.
        mean_s: Over the repeats.
        megabytes: Written, a patient.
    """

    hospital: str
    spacing_mm: float | None
    fastest_s: float
    mean_s: float
    megabytes: float


def measure(hospital: str, spacing_mm: float | None, num_patients: int = 5) -> Cost:
    """Time some patients of a hospital in a temporary folder, on one thread."""
    options = PhantomOptions(spacing_mm=spacing_mm)
    times, size = [], 0
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        for index in range(num_patients + 1):
            job = PatientJob(HOSPITALS[hospital], index, index % 2, f"sub-{index}", Path(folder), options)
            start = time.process_time()
            record = write_patient(job)
            times.append(time.process_time() - start)
            size += sum(record.sizes.values())
    times = times[1:]  # the first one pays for imports and caches
    return Cost(hospital, spacing_mm, min(times), sum(times) / len(times), size / (num_patients + 1) / 1e6)


def main(argv: Sequence[str] | None = None) -> int:
    """Log a line per hospital and spacing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=5, help="patients per measurement")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    log.info("hospital  spacing   fastest s   mean s   MB")
    cases: list[tuple[str, float | None]] = [("A", 2.5), ("A", 2.0), *((name, None) for name in HOSPITALS)]
    for hospital, spacing_mm in cases:
        cost = measure(hospital, spacing_mm, arguments.patients)
        spacing = "native" if spacing_mm is None else f"{spacing_mm} mm"
        log.info("%-9s %-9s %9.2f %8.2f %6.1f", hospital, spacing, cost.fastest_s, cost.mean_s, cost.megabytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
