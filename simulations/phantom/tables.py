"""The text files of a hospital: the table of patients, BIDS' tables with their descriptions, site.yaml, the truth."""

import json
from collections.abc import Iterable, Sequence

from simulations.phantom.lesion import NECROSIS
from simulations.phantom.patient import PatientRecord
from simulations.phantom.spec import SEQUENCES, HospitalSpec, PhantomOptions

TABLE_COLUMNS = (
    *("patient_id", "label", *SEQUENCES, "lesion_x", "lesion_y", "lesion_z"),
    *("age", "sex", "months_since_radiotherapy"),
)
PARTICIPANT_COLUMNS = {
    "participant_id": {"Description": "Identifier of a synthetic patient"},
    "diagnosis": {
        "Description": "Reference standard as the hospital recorded it",
        "Levels": {"necrosis": "Radiation necrosis", "recurrence": "Glioma recurrence"},
    },
    "months_since_radiotherapy": {"Description": "Time from the end of radiotherapy", "Units": "month"},
    "age": {"Description": "Age at the exam", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "who_grade": {
        "Description": "WHO grade of the glioma",
        "Levels": {"2": "grade 2", "3": "grade 3", "4": "grade 4"},
    },
    "idh": {
        "Description": "IDH status",
        "Levels": {"mutant": "mutated", "wildtype": "not mutated", "n/a": "not tested"},
    },
    "mgmt": {
        "Description": "MGMT promoter",
        "Levels": {"methylated": "methylated", "unmethylated": "not methylated", "n/a": "not tested"},
    },
}

_SITE_YAML = """\
# A hospital that does not exist: every image beside this file was computed, nobody was scanned.
# Paths are relative to this file.
name: {site}
data:
  table: table.tsv
label_map: {{necrosis: 1, recurrence: 0}}
cache: cache
device: auto
torch_threads: 1
disclosure:
  min_patients: 4
  min_cell: 1        # phantom patients are nobody: every count may be shown (a real site keeps 5 or more)
  max_bins: 256
  statistics: true
"""


def hospital_files(spec: HospitalSpec, options: PhantomOptions, records: Sequence[PatientRecord]) -> dict[str, str]:
    """The text of every file that concerns the hospital as a whole, by its name in the hospital's folder."""
    description = {
        "Name": f"GlioRN phantom, {spec.site}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "gliorn phantom", "Description": f"synthetic, seed {options.seed}"}],
    }
    return {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        "participants.json": json.dumps(PARTICIPANT_COLUMNS, indent=2) + "\n",
        "participants.tsv": _tsv(PARTICIPANT_COLUMNS, (_participant(record) for record in records)),
        "table.tsv": _tsv(TABLE_COLUMNS, (_row(record) for record in records)),
        "derivatives/phantom/truth.tsv": _truth(records),
        "site.yaml": _SITE_YAML.format(site=spec.site),
    }


def _word(label: int) -> str:
    return "necrosis" if label == NECROSIS else "recurrence"


def _tsv(columns: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [list(columns), *rows]
    return "".join("\t".join(str(cell) for cell in line) + "\n" for line in lines)


def _row(record: PatientRecord) -> list[object]:
    images = [record.images.get(name, "") for name in SEQUENCES]
    person = record.person
    traits = (person.age, person.sex, person.months_since_radiotherapy)
    return [record.patient_id, _word(record.label), *images, *(f"{x:.1f}" for x in record.lesion), *traits]


def _participant(record: PatientRecord) -> list[object]:
    return [record.patient_id, _word(record.label), *vars(record.person).values()]


def _truth(records: Sequence[PatientRecord]) -> str:
    """What only the phantom knows; no part of the federation reads it."""
    numbers = list(records[0].truth.numbers)
    columns = ["patient_id", "label", "look", "log_likelihood_ratio", "x", "y", "z", "pattern", *numbers]
    rows = []
    for record in records:
        truth = record.truth
        facts = [_word(truth.label), _word(truth.look), truth.log_likelihood_ratio, *truth.center, truth.pattern]
        rows.append([record.patient_id, *facts, *truth.numbers.values()])
    return _tsv(columns, rows)
