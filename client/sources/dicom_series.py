"""Find the MR series of a folder of DICOM files, and propose which is T1, T2 and contrast-enhanced T1."""

import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.study import Sequence as MriSequence

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

MIN_IMAGES = 12
"""Series of fewer images are localizers or cut short."""
_TAGS = (
    *("PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "SeriesInstanceUID", "SeriesNumber", "Modality"),
    *("SeriesDescription", "ProtocolName", "ImageType", "RepetitionTime", "EchoTime", "InversionTime"),
    *("ContrastBolusAgent", "DiffusionBValue", "NumberOfFrames"),
)
_OTHER_KINDS = {
    "FLAIR": r"flair|tirm|dark.?fluid",
    "diffusion": r"dwi|diff|adc|trace|dti|\bfa\b|tensor|ep2d",
    "susceptibility": r"swi|swan|t2\W?\*|t2star|hemo|\bmip\b",
    "perfusion": r"perf|dsc|dce|pwi|\basl\b|cbv|cbf|twist",
    "angiography or flow": r"\bmra\b|tof|angio|veno|flow",
    "localizer": r"loc(alizer)?\b|scout|survey|topo",
    "subtraction": r"\bsub(tr\w*)?\b|subtract",
    "spectroscopy": r"spectro|\bmrs\b|csi",
}
_CONTRAST = r"\bgd\b|\bgad|\bce\b|\+\s?c\b|\bc\+|t1ce|t1c\b|post|contrast|\bkm\b|\+\s?gd|enhanced"
_NATIVE = r"\bpre\b|native|nativ|without|w/o|\bohne\b|non.?contrast|\bprec"
_NO_AGENT = ("", "none", "no", "n/a", "0")


@dataclass(frozen=True)
class Series:
    """One series of images.

    Attributes:
        patient_id: As the files hold it; an identifier.
        study_uid: Of the exam; an identifier.
        study_time: Date and time of the exam; orders the exams of a patient.
        uid: Of the series; an identifier.
        number: On the scanner.
        description: Its description and protocol; free text that may hold a name.
        modality: `MR` for these.
        image_type: Such as ORIGINAL, PRIMARY.
        tr_ms: Repetition time; None where it is not said, as below.
        te_ms: Echo time.
        ti_ms: Inversion time.
        agent: Contrast agent as the scanner noted it.
        diffusion: Whether it has a b-value above 0.
        num_images: Images, or frames.
        files: Its files in a fixed order.
    """

    patient_id: str
    study_uid: str
    study_time: str
    uid: str
    number: int
    description: str
    modality: str
    image_type: tuple[str, ...]
    tr_ms: float | None
    te_ms: float | None
    ti_ms: float | None
    agent: str
    diffusion: bool
    num_images: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Proposal:
    """What a series is taken for.

    Attributes:
        sequence: None for a series that is not needed.
        why: In a few words.
    """

    sequence: MriSequence | None
    why: str


def require_dicom_extra() -> None:
    """Refuse to begin without the libraries of the extra `dicom`.

    Raises:
        ConfigError: They are not installed.
    """
    try:
        import dcm2niix  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"data.dicom needs {error.name}, which is not installed; install gliorn with its extra: "
            "pip install 'gliorn[dicom]'"
        ) from None


def find_series(folder: Path) -> tuple[tuple[Series, ...], int]:
    """All series below a folder, whatever its files are called, and how many files are no usable DICOM.

    Raises:
        ConfigError: The folder holds no DICOM at all.
    """
    by_uid: dict[str, list[tuple[Path, FileDataset]]] = {}
    num_others = 0
    for home, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(home) / name for name in sorted(names)):
            header = _header(path)
            if header is None or not all(
                _word(header, name) for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
            ):
                num_others += 1
            else:
                by_uid.setdefault(_word(header, "SeriesInstanceUID"), []).append((path, header))
    if not by_uid:
        raise ConfigError(
            f"{folder}: holds {num_others} files and none of them is DICOM with PatientID and the UIDs of study and "
            "series; name the folder of the export"
        )
    series = [_series(uid, files) for uid, files in by_uid.items()]
    return tuple(sorted(series, key=lambda one: (one.patient_id, one.study_time, one.number, one.uid))), num_others


def propose(series: Series) -> Proposal:
    """What a series is, by its parameters first and its description second.

    T1: TE up to 30 ms with TR up to 1200 ms, or an inversion time of 300 to 1400 ms. T2: TE from 70 ms with TR from
    2000 ms and no long inversion (an inversion time from 1500 ms darkens CSF: FLAIR). Contrast: the agent that the
    scanner noted, else the words of the description.
    """
    text = series.description.lower().replace("_", " ")
    why_not = _why_not(series, text)
    if why_not:
        return Proposal(None, why_not)
    tr, te, ti = series.tr_ms, series.te_ms, series.ti_ms
    if tr is None or te is None:
        return Proposal(None, "TR or TE is not known; choose by hand")
    if te >= 70 and tr >= 2000 and (ti or 0) < 300:
        return Proposal("t2", f"TE {te:g}, TR {tr:g} ms")
    if te <= 30 and (tr <= 1200 or 300 <= (ti or 0) <= 1400):
        given_agent = series.agent.lower() not in _NO_AGENT
        worded = re.search(_CONTRAST, text) is not None and re.search(_NATIVE, text) is None
        if given_agent and re.search(_NATIVE, text):
            return Proposal(None, "a contrast agent is noted, and the description says none was given; choose by hand")
        contrast = "agent noted" if given_agent else "by its description" if worded else ""
        return Proposal(
            "t1ce" if contrast else "t1", f"TE {te:g}, TR {tr:g} ms" + (f", {contrast}" if contrast else "")
        )
    return Proposal(None, f"TE {te:g}, TR {tr:g} ms fit neither T1 nor T2")


def propose_for_exam(exam: Sequence[Series]) -> dict[str, Proposal]:
    """By UID of the series: of several that are one sequence, the original one with the most images."""
    proposals = {one.uid: propose(one) for one in exam}
    for sequence in ("t1", "t2", "t1ce"):
        fitting = [one for one in exam if proposals[one.uid].sequence == sequence]
        fitting.sort(key=lambda one: ("DERIVED" in one.image_type, -one.num_images, one.number, one.uid))
        for other in fitting[1:]:
            best = f"series {fitting[0].number}"
            proposals[other.uid] = Proposal(None, f"{sequence} as well; {best} is original or has more images")
    return proposals


def _why_not(series: Series, text: str) -> str:
    """Why a series is none of the three, by the first ground that holds; "" if none does."""
    kind = next((kind for kind, words in _OTHER_KINDS.items() if re.search(words, text)), "")
    grounds = {
        f"modality {series.modality or 'not known'}": series.modality != "MR",
        "localizer": "LOCALIZER" in series.image_type,
        "secondary capture or computed": "SECONDARY" in series.image_type,
        "diffusion by its b-value": series.diffusion,
        f"{kind}, by its description": bool(kind),
        "FLAIR (long inversion)": series.ti_ms is not None and series.ti_ms >= 1500,
        f"{series.num_images} images": series.num_images < MIN_IMAGES,
    }
    return next((ground for ground, holds in grounds.items() if holds), "")


def _header(path: Path) -> "FileDataset | None":
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, struct.error):
        return None
    except (NotImplementedError, RecursionError):
        return None


def _series(uid: str, files: list[tuple[Path, "FileDataset"]]) -> Series:
    head = files[0][1]
    frames = [int(_number(header, "NumberOfFrames") or 1) for _, header in files]
    description = " ".join(word for word in (_word(head, "SeriesDescription"), _word(head, "ProtocolName")) if word)
    return Series(
        patient_id=_word(head, "PatientID"),
        study_uid=_word(head, "StudyInstanceUID"),
        study_time=f"{_word(head, 'StudyDate')} {_word(head, 'StudyTime')}".strip(),
        uid=uid,
        number=int(_number(head, "SeriesNumber") or 0),
        description=description,
        modality=_word(head, "Modality"),
        image_type=tuple(_word(head, "ImageType").upper().split("\\")),
        tr_ms=_number(head, "RepetitionTime"),
        te_ms=_number(head, "EchoTime"),
        ti_ms=_number(head, "InversionTime"),
        agent=_word(head, "ContrastBolusAgent"),
        diffusion=any((_number(header, "DiffusionBValue") or 0) > 0 for _, header in files),
        num_images=sum(frames),
        files=tuple(sorted(path for path, _ in files)),
    )


def _word(header: "FileDataset", keyword: str) -> str:
    """A value as text on one line; several values are parted by a backslash, as in the file."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, struct.error):
        return ""
    if value is None:
        return ""
    parts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    return " ".join("\\".join(str(part) for part in parts).split())


def _number(header: "FileDataset", keyword: str) -> float | None:
    try:
        number = float(_word(header, keyword))
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None


def by_exam(series: Sequence[Series]) -> Mapping[tuple[str, str], list[Series]]:
    """The series of each exam, by patient and study."""
    exams: dict[tuple[str, str], list[Series]] = {}
    for one in series:
        exams.setdefault((one.patient_id, one.study_uid), []).append(one)
    return exams
