"""One patient: draw the person, the head, the lesion and the exam, and write the images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulations.phantom.exam import draw_exam, take_images
from simulations.phantom.geometry import draw_head
from simulations.phantom.grid import Array
from simulations.phantom.lesion import PATTERNS, draw_looks, log_likelihood_ratio
from simulations.phantom.nifti import nifti_bytes, write_whole
from simulations.phantom.person import Person, draw_person
from simulations.phantom.placement import place_lesion
from simulations.phantom.spec import (
    SEQUENCES,
    HospitalSpec,
    PhantomOptions,
    SequenceName,
    random_stream,
)

READER_ERROR_MM = 2.0
NECROSIS_T1CE_FACTOR = 1.6
SUFFIXES = {"t1": "T1w", "t2": "T2w", "t1ce": "ce-gadolinium_T1w"}

Point = tuple[float, float, float]


@dataclass(frozen=True)
class PatientJob:
    """One patient to write.

    Attributes:
        spec: The hospital that scanned the patient.
        index: Number of the patient there, from 0.
        label: The truth, 1 necrosis or 0 recurrence.
        patient_id: Under which the images are written.
        folder: Of the hospital that holds the images, which may be another one.
        options: Choices that hold for all hospitals.
    """

    spec: HospitalSpec
    index: int
    label: int
    patient_id: str
    folder: Path
    options: PhantomOptions


@dataclass(frozen=True)
class Truth:
    """What only the phantom knows about a patient.

    Attributes:
        label: Without label noise.
        look: The class the lesion looks like; another one in an atypical case.
        log_likelihood_ratio: Of necrosis against recurrence: the score of the best possible reader.
        center: Of the lesion, in the mm of the T1ce image.
        pattern: Way of enhancing.
        numbers: Parameters of the lesion, by name.
    """

    label: int
    look: int
    log_likelihood_ratio: float
    center: Point
    pattern: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class PatientRecord:
    """What a hospital's tables say about a patient.

    Attributes:
        patient_id: Identifier.
        label: As recorded, 1 necrosis or 0 recurrence; wrong where there is label noise.
        images: Path of each sequence that is there, relative to the hospital's folder.
        sizes: Bytes of each of those files.
        lesion: The point at which a radiologist put the lesion, in the mm of the images (RAS).
        person: Clinical facts.
        truth: What only the phantom knows.
    """

    patient_id: str
    label: int
    images: dict[SequenceName, str]
    sizes: dict[SequenceName, int]
    lesion: Point
    person: Person
    truth: Truth


def write_patient(job: PatientJob) -> PatientRecord:
    """Draw a patient and write the images with their sidecars below the hospital's folder."""
    spec, options = job.spec, job.options

    def stream(purpose: str) -> np.random.Generator:
        return random_stream(options.seed, spec.name, purpose, job.index)

    generator = stream("look")
    look = 1 - job.label if generator.random() < options.atypical else job.label
    looks = draw_looks(np.array([look]), options.separation, generator)
    head = draw_head(stream("head"))
    lesion = place_lesion(looks, head, stream("lesion"))
    exam = draw_exam(spec.scanner, options.spacing_mm, options.misregistration_mm, stream("exam"))
    sequences = present_sequences(spec, job.label, options, stream("missing"))
    images = take_images(spec.scanner, exam, head, lesion, sequences=sequences, generator=stream("noise"))

    paths, sizes = {}, {}
    anat = job.folder / job.patient_id / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    for name in sequences:
        stem = f"{job.patient_id}_{SUFFIXES[name]}"
        content = nifti_bytes(images[name], exam.grid.affine)
        write_whole(anat / f"{stem}.nii.gz", content)
        sidecar = json.dumps(_sidecar(spec, name, exam.grid.spacing_mm[2]), indent=2) + "\n"
        write_whole(anat / f"{stem}.json", sidecar.encode())
        paths[name] = (anat / f"{stem}.nii.gz").relative_to(job.folder).as_posix()
        sizes[name] = len(content)

    reader = stream("reader")
    noise = spec.label_noise if options.label_noise is None else options.label_noise
    center = exam.to_scanner(lesion.center, "t1ce")
    return PatientRecord(
        patient_id=job.patient_id,
        label=1 - job.label if reader.random() < noise else job.label,
        images=paths,
        sizes=sizes,
        lesion=_point(center + reader.normal(0.0, READER_ERROR_MM, 3)),
        person=draw_person(job.label, stream("person")),
        truth=Truth(
            label=job.label,
            look=look,
            log_likelihood_ratio=round(float(log_likelihood_ratio(looks, options.separation)[0]), 4),
            center=_point(center),
            pattern=PATTERNS[int(looks.pattern[0])],
            numbers={name: round(float(x[0]), 4) for name, x in vars(looks).items() if name != "pattern"},
        ),
    )


def present_sequences(
    spec: HospitalSpec, label: int, options: PhantomOptions, generator: np.random.Generator
) -> tuple[SequenceName, ...]:
    """The sequences an exam holds; at least T1ce, without which nobody would have sent the patient on."""
    present = []
    for name, chance in zip(SEQUENCES, generator.random(len(SEQUENCES)), strict=True):
        correlated = options.label_correlated_missingness and name == "t1ce" and label == 1
        if chance >= spec.missing[name] * (NECROSIS_T1CE_FACTOR if correlated else 1.0):
            present.append(name)
    return tuple(present) or ("t1ce",)


def _sidecar(spec: HospitalSpec, name: SequenceName, slice_mm: float) -> dict[str, object]:
    """What a converter writes beside an image, in BIDS' words: times in seconds."""
    scanner = spec.scanner
    timing = scanner.t2 if name == "t2" else scanner.t1
    sidecar: dict[str, object] = {
        "Modality": "MR",
        "MagneticFieldStrength": 1.5 if scanner.field == "1.5T" else 3,
        "Manufacturer": "GlioRN phantom",
        "ManufacturersModelName": f"Phantom {spec.name}",
        "BodyPartExamined": "HEAD",
        "MRAcquisitionType": "2D" if slice_mm > 3 else "3D",
        "ScanningSequence": "SE" if timing.inversion_ms is None else "IR",
        "SliceThickness": round(float(slice_mm), 3),
        "RepetitionTime": timing.repetition_ms / 1000,
        "EchoTime": timing.echo_ms / 1000,
    }
    if timing.inversion_ms is not None:
        sidecar["InversionTime"] = timing.inversion_ms / 1000
    if name == "t1ce":
        sidecar["ContrastBolusIngredient"] = "GADOLINIUM"
    sidecar["ImageComments"] = "Synthetic phantom image: not a patient"
    return sidecar


def _point(values: Array) -> Point:
    x, y, z = (round(float(value), 2) for value in values)
    return x, y, z
