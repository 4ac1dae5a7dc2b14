"""Write many patients, in this process or in several."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from simulations.phantom.patient import PatientJob, PatientRecord, write_patient


def write_patients(
    jobs: Sequence[PatientJob], workers: int, on_patient: Callable[[], None] | None = None
) -> list[PatientRecord]:
    """Write every job's patient; the records come back in the order of the jobs.

    Args:
        jobs: The patients.
        workers: Processes. With one, the work is done in this process.
        on_patient: Called here after every patient.
    """
    if min(workers, len(jobs)) <= 1:
        records = []
        with threadpool_limits(1):  # products split over threads need not end in the same bits
            for job in jobs:
                records.append(write_patient(job))
                if on_patient is not None:
                    on_patient()
        return records
    # Spawned, not forked: the caller may have started threads, such as those of torch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=threadpool_limits, initargs=(1,)
    ) as pool:
        futures = [pool.submit(write_patient, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                if on_patient is not None:
                    on_patient()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
