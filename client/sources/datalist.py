"""Read the exams of a datalist: the JSON of MONAI and of the Medical Segmentation Decathlon."""

import math
from pathlib import Path

from client.config import DataSource
from client.exam import POINT, SEQUENCES, SPLITS, Faults, Record, Source, given
from client.sources.json_text import read_json
from common.errors import ConfigError
from common.study import Sequence

_SPLIT_OF_LIST = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}
_MODALITIES: dict[str, Sequence] = {
    **dict.fromkeys(("t1", "t1w"), "t1"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
    **dict.fromkeys(("t1ce", "t1gd", "t1c", "t1wce"), "t1ce"),
}
_SPECIAL = ("image", "label", "fold", "split")


def datalist_source(data: DataSource, sequences: tuple[Sequence, ...], faults: Faults) -> Source:
    """The records of a datalist's lists `training`, `validation` and `test` (or `testing`).

    An entry is `{"patient_id": …, "image": [t1, t2, t1ce], "label": …}`, with `exam_id`, `fold`, lesion_x, lesion_y,
    lesion_z, lesion_mask and brain_mask where they are known. `image` is a list in the order of the file's
    `modality`, or of the study where it has none, with null for what was not taken; or an object by sequence; or one
    path. Patients are split by the lists if more than `training` is filled or there is a list `validation`, even an
    empty one; by `data.validation_fold`; or not at all.

    Args:
        data: The settings; `datalist` is the file.
        sequences: The order of the study.
        faults: Takes what is wrong with single entries.

    Raises:
        ConfigError: The file is no datalist, so that nothing can be said of its entries.
    """
    assert data.datalist is not None
    path = data.datalist
    lists = _lists(path)
    order = _order(path, sequences)
    entries = [
        (name, index, entry) for name in _SPLIT_OF_LIST for index, entry in enumerate(lists.get(name, []), start=0)
    ]
    folds = [entry for _, _, entry in entries if isinstance(entry, dict) and entry.get("fold") is not None]
    if folds and data.validation_fold is None and "validation" not in lists:
        faults.written.append(
            "its entries name folds; write data.validation_fold: the fold that validates, or -1 to leave the folds "
            "out of account"
        )
    by_fold = data.validation_fold is not None and data.validation_fold >= 0
    if by_fold and not folds:
        faults.written.append(f"data.validation_fold is {data.validation_fold}, and no entry names a fold; delete it")
    filled = {_SPLIT_OF_LIST[name] for name, _, _ in entries}
    named_splits = by_fold or "validation" in lists or len(filled) > 1
    records, columns = [], {"patient_id", "exam_id", "label", "lesion_mask", "brain_mask", *POINT, *SEQUENCES}
    for row, (name, index, entry) in enumerate(entries, start=1):
        where = f"{name}[{index}]"
        if not isinstance(entry, dict):
            faults.written.append(f"{where}: is {_shown(entry)}, expected an object with image, label and patient_id")
            continue
        fields = _fields(where, entry, order, data, faults)
        if fields is None:
            continue
        if named_splits:
            fields["split"] = _split(where, name, entry.get("fold"), data, by_fold=by_fold, faults=faults)
        columns |= set(fields)
        records.append(Record(row, where, fields, path.parent))
    if not entries:
        faults.written.append('holds no entry; fill the list "training"')
    return Source("the datalist", tuple(records), frozenset(columns), named_splits)


def _lists(path: Path) -> dict[str, list[object]]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise ConfigError(f'{path}: is {_shown(document)}, expected an object with the list "training"')
    lists = {name: value for name, value in document.items() if name in _SPLIT_OF_LIST}
    if not lists:
        raise ConfigError(
            f"{path}: has none of the lists training, validation, test; found: {', '.join(document)[:200] or 'nothing'}"
        )
    wrong = [name for name, value in lists.items() if not isinstance(value, list)]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]} is {_shown(lists[wrong[0]])}, expected a list of entries")
    return lists


def _order(path: Path, sequences: tuple[Sequence, ...]) -> tuple[Sequence, ...]:
    """The sequences of an `image` that is a list: the file's `modality`, or the study's order."""
    document = read_json(path)
    modality = document.get("modality") if isinstance(document, dict) else None
    if modality is None:
        return sequences
    words = list(modality.values()) if isinstance(modality, dict) else modality if isinstance(modality, list) else []
    if isinstance(modality, dict) and list(modality) != [str(index) for index in range(len(modality))]:
        words = []
    plain = ["".join(c for c in word.lower() if c.isalnum()) if isinstance(word, str) else "" for word in words]
    order = tuple(_MODALITIES[word] for word in plain if word in _MODALITIES)
    if not words or len(order) < len(words) or len(set(order)) < len(order):
        raise ConfigError(
            f'{path}: modality is {_shown(modality)}, expected each of t1, t2 and t1ce once, as in {{"0": "t1", "1": '
            '"t2", "2": "t1ce"}; mend it, or delete it if images stand in the order of the study'
        )
    return order


def _fields(
    where: str, entry: dict[str, object], order: tuple[Sequence, ...], data: DataSource, faults: Faults
) -> dict[str, str] | None:
    """The fields of an entry as text, or None with its faults noted."""
    known = len(faults.written)
    fields = dict.fromkeys(("exam_id", "lesion_mask", "brain_mask", *POINT, *SEQUENCES), "")
    for name, value in entry.items():
        if name not in _SPECIAL:
            text = _text(value)
            if isinstance(value, bool) and name not in fields and name != "patient_id":
                fields[name.lower()] = str(value).lower()
            elif text is not None:
                fields[name.lower()] = given(text)
            elif name in fields or name == "patient_id":
                faults.written.append(f"{where}: {name} is {_shown(value)}, expected a text")
    fields |= _paths(where, entry.get("image"), order, faults)
    label = entry.get("label")
    if isinstance(label, bool | float | list | dict):
        faults.written.append(f"{where}: label is {_shown(label)}, expected a whole number or a word of label_map")
    else:
        fields["label"] = given(str(label)) if label is not None else ""
    if not fields.get("patient_id"):
        first = next((fields[name] for name in SEQUENCES if fields[name]), "")
        if data.one_exam_per_patient:
            fields["patient_id"] = first
        else:
            faults.written.append(
                f"{where}: names no patient_id; add it, or write data.one_exam_per_patient: true in site.yaml if each "
                "entry is a patient of its own"
            )
    return fields if len(faults.written) == known else None


def _paths(where: str, image: object, order: tuple[Sequence, ...], faults: Faults) -> dict[str, str]:
    if isinstance(image, str):
        image = [image]
    if isinstance(image, list):
        if len(image) != len(order):
            faults.written.append(
                f"{where}: image lists {len(image)} files, expected {len(order)}: {', '.join(order)}; write null for a "
                "sequence that was not taken"
            )
            return {}
        image = dict(zip(order, image, strict=True))
    if not isinstance(image, dict):
        faults.written.append(f"{where}: image is {_shown(image)}, expected a list of paths or an object by sequence")
        return {}
    unknown = [name for name in image if name not in SEQUENCES]
    wrong = [name for name, value in image.items() if not isinstance(value, str | None)]
    if unknown or wrong:
        found = f"the sequence {unknown[0]!r}" if unknown else f"{wrong[0]}: {_shown(image[wrong[0]])}"
        faults.written.append(f"{where}: image holds {found[:80]}, expected a path for each of t1, t2 and t1ce")
        return {}
    return {name: given(value) for name, value in image.items() if isinstance(value, str)}


def _split(where: str, name: str, fold: object, data: DataSource, *, by_fold: bool, faults: Faults) -> str:
    split = _SPLIT_OF_LIST[name]
    if not by_fold or split != SPLITS[0]:
        return split
    if isinstance(fold, bool) or not isinstance(fold, int):
        faults.written.append(f"{where}: fold is {_shown(fold)}, expected a whole number in each entry of training")
        return split
    return "validation" if fold == data.validation_fold else split


def _text(value: object) -> str | None:
    """A plain value as text; None for what is none."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return repr(value)


def _shown(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
