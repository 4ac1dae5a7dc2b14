"""Several hospitals at once, their patients drawn by one pool of processes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.errors import ConfigError
from simulations.phantom.hospital import HospitalPlan, plan_hospital
from simulations.phantom.pool import write_patients
from simulations.phantom.spec import HOSPITALS, PhantomOptions


def plan_hospitals(
    out: Path, names: Sequence[str], options: PhantomOptions, num_patients: Mapping[str, int] | None = None
) -> list[HospitalPlan]:
    """The hospitals that are wanted, in folders `out/hospital-a` and so on.

    Raises:
        ConfigError: A name that is no hospital's or comes twice, or too few patients.
    """
    wanted = [name.upper() for name in names]
    unknown = sorted({name for name in (*wanted, *(num_patients or {})) if name not in HOSPITALS})
    if unknown or len(set(wanted)) != len(wanted) or not wanted:
        raise ConfigError(f"hospitals are {list(names)}, expected some of {', '.join(HOSPITALS)}, each once")
    counts = num_patients or {}
    return [plan_hospital(HOSPITALS[name], out / HOSPITALS[name].site, options, counts.get(name)) for name in wanted]


def write_hospitals(
    out: Path,
    names: Sequence[str],
    options: PhantomOptions,
    *,
    num_patients: Mapping[str, int] | None = None,
    workers: int = 1,
    on_patient: Callable[[], None] | None = None,
) -> list[Path]:
    """Write hospitals, leaving alone those that are there already and whole.

    Args:
        out: Gets one folder a hospital.
        names: Letters of the hospitals.
        options: Choices that hold for all hospitals.
        num_patients: Patients by letter, instead of the hospital's own number.
        workers: Processes that draw patients; the bytes do not depend on it.
        on_patient: Called after every patient that is drawn; `num_patients_to_draw` says how often.

    Returns:
        The site.yaml of each hospital, in the order of the names.

    Raises:
        ConfigError: See `plan_hospitals`; or a folder holds something else.
    """
    plans = plan_hospitals(out, names, options, num_patients)
    missing = [plan for plan in plans if not plan.is_complete()]
    jobs = [plan.jobs() for plan in missing]
    for plan in missing:
        plan.start()
    records = iter(write_patients([job for some in jobs for job in some], workers, on_patient))
    for plan in missing:
        plan.finish([next(records) for _ in range(plan.num_patients)])
    return [plan.folder / "site.yaml" for plan in plans]


def num_patients_to_draw(
    out: Path, names: Sequence[str], options: PhantomOptions, num_patients: Mapping[str, int] | None = None
) -> int:
    """How many patients `write_hospitals` will draw: those of hospitals that are not there yet. For a progress bar."""
    plans = plan_hospitals(out, names, options, num_patients)
    return sum(plan.num_patients for plan in plans if not plan.is_complete())
