"""Convert the chosen DICOM series into a BIDS folder of the site's own, which holds no identifier.

dcm2niix turns a series into a volume. Of what it writes, the voxels, their place in the world and the harmless part of
the sidecar go on; names of files, free text, dates and identifiers stay behind, as DICOM PS3.15 Annex E has it.
A face can still be recognised in the voxels, as in any head MRI.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from client.config import EligibilityRule, SiteConfig
from client.exam import SPLITS, given, shortened
from client.fresh_header import with_fresh_header
from client.private_files import make_private_folder, write_atomically
from client.sources.dicom_choice import Choice
from client.sources.dicom_folder import BIDS_FOLDER
from client.sources.dicom_series import Series
from client.sources.json_text import read_json
from client.sources.sidecar import harmless
from client.table import table_rows
from common.errors import ConfigError, DataError, list_of_faults

CONVERSION_TIMEOUT_S = 900
_DONE_FILE = "converted.json"
_ENDINGS = {"t1": "T1w", "t2": "T2w", "t1ce": "ce-gadolinium_T1w"}
_OTHER = "other"
"""Stands for a word that no rule of eligibility asks for, since any text may hold a name."""


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
        num_converted: Series converted now.
        num_kept: Series that were converted already.
        num_unlabelled: Patients without a row in the table of labels.
    """

    num_converted: int
    num_kept: int
    num_unlabelled: int


def convert(
    config: SiteConfig,
    series: Sequence[Series],
    choices: Sequence[Choice],
    on_series: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Convert what is chosen and not converted yet, drop what is not chosen any more, and write participants.tsv last.

    Args:
        config: The site's settings; `data` names the folder and the table of labels.
        series: All series of the DICOM folder.
        choices: The file of choices as it stands.
        on_series: Told how many are done, and of how many.

    Raises:
        ConfigError: The table of labels cannot be used; nothing is converted then.
        DataError: All series at once that cannot be converted; the others are.
    """
    assert config.data.converted is not None
    folder = config.data.converted / BIDS_FOLDER
    chosen = [choice for choice in choices if choice.sequence]
    if not chosen:
        raise ConfigError(f"{config.data.converted}: no series is chosen; write t1, t2 or t1ce in the column sequence")
    rows, num_unlabelled = _participants(config, chosen)
    make_private_folder(folder)
    files_of = {one.uid: one.files for one in series}
    done_file = config.data.converted / _DONE_FILE
    known = _known(done_file)
    done: dict[str, str] = {}
    faults: list[str] = []
    num_kept = 0
    for place, choice in enumerate(chosen, start=1):
        name = _name(choice)
        files = files_of.get(choice.series_uid, ())
        state = f"{choice.series_uid} {len(files)}"
        where = f"sub-{choice.sub}/ses-{choice.ses}: {choice.sequence}"
        if known.get(name) == state and (folder / f"{name}.nii.gz").exists():
            done[name], num_kept = state, num_kept + 1
        elif not files:
            faults.append(f"{where}: the series is not in the DICOM folder any more; choose another")
        else:
            try:
                _convert_series(files, folder / name, where)
            except DataError as error:
                faults.append(str(error))
            else:
                done[name] = state
        if on_series is not None:
            on_series(place, len(chosen))
    for name in known.keys() - done.keys():
        for ending in (".nii.gz", ".json"):
            (folder / f"{name}{ending}").unlink(missing_ok=True)
    _write_json(done_file, done)
    _write_tables(folder, rows, config)
    if faults:
        raise DataError(list_of_faults(str(config.data.converted), shortened(faults)))
    return Conversion(len(done) - num_kept, num_kept, num_unlabelled)


def _name(choice: Choice) -> str:
    """Path of a volume in the BIDS folder, without its ending."""
    stem = f"sub-{choice.sub}_ses-{choice.ses}"
    return f"sub-{choice.sub}/ses-{choice.ses}/anat/{stem}_{_ENDINGS[choice.sequence]}"


def _convert_series(files: Sequence[Path], target: Path, where: str) -> None:
    import dcm2niix

    with tempfile.TemporaryDirectory(prefix=".gliorn-", dir=_room(target)) as room:
        source, out = Path(room) / "in", Path(room) / "out"
        source.mkdir()
        out.mkdir()
        for number, file in enumerate(files):  # so that no name of a file, which may hold a patient's, goes on
            (source / f"{number:06d}.dcm").symlink_to(file.resolve())
        command = [
            dcm2niix.bin,
            "-g",
            "i",
            "-b",
            "y",
            "-ba",
            "y",
            "-z",
            "n",
            "-f",
            "volume",
            "-o",
            str(out),
            str(source),
        ]
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": room}
        try:
            # What it prints holds names and dates and is thrown away.
            subprocess.run(command, check=False, capture_output=True, timeout=CONVERSION_TIMEOUT_S, env=environment)
        except subprocess.TimeoutExpired:
            raise DataError(f"{where}: not converted within {CONVERSION_TIMEOUT_S} s; choose another series") from None
        volumes = sorted(out.glob("*.nii"))
        if len(volumes) != 1:
            raise DataError(
                f"{where}: dcm2niix made {len(volumes)} volumes of it, expected one (images missing, or several echoes "
                "in one series?); choose another series in the column sequence"
            )
        fresh = with_fresh_header(volumes[0].read_bytes(), name=where)
        sidecar_file = volumes[0].with_suffix(".json")
        sidecar = read_json(sidecar_file) if sidecar_file.exists() else {}
        make_private_folder(target.parent)
        write_atomically(target.with_name(f"{target.name}.nii.gz"), fresh)
        _write_json(target.with_name(f"{target.name}.json"), harmless(sidecar if isinstance(sidecar, dict) else {}))


def _room(target: Path) -> Path:
    """A folder of the site's own on the same disk, so that nothing is ever left in a place that others can read."""
    make_private_folder(target.parents[3])
    return target.parents[3]


def _participants(config: SiteConfig, chosen: Sequence[Choice]) -> tuple[list[dict[str, str]], int]:
    """A row for each patient with what may go on of the table of labels, and how many patients it does not name."""
    assert config.data.labels is not None
    path, label_column = config.data.labels, config.data.label_column.lower()
    header, lines = table_rows(path, sheet=None)
    lacking = [name for name in ("patient_id", label_column) if name not in header]
    if lacking:
        raise ConfigError(
            f"{path}: has no column {' and no column '.join(lacking)} (data.labels); found: {', '.join(header)[:200]}"
        )
    faults = [
        f"eligibility: a rule on the column {rule.column} would write identifiers into the converted exams; leave the "
        "sequence of these patients empty in series.tsv instead"
        for rule in config.eligibility
        if rule.column in ("patient_id", "participant_id")
    ]
    row_of: dict[str, tuple[int, dict[str, str]]] = {}
    for number, values in lines:
        if len(values) != len(header):
            faults.append(f"row {number}: has {len(values)} fields, expected {len(header)} as in the header")
            continue
        row = {name: given(value) for name, value in zip(header, values, strict=True)}
        known = row_of.setdefault(row["patient_id"], (number, row))
        if known[0] != number:
            faults.append(f"row {number}: this patient stands in row {known[0]} already; one row per patient")
    sub_of = {choice.patient_id: choice.sub for choice in chosen}
    participants = []
    for patient_id, sub in sorted(sub_of.items(), key=lambda item: item[1]):
        number, row = row_of.get(patient_id, (0, {}))
        participants.append({"participant_id": f"sub-{sub}", **_harmless_row(number, row, config, header, faults)})
    if faults:
        raise ConfigError(list_of_faults(str(path), shortened(faults)))
    return participants, sum(patient_id not in row_of for patient_id in sub_of)


def _harmless_row(
    number: int, row: Mapping[str, str], config: SiteConfig, header: Sequence[str], faults: list[str]
) -> dict[str, str]:
    """Words that settings name, and no other: the label, the split, and what rules of eligibility ask for."""
    label_column = config.data.label_column.lower()
    values: dict[str, str] = {}
    for rule in config.eligibility:
        if rule.column in header:
            values[rule.column] = _word_of_rules(row.get(rule.column, ""), rule.column, config.eligibility)
    label = row.get(label_column, "")
    if label and label not in config.label_map and values.get(label_column, _OTHER) == _OTHER:
        faults.append(
            f"row {number}: {label_column} is {label!r}, which neither label_map nor a rule of eligibility holds; map "
            "the word, or exclude it"
        )
    values[label_column] = label
    if "split" in header:
        split = row.get("split", "")
        if split and split not in SPLITS:
            faults.append(f"row {number}: split is {split!r}; write train, validation or test")
        values["split"] = split
    return values


def _word_of_rules(word: str, column: str, rules: Sequence[EligibilityRule]) -> str:
    asked = {given(excluded) for rule in rules if rule.column == column for excluded in rule.exclude}
    return word if word in asked or not word else _OTHER


def _write_tables(folder: Path, rows: Sequence[Mapping[str, str]], config: SiteConfig) -> None:
    description = {
        "Name": f"Exams of {config.name}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "gliorn", "Version": version("gliorn")}],
    }
    _write_json(folder / "dataset_description.json", description)
    columns = list(rows[0])
    lines = [columns, *([row[name] or "n/a" for name in columns] for row in rows)]
    write_atomically(folder / "participants.tsv", "".join("\t".join(line) + "\n" for line in lines).encode())


def _known(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict) or not all(
        isinstance(state, str) and name.startswith("sub-") and ".." not in name for name, state in value.items()
    ):
        raise ConfigError(f"{path}: is not as it was written; delete it, and all series are converted again")
    return value


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
