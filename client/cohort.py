"""A hospital's cohort: its exams, and which patients train, validate and test."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from client.config import SiteConfig
from client.exam import SPLITS, Exam, Exclusion, Split, shortened
from client.flow import Flow, flow_of
from client.sources.reading import SourceReading, read_source
from common.errors import ConfigError, DataError, list_of_faults
from common.study import Sequence, SplitSpec, Study


@dataclass(frozen=True)
class Cohort:
    """The exams of one site, sorted by patient and exam identifier.

    Attributes:
        site: Name of the site.
        exams: All exams.
        split_of: Where each patient belongs, by patient identifier.
        split_source: Whether the table, or whatever the source is, named the splits or they were drawn.
        excluded: Exams of the source that the site's rules of eligibility keep out; in no other figure.
    """

    site: str
    exams: tuple[Exam, ...]
    split_of: Mapping[str, Split]
    split_source: Literal["table", "drawn"]
    excluded: tuple[Exclusion, ...] = ()

    @property
    def flow(self) -> Flow:
        """Exams screened, excluded by reason, and included. It stays at the site."""
        return flow_of(self.exams, self.excluded)

    def exams_of(self, split: Split) -> tuple[Exam, ...]:
        """The exams of a split, in the order of the cohort; exams of one patient stand together."""
        return tuple(exam for exam in self.exams if self.split_of[exam.patient_id] == split)

    def num_patients(self, split: Split) -> int:
        """Patients, not exams, of a split."""
        return sum(self.class_counts(split))

    def class_counts(self, split: Split) -> tuple[int, int]:
        """Patients with label 0 and with label 1 in a split."""
        labels = {exam.patient_id: exam.label for exam in self.exams_of(split)}
        num_positive = sum(labels.values())
        return len(labels) - num_positive, num_positive

    def digest(self, split: Split, site_secret: bytes) -> str:
        """HMAC-SHA256 over the list of cases of a split, in hexadecimal.

        Equal as long as the cases are, so that the coordinator sees that a cohort stays frozen. Without the secret,
        which stays at the site, nobody can test whether a patient is in it.
        """
        cases = [(exam.patient_id, exam.exam_id, exam.label) for exam in self.exams_of(split)]
        message = json.dumps([self.site, split, cases]).encode()
        return hmac.new(site_secret, message, hashlib.sha256).hexdigest()


def load_cohort(config: SiteConfig, study: Study) -> Cohort:
    """Read the site's source and settle every patient's split: the source's where it names them, else drawn.

    Raises:
        ConfigError: All faults of the source at once.
        DataError: Files are not there, or exams lack a sequence that the study needs.
    """
    reading = read_source(config, study)
    reading.raise_if_faulty()
    require_sequences(reading.exams, study, origin=str(config.data.path))
    return cohort_of(reading, config, study)


def cohort_of(reading: SourceReading, config: SiteConfig, study: Study) -> Cohort:
    """Settle every patient's split: the source's where it names them, else drawn.

    Raises:
        ConfigError: The source names splits that do not fit the study, or no exam is left.
    """
    exams = reading.exams
    if not exams:
        raise ConfigError(
            f"{config.data.path}: the rules of eligibility exclude every exam; look at eligibility in site.yaml"
        )
    named = {exam.patient_id: exam.split for exam in exams if exam.split is not None}
    if not named:
        drawn = split_by_patient(exams, study.split, site=config.name, seed=study.seed)
        return replace(drawn, excluded=reading.excluded)
    if study.split.num_folds is not None:
        raise ConfigError(
            f"{config.data.path}: the column split names the test patients, but this study draws them anew for each "
            f"of its {study.split.num_folds} folds (split.num_folds); take part with a table without the column split, "
            "or agree with the coordinator on a study without num_folds"
        )
    if config.name in study.participation.held_out:
        if "test" not in named.values():
            raise ConfigError(
                f"{config.data.path}: no patient is in split test, and the study holds this site out of training; name "
                "test patients or delete the column split"
            )
    elif "train" not in named.values():
        raise ConfigError(
            f"{config.data.path}: no patient is in split train; name training patients or delete the column split"
        )
    return Cohort(config.name, exams, named, "table", reading.excluded)


def require_sequences(exams: tuple[Exam, ...], study: Study, *, origin: str) -> None:
    """Refuse exams that lack a sequence, as far as the study does.

    Under `refuse` an exam needs every sequence of the study; under `zero_fill` it needs one.

    Raises:
        DataError: Names all such exams and what to do.
    """
    refused = study.preprocessing.missing_sequence == "refuse"
    faults = []
    for exam in exams:
        lacking = [sequence for sequence in study.sequences if sequence not in exam.volumes]
        if lacking and (refused or len(lacking) == len(study.sequences)):
            faults.append(f"{exam.name}: lacks {' and '.join(lacking)}")
    if not faults:
        return
    advice = (
        "the study refuses exams that lack a sequence: fill in the missing files, delete these rows, exclude them by "
        "eligibility in site.yaml, or agree with the coordinator on missing_sequence: zero_fill"
        if refused
        else "none of the study's sequences is there: delete these rows"
    )
    raise DataError(f"{list_of_faults(origin, shortened(faults))}\n{advice}")


def split_by_patient(exams: tuple[Exam, ...], spec: SplitSpec, *, site: str, seed: int) -> Cohort:
    """Split so that all exams of one patient land on the same side and each class in every part, where it can.

    Patients of each class are sorted by identifier and shuffled by a generator that is seeded with the study's seed
    and the site's name, so neither the order of the rows nor another site has any influence. Sizes: `part_sizes`.
    With `num_folds` see `_draw_fold`.
    """
    label_of = {exam.patient_id: exam.label for exam in exams}
    classes = [sorted(patient for patient, own in label_of.items() if own == label) for label in (0, 1)]
    draw = _draw_shares if spec.num_folds is None else _draw_fold
    in_order = tuple(sorted(exams, key=lambda exam: (exam.patient_id, exam.exam_id)))
    return Cohort(site, in_order, draw(classes, spec, site=site, seed=seed), "drawn")


def _draw_shares(classes: list[list[str]], spec: SplitSpec, *, site: str, seed: int) -> dict[str, Split]:
    rng = _generator("split", seed, site)
    split_of: dict[str, Split] = {}
    for patients in classes:
        shuffled = _shuffled(patients, rng)
        for split, size in zip(SPLITS, part_sizes(len(patients), spec), strict=True):
            split_of.update(dict.fromkeys(shuffled[:size], split))
            shuffled = shuffled[size:]
    return split_of


def _draw_fold(classes: list[list[str]], spec: SplitSpec, *, site: str, seed: int) -> dict[str, Split]:
    """One fold of a stratified cross-validation by patient; `spec.fold` is the test.

    The shuffled patients of one class after the other are dealt to the folds in turn, so that folds differ by one
    patient at most, in all and in each class, and a patient is in the test of exactly one fold of a repeat. The rest
    gives its share to validation, drawn anew for each fold: at least one patient of a class, and never the last one.
    """
    assert spec.num_folds is not None
    dealing = _generator("folds", seed, site, spec.repeat)
    choosing = _generator("validation", seed, site, spec.repeat, spec.fold)
    split_of: dict[str, Split] = {}
    num_dealt = 0
    for patients in classes:
        folds = {patient: (num_dealt + i) % spec.num_folds for i, patient in enumerate(_shuffled(patients, dealing))}
        num_dealt += len(patients)
        rest = _shuffled([patient for patient in patients if folds[patient] != spec.fold], choosing)
        num_validation = min(max(1, int(len(rest) * spec.validation + 0.5)), max(len(rest) - 1, 0))
        split_of.update(dict.fromkeys(patients, "test"))
        split_of.update(dict.fromkeys(rest, "train"))
        split_of.update(dict.fromkeys(rest[:num_validation], "validation"))
    return split_of


def _generator(*key: str | int) -> np.random.Generator:
    seed_bytes = hashlib.sha256(json.dumps(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(seed_bytes, "big"))


def _shuffled(patients: list[str], rng: np.random.Generator) -> list[str]:
    return [patients[i] for i in rng.permutation(len(patients))]


def part_sizes(num_patients: int, spec: SplitSpec) -> tuple[int, int, int]:
    """How many of a class's patients train, validate and test.

    One patient trains; of two, one trains and one validates; from three on every part has at least one, and
    validation and test have their shares, rounded to the nearest patient. Where both would leave nobody for
    training, the larger one (the test, if equal) gives way.
    """
    if num_patients < 3:
        return min(num_patients, 1), max(num_patients - 1, 0), 0
    validation = max(1, int(num_patients * spec.validation + 0.5))
    test = max(1, int(num_patients * spec.test + 0.5))
    while validation + test >= num_patients:
        validation, test = (validation - 1, test) if validation > test else (validation, test - 1)
    return num_patients - validation - test, validation, test


def missing_counts(cohort: Cohort, sequences: tuple[Sequence, ...]) -> dict[str, int]:
    """Exams that lack each sequence."""
    return {sequence: sum(sequence not in exam.volumes for exam in cohort.exams) for sequence in sequences}
