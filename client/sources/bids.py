"""Read the exams of a folder in the layout of BIDS 1.10: raw images, or derivatives where they are asked for.

pybids is not used: it builds a database of every file of the dataset by sqlalchemy and pandas, for queries of which
three fixed ones are needed here, and names no line of participants.tsv in what it refuses.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.config import DataSource
from client.exam import POINT, SEQUENCES, Faults, Record, Source, given
from client.sources.json_text import read_json
from client.table import table_rows
from common.errors import ConfigError

PATIENT_COLUMN = "gliorn_patient_id"
EXAM_COLUMN = "gliorn_exam_id"
"""Columns of participants.tsv and of sessions.tsv with identifiers that BIDS' labels cannot hold."""
MASK = "label-lesion"
"""Entity of a mask whose non-zero voxels are the lesion, as in `sub-01_label-lesion_mask.nii.gz`."""
BRAIN_MASK = "desc-brain"
"""Entity of a mask of the brain, as in `sub-01_desc-brain_mask.nii.gz`."""
MASKS = {"lesion_mask": MASK, "brain_mask": BRAIN_MASK}

_FILE = re.compile(r"(?P<entities>sub-[A-Za-z0-9]+(_[a-z]+-[A-Za-z0-9+]+)*)_(?P<suffix>T1w|T2w|mask)\.nii(\.gz)?")
_SUBJECT = re.compile(r"sub-([A-Za-z0-9]+)")
_SESSION = re.compile(r"ses-([A-Za-z0-9]+)")

Row = tuple[int, dict[str, str]]
"""Number of a line and its fields by column."""


@dataclass(frozen=True)
class _Image:
    """A file in a folder anat whose name says what it shows."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def role(self) -> str | None:
        """A sequence, `lesion_mask`, `brain_mask`, or None."""
        match self.suffix, "ce" in self.entities:
            case "T1w", True:
                return "t1ce"
            case "T1w", False:
                return "t1"
            case "T2w", False:
                return "t2"
            case "mask", False if f"label-{self.entities.get('label')}" == MASK:
                return "lesion_mask"
            case "mask", False if f"desc-{self.entities.get('desc')}" == BRAIN_MASK:
                return "brain_mask"
        return None


def bids_source(data: DataSource, faults: Faults) -> Source:
    """The records of a BIDS folder: one for each session, or for each participant without sessions.

    What participants.tsv says of a participant holds for each session; a sessions.tsv can say otherwise.

    Args:
        data: The settings; `bids` is the folder.
        faults: Takes what is wrong with single participants, sessions and files.

    Raises:
        ConfigError: participants.tsv or its description cannot be used, so that nothing can be said of its rows.
    """
    assert data.bids is not None
    root = data.bids
    tables = _folder_of_tables(root)
    if not (tables / "participants.tsv").exists():
        raise ConfigError(
            f"{tables / 'participants.tsv'}: does not exist, expected the table of a BIDS dataset, with the columns "
            f"participant_id and {data.label_column}; name the dataset's folder in data.bids, or write the table"
        )
    columns, participants = _rows(tables / "participants.tsv", "participant_id", faults)
    label_column = data.label_column.lower()
    if label_column not in columns:
        close = difflib.get_close_matches(label_column, columns, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"found: {', '.join(columns)[:200]}"
        raise ConfigError(
            f"{tables / 'participants.tsv'}: has no column {label_column!r} (data.label_column); {advice}"
        )
    lacking = [name for name in POINT if name not in columns]
    if 0 < len(lacking) < len(POINT):
        faults.written.append(f"participants.tsv: lacks {' and '.join(lacking)} beside the other coordinates")
    _check_levels(tables / "participants.json", label_column, participants, faults)
    known = set(columns)
    records: list[Record] = []
    for subject, (number, row) in participants.items():
        folder = root / subject
        of_sessions = _sessions_table(tables / subject / f"{subject}_sessions.tsv", folder, known, faults)
        for session in _sessions(folder, faults) if folder.is_dir() else [""]:
            of_session = of_sessions.get(session, (0, {}))[1]
            fields = _fields({**row, **of_session}, subject, session, label_column)
            where = f"{subject}/{session}" if session else subject
            if folder.is_dir():
                fields |= _images(folder / session, where, root, data, faults)
            else:
                where = f"participants.tsv row {number}"
            records.append(Record(len(records) + 1, where, fields, root))
    for name in _names(root, "sub-"):
        if name not in participants:
            faults.written.append(f"{name}: has a folder and no row in participants.tsv; add a row with its label")
    if not participants:
        faults.written.append("participants.tsv: holds a header and no rows; add one row per patient")
    columns_of_records = known | {"patient_id", "exam_id", "label", *MASKS, *SEQUENCES}
    return Source("participants.tsv", tuple(records), frozenset(columns_of_records), named_splits="split" in known)


def _folder_of_tables(root: Path) -> Path:
    """Where participants.tsv lies: beside the images, or in the dataset that a folder of derivatives belongs to."""
    if not (root / "participants.tsv").exists() and root.parent.name == "derivatives":
        return root.parent.parent
    return root


def _rows(path: Path, key: str, faults: Faults) -> tuple[list[str], dict[str, Row]]:
    """The columns of a table of BIDS and its rows by identifier; faulty rows are noted and left out."""
    header, lines = table_rows(path)
    if key not in header or len(set(header)) < len(header):
        wanted = f"a column {key}" if key not in header else "each column once"
        raise ConfigError(f"{path}: expected {wanted} in the header; found: {', '.join(header)[:200]}")
    pattern, example = (_SUBJECT, "sub-01") if key == "participant_id" else (_SESSION, "ses-01")
    rows: dict[str, Row] = {}
    for number, values in lines:
        where = f"{path.name} row {number}"
        if len(values) != len(header):
            faults.written.append(f"{where}: has {len(values)} fields, expected {len(header)} as in the header")
            continue
        row = {name: given(value) for name, value in zip(header, values, strict=True)}
        name = row[key]
        if not pattern.fullmatch(name):
            faults.written.append(f"{where}: {key} is {name!r}, expected the form {example} with letters and digits")
        elif name in rows:
            faults.written.append(f"{where}: {name} stands in row {rows[name][0]} already; delete one")
        else:
            rows[name] = number, row
    return header, rows


def _sessions_table(path: Path, folder: Path, columns: set[str], faults: Faults) -> dict[str, Row]:
    """What is said of the sessions of a participant, where anything is; adds to the columns."""
    if not path.is_file():
        return {}
    header, rows = _rows(path, "session_id", faults)
    columns |= set(header)
    for session, (number, _) in rows.items():
        if not (folder / session).is_dir():
            faults.written.append(f"{path.name} row {number}: {session} has no folder; add it or delete the row")
    return rows


def _fields(row: Mapping[str, str], subject: str, session: str, label_column: str) -> dict[str, str]:
    identifiers = {
        "patient_id": row.get(PATIENT_COLUMN) or subject.removeprefix("sub-"),
        "exam_id": row[EXAM_COLUMN] if EXAM_COLUMN in row else session.removeprefix("ses-"),
    }
    return {**row, **identifiers, "label": row[label_column], **dict.fromkeys((*SEQUENCES, *MASKS), "")}


def _check_levels(path: Path, label_column: str, participants: Mapping[str, Row], faults: Faults) -> None:
    """Hold the words of the label column against the levels that participants.json describes, where it does."""
    if not path.exists():
        return
    described = read_json(path)
    if not isinstance(described, dict):
        raise ConfigError(f"{path}: expected an object with a description of each column")
    column: object = next((value for name, value in described.items() if name.lower() == label_column), {})
    levels = column.get("Levels") if isinstance(column, dict) else None
    if levels is None:
        return
    if not isinstance(levels, dict):
        raise ConfigError(f"{path}: {label_column}: Levels is no object; write a description of each word")
    for number, row in participants.values():
        word = row[label_column]
        if word and word not in levels:
            faults.written.append(
                f"participants.tsv row {number}: {label_column} is {word!r}, which the Levels of participants.json do "
                f"not hold ({', '.join(levels)[:200]}); mend the row or the Levels"
            )


def _sessions(folder: Path, faults: Faults) -> list[str]:
    """Folders of sessions; [""] where a participant has none."""
    sessions = []
    for name in _names(folder, "ses-"):
        if _SESSION.fullmatch(name):
            sessions.append(name)
        else:
            faults.written.append(f"{folder.name}: {name!r} is no session, expected the form ses-01")
    if sessions and (folder / "anat").is_dir():
        faults.written.append(f"{folder.name}: has a folder anat beside its sessions; move it into a session")
    return sessions or [""]


def _names(folder: Path, prefix: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith(prefix) and entry.is_dir())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed ({error.strerror or error}); grant read access") from None


def _images(folder: Path, where: str, root: Path, data: DataSource, faults: Faults) -> dict[str, str]:
    """The file of each sequence and of the mask, below the root; faults where a choice is left."""
    try:
        names = sorted(os.listdir(folder / "anat"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{folder / 'anat'}: cannot be listed ({error.strerror or error})") from None
    entities_of_folder = "_".join(where.split("/"))
    candidates: dict[str, list[_Image]] = {}
    for name in names:
        found = _FILE.fullmatch(name)
        if found is None:
            continue
        if not f"{found['entities']}_".startswith(f"{entities_of_folder}_"):
            faults.written.append(f"{where}: {name!r} is named for another participant or session; move or rename it")
            continue
        entities = dict(part.split("-", 1) for part in found["entities"].split("_"))
        image = _Image(folder / "anat" / name, entities, found["suffix"])
        if image.role is not None and _asked_for(image, data):
            candidates.setdefault(image.role, []).append(image)
    chosen = {}
    for role, images in candidates.items():
        left = _preferred(images, data.prefer)
        if len(left) > 1:
            listed = " and ".join(image.path.name for image in left[:4])
            faults.written.append(
                f"{where}: {len(left)} files for {role}: {listed}; say which by data.prefer (such as run-2) or, among "
                "derivatives, data.space"
            )
        chosen[role] = str(left[0].path.relative_to(root))
    return chosen


def _asked_for(image: _Image, data: DataSource) -> bool:
    """Whether an image is among those that the settings name; a mask may be of any `desc`."""
    space = image.entities.get("space")
    any_space = data.space is None and data.desc is not None
    space_fits = any_space or space == data.space
    return space_fits and (image.role in MASKS or image.entities.get("desc") == data.desc)


def _preferred(images: list[_Image], prefer: tuple[str, ...]) -> list[_Image]:
    for entity in prefer:
        narrowed = [image for image in images if entity in image.path.name.split("_")]
        images = narrowed or images
    return images
