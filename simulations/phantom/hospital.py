"""Write a hospital's folder: images, tables, site.yaml, and a last file that says that it is whole."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import ConfigError
from simulations.phantom.nifti import write_whole
from simulations.phantom.patient import PatientJob, PatientRecord
from simulations.phantom.pool import write_patients
from simulations.phantom.spec import HOSPITALS, HospitalSpec, PhantomOptions, draw_labels
from simulations.phantom.tables import hospital_files

__all__ = [
    "HOSPITALS",
    "HospitalPlan",
    "HospitalSpec",
    "PhantomOptions",
    "WrittenHospital",
    "is_complete",
    "write_hospital",
]

# Raised by every change that alters a byte of what is written.
VERSION = 2
_COMPLETE, _STARTED = "complete.json", "incomplete.json"


@dataclass(frozen=True)
class WrittenHospital:
    """A hospital on disk.

    Attributes:
        name: The letter of the hospital.
        folder: Holds everything.
        site_config: Its site.yaml.
        table: Its table of patients.
        num_patients: Patients.
        reused: It was there already, made by the same options.
    """

    name: str
    folder: Path
    site_config: Path
    table: Path
    num_patients: int
    reused: bool


@dataclass(frozen=True)
class HospitalPlan:
    """A hospital that is wanted in a folder.

    Attributes:
        spec: The hospital.
        folder: Where.
        options: Choices that hold for all hospitals.
        num_patients: Patients.
    """

    spec: HospitalSpec
    folder: Path
    options: PhantomOptions
    num_patients: int

    @property
    def digest(self) -> str:
        """Hex digest of everything the written bytes depend on."""
        facts = [VERSION, self.num_patients, asdict(self.spec), asdict(self.options)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def jobs(self) -> list[PatientJob]:
        """The patients to write."""
        spec, options = self.spec, self.options
        labels = draw_labels(spec, self.num_patients, options)
        jobs = [
            PatientJob(spec, index, label, f"sub-{spec.name}{index + 1:03d}", self.folder, options)
            for index, label in enumerate(labels)
        ]
        if options.duplicate_patient is not None and options.duplicate_patient[1] == spec.name:
            source, last = HOSPITALS[options.duplicate_patient[0]], jobs[-1]
            jobs[-1] = PatientJob(source, 0, last.label, last.patient_id, self.folder, options)
        return jobs

    def is_complete(self) -> bool:
        """Whether the folder holds this very hospital, to the last file."""
        try:
            found = json.loads((self.folder / _COMPLETE).read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return False
        if found.get("digest") != self.digest:
            return False
        return all(
            path.is_file() and path.stat().st_size == size
            for path, size in ((self.folder / name, size) for name, size in found["files"].items())
        )

    def start(self) -> None:
        """Make the folder, without what an earlier run left in it.

        Raises:
            ConfigError: The folder holds something else; nothing is deleted then.
        """
        if self.folder.exists():
            if not self.folder.is_dir():
                raise ConfigError(f"{self.folder}: is a file, expected a folder to write {self.spec.site} to")
            names = {path.name for path in self.folder.iterdir()}
            if names and not names & {_COMPLETE, _STARTED}:
                raise ConfigError(
                    f"{self.folder}: holds files that no phantom hospital wrote, expected a new or empty folder; "
                    "choose another one"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _STARTED).write_text(json.dumps({"digest": self.digest}) + "\n")
        (self.folder / _COMPLETE).unlink(missing_ok=True)
        for patient in self.folder.glob("sub-*"):
            shutil.rmtree(patient)

    def finish(self, records: Sequence[PatientRecord]) -> None:
        """Write the tables and, last, the file that says that all is there."""
        files = {record.images[name]: size for record in records for name, size in sorted(record.sizes.items())}
        for name, text in hospital_files(self.spec, self.options, records).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, text.encode())
            files[name] = len(text.encode())
        complete = {
            "digest": self.digest,
            "version": VERSION,
            "hospital": self.spec.name,
            "seed": self.options.seed,
            "num_patients": self.num_patients,
            "files": files,
        }
        write_whole(self.folder / _COMPLETE, (json.dumps(complete, indent=1) + "\n").encode())
        (self.folder / _STARTED).unlink()

    def written(self, *, reused: bool) -> WrittenHospital:
        """The hospital once it is on disk."""
        folder = self.folder
        return WrittenHospital(
            self.spec.name, folder, folder / "site.yaml", folder / "table.tsv", self.num_patients, reused
        )


def plan_hospital(
    spec: HospitalSpec, folder: Path, options: PhantomOptions, num_patients: int | None = None
) -> HospitalPlan:
    """What is wanted, checked.

    Raises:
        ConfigError: Fewer than two patients: a hospital holds both classes.
    """
    count = spec.num_patients if num_patients is None else num_patients
    if count < 2:
        raise ConfigError(f"{spec.site}: {count} patients are asked for, expected 2 or more, one of each class")
    return HospitalPlan(spec, folder, options, count)


def is_complete(spec: HospitalSpec, folder: Path, options: PhantomOptions, num_patients: int | None = None) -> bool:
    """Whether a folder holds this hospital, whole and made by the same options and version."""
    return plan_hospital(spec, folder, options, num_patients).is_complete()


def write_hospital(
    spec: HospitalSpec,
    folder: Path,
    options: PhantomOptions,
    *,
    num_patients: int | None = None,
    workers: int = 1,
    on_patient: Callable[[], None] | None = None,
) -> WrittenHospital:
    """Write a hospital, or leave it where it is there already.

    Args:
        spec: The hospital.
        folder: Its own folder, made if need be.
        options: Choices that hold for all hospitals.
        num_patients: Instead of the hospital's own number.
        workers: Processes that draw patients; the bytes do not depend on it.
        on_patient: Called after every patient.

    Raises:
        ConfigError: The folder holds something else, or too few patients are asked for.
    """
    plan = plan_hospital(spec, folder, options, num_patients)
    if plan.is_complete():
        return plan.written(reused=True)
    plan.start()
    plan.finish(write_patients(plan.jobs(), workers, on_patient))
    return plan.written(reused=False)
