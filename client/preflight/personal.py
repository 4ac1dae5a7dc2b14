"""Checks for personal data: names in paths, free text in headers, sidecars, and what else lies in the folder."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from client.exam import SEQUENCES, VOLUME_SUFFIXES
from client.preflight.findings import Hit
from client.preflight.image import ImageFile
from client.preflight.listing import Listing, Row
from client.preflight.rows import sequence_by_name

MAX_FILES_OF_TREE = 100_000
MAX_SIDECAR_BYTES = 10**6

_TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name", "data_type")
"""NIfTI-2 has the first two and intent_name."""
_HARMLESS_TEXT = re.compile(
    r"FSL\d+(\.\d+)*|\d+\.\d+\.\d+(:[0-9a-f]{6,40})?|SPM\d*( compatible)?|nibabel|GlioRN phantom"
)
"""Names of programs and their versions."""

_PERSONAL_FIELDS = re.compile(
    r"(Patient|OtherPatient)(?!(Sex|Age|Size|Weight|Position|Orientation)$)\w*"
    r"|\w*(Physician|Operator|Reader)s?\w*|AccessionNumber|StudyID|IssuerOf\w+|MedicalRecord\w*"
    r"|\w*InstanceUID|\w*(Date|DateTime)|AcquisitionTime|StudyTime|SeriesTime|ContentTime|InstitutionAddress"
)

_WORD = re.compile(r"[^\W\d_]+")
_BIRTH_DATE = re.compile(r"(?<!\d)(19|20)\d\d[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")
_GIVEN_NAMES = frozenset(
    resources.files("client.preflight").joinpath("given_names.txt").read_text(encoding="utf-8").split()
)


def check_header(image: ImageFile) -> Iterator[tuple[str, str]]:
    """Free text and extensions of a header, a name in the gzip wrapper; the text itself is not repeated."""
    wrapper = image.gzip_header
    if wrapper is not None and (wrapper.has_name or wrapper.has_comment or wrapper.has_extra):
        kind = "a file name" if wrapper.has_name else "a comment or an extra field"
        yield "gzip-name", f"the gzip wrapper holds {kind}"
    for name in _TEXT_FIELDS:
        if name not in image.header.keys():  # noqa: SIM118 - nibabel's header is no mapping
            continue
        text = bytes(image.header[name].item()).rstrip(b"\0 ")
        if text and not _HARMLESS_TEXT.fullmatch(text.decode("latin-1")):
            yield "header-text", f"{name} holds {len(text)} characters"
    if image.num_extension_bytes > 0:
        yield "header-extension", f"{image.num_extension_bytes} bytes of header extensions"


def check_sidecar(volume: Path) -> Iterator[tuple[str, str]]:
    """The JSON file that lies beside a volume under the same name, if one does."""
    name = volume.name
    stem = name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else volume.stem
    yield from _fields_of(volume.with_name(f"{stem}.json"))


def _fields_of(path: Path) -> Iterator[tuple[str, str]]:
    try:
        if not path.is_file():
            return
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            yield "sidecar-unreadable", f"{path.name} has over {MAX_SIDECAR_BYTES} bytes"
            return
        values = json.loads(path.read_bytes())
    except OSError as error:
        yield "sidecar-unreadable", f"{path.name} cannot be read ({error.strerror or error})"
        return
    except (ValueError, RecursionError):
        yield "sidecar-unreadable", f"{path.name} is not JSON"
        return
    personal = sorted({key for key in _keys(values) if _PERSONAL_FIELDS.fullmatch(key)})
    if personal:
        yield "sidecar-personal", f"{path.name} holds {', '.join(personal[:8])}"


def _keys(values: Any) -> Iterator[str]:
    """All keys of a JSON value that have a content, nested ones included."""
    waiting = [values]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            for key, value in each.items():
                if value not in (None, "", [], {}, "anonymous", "Anonymous", "ANONYMOUS"):
                    yield key
                waiting.append(value)
        elif isinstance(each, list):
            waiting += each


def check_paths(listing: Listing) -> Iterator[Hit]:
    """Names of persons and dates of birth in paths and identifiers.

    Suspect is a caret, a date of birth, a common given name, and a word that begins with a capital and stands in the
    paths of one patient alone, where three patients or more are listed. Folders that the paths of all patients go
    through are no patient's.
    """
    parts_of = {
        row.number: [part for path in row.written.values() for part in Path(path).parts] for row in listing.rows
    }
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for row in listing.rows:
        patients[row.patient_id].update(parts_of[row.number])
    shared = set.intersection(*patients.values()) if len(patients) > 1 else set()
    texts = [
        (row, (row.patient_id, row.exam_id, *(part for part in parts_of[row.number] if part not in shared)))
        for row in listing.rows
    ]
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for row, parts in texts:
        for word in _words(parts):
            owners[word].add(row.patient_id)
    several = len({row.patient_id for row in listing.rows}) >= 3
    for row, parts in texts:
        found = _suspect(parts)
        if not found and several:
            alone = [word for word in _words(parts) if owners[word] == {row.patient_id} and _like_a_name(word)]
            found = f"the word {alone[0]!r} is in this patient's paths alone" if alone else ""
        if found:
            yield Hit("name-in-path", row.name, found)


def _words(parts: tuple[str, ...]) -> list[str]:
    return [word for part in parts for word in _WORD.findall(part)]


def _like_a_name(word: str) -> bool:
    return len(word) >= 3 and word[0].isupper() and (word[1:].islower() or word.isupper())


def _suspect(parts: tuple[str, ...]) -> str:
    for part in parts:
        if "^" in part:
            return "a caret, as in DICOM's names"
        if _BIRTH_DATE.search(part):
            return "a date"
    given = next((word for word in _words(parts) if word.lower() in _GIVEN_NAMES), None)
    return f"the given name {given!r}" if given else ""


@dataclass(frozen=True)
class Tree:
    """What lies in a folder: regular files, links not followed.

    Attributes:
        volumes: NIfTI files.
        dicom: DICOM files.
        complete: Whether all files were looked at.
    """

    volumes: tuple[Path, ...]
    dicom: tuple[Path, ...]
    complete: bool


def walk_tree(folder: Path, *, without: tuple[Path, ...] = (), most: int = MAX_FILES_OF_TREE) -> Tree:
    """Look at every file of a folder, except in some folders below it."""
    volumes: list[Path] = []
    dicom: list[Path] = []
    skipped = {os.path.realpath(path) for path in without}
    count = 0
    for name, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if os.path.realpath(os.path.join(name, each)) not in skipped)
        for file in sorted(files):
            count += 1
            if count > most:
                return Tree(tuple(volumes), tuple(dicom), complete=False)
            path = Path(name, file)
            if file.lower().endswith(VOLUME_SUFFIXES):
                volumes.append(path)
            elif _is_dicom(path):
                dicom.append(path)
    return Tree(tuple(volumes), tuple(dicom), complete=True)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".ima") or path.name.upper() == "DICOMDIR":
        return True
    if path.suffix.lower() in (".json", ".tsv", ".csv", ".yaml", ".txt", ".md", ".png", ".html"):
        return False
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def check_tree(listing: Listing, tree: Tree) -> Iterator[Hit]:
    """Families 2 and 10: DICOM, and volumes that no row names."""
    if not tree.complete:
        yield Hit("tree-too-large", "", f"{listing.folder} holds more than {MAX_FILES_OF_TREE} files")
    if tree.dicom:
        yield Hit("dicom-in-tree", "", f"{len(tree.dicom)} DICOM files, such as {tree.dicom[0]}")
    listed = {os.path.realpath(path) for row in listing.rows for path in row.files.values()}
    unlisted = [path for path in tree.volumes if os.path.realpath(path) not in listed]
    beside: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in unlisted:
        beside[path.parent].append(path)
    shared = _folders_of_several(listing)
    forgotten: set[Path] = set()
    for row in listing.rows:
        for sequence in SEQUENCES:
            if sequence in row.written:
                continue
            for path in _candidates(row, beside, shared):
                if sequence_by_name(path.name) == sequence:
                    forgotten.add(path)
                    yield Hit("file-forgotten", row.name, f"lacks {sequence}, and {path} lies beside its volumes")
    rest = [path for path in unlisted if path not in forgotten]
    if rest:
        yield Hit("file-unlisted", "", f"{len(rest)} volumes, such as {rest[0]}")


def _folders_of_several(listing: Listing) -> set[Path]:
    owners: defaultdict[Path, set[int]] = defaultdict(set)
    for row in listing.rows:
        for path in row.files.values():
            owners[path.parent].add(row.number)
    return {folder for folder, rows in owners.items() if len(rows) > 1}


def _candidates(row: Row, beside: Mapping[Path, list[Path]], shared: set[Path]) -> Iterator[Path]:
    """Unlisted volumes in the folders that are this exam's alone, or that bear its identifier in a shared one."""
    for folder in sorted({path.parent for path in row.files.values()}):
        for path in beside.get(folder, []):
            if folder not in shared or row.patient_id in path.name:
                yield path
