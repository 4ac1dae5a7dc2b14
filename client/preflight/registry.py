"""All checks of the preflight: id, severity, what each means, how to mend what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: Its name in reports, tests and JSON.
        family: What it belongs to.
        severity: "block" keeps the site from taking part; "warn" asks a person to look.
        meaning: What it finds, in a sentence without a full stop.
        remedy: What to do, likewise.
        fixable: Whether `gliorn-client fix` does it.
    """

    id: str
    family: str
    severity: Literal["block", "warn"]
    meaning: str
    remedy: str
    fixable: bool = False


_SEQUENCES, _TABLE, _GRIDS = "sequences", "table and disk", "grids of an exam"
_PLACE, _SPLITS, _LABELS = "place in the world", "splits", "labels"
_VALUES, _MODALITY, _COPIES = "voxel values", "right sequence", "copies"
_PERSONAL, _DAMAGE, _CLASSES = "personal data", "damaged files", "classes"
_SIZES, _KIND, _RESOURCES = "sizes", "kind of volume", "resources"

_AGAIN = "export or convert the file again"

_ALL = (
    # 1
    Check(
        "sequence-missing",
        _SEQUENCES,
        "block",
        "an exam lacks a sequence that the study needs",
        "fill in the file, delete the row, or agree with the coordinator on missing_sequence: zero_fill",
    ),
    Check(
        "sequence-misnamed",
        _SEQUENCES,
        "block",
        "a file's name speaks of another sequence than its column, or a column of volumes has an unknown name where "
        "t1, t2 or t1ce is absent",
        "put the file into the right column, or name the column t1, t2 or t1ce",
    ),
    Check(
        "sequence-incomplete",
        _SEQUENCES,
        "warn",
        "an exam has not all of t1, t2 and t1ce, which the study allows, or no study was named",
        "fill in the file if it exists",
    ),
    Check(
        "sequence-extra",
        _SEQUENCES,
        "warn",
        "a column of volumes is no sequence of this program and is left alone",
        "nothing, or delete the column",
    ),
    # 2
    Check(
        "source-unreadable",
        _TABLE,
        "block",
        "the table, or whatever else lists the exams, cannot be read",
        "do what the message says, then check again",
    ),
    Check(
        "source-refused",
        _TABLE,
        "block",
        "a round would refuse what the source says, for a reason that no other check names",
        "do what the message says, then check again",
    ),
    Check(
        "row-incomplete",
        _TABLE,
        "block",
        "a row has the wrong number of fields, no patient_id, no volume, or coordinates that are no numbers",
        "mend the row",
    ),
    Check("file-absent", _TABLE, "block", "a file that the table names is not there", "correct the path, or copy it"),
    Check(
        "file-forgotten",
        _TABLE,
        "block",
        "an exam lacks a sequence in the table, while a volume named after that sequence lies beside its others",
        "enter the file in the table, or take it out of the folder",
    ),
    Check(
        "file-unlisted",
        _TABLE,
        "warn",
        "volumes lie in the table's folder that no row names",
        "enter them if they belong to the cohort",
    ),
    Check("id-duplicate", _TABLE, "block", "an exam stands in two rows", "delete one row, or give each an exam_id"),
    Check(
        "id-leading-zeros",
        _TABLE,
        "block",
        "a patient_id seems to have lost its leading zeros, as spreadsheets do: its files or another row have them",
        "write the patient_id as text, with its zeros",
    ),
    Check(
        "id-letter-case",
        _TABLE,
        "block",
        "two patient_ids differ by letter case or accents' encoding alone",
        "write one patient one way",
    ),
    Check(
        "id-characters",
        _TABLE,
        "block",
        "a patient_id or exam_id holds characters beyond letters, digits, '.', '_', '-' and '+'",
        "give the patient an identifier of plain characters",
    ),
    Check(
        "link-outside",
        _TABLE,
        "block",
        "a path leads out of the table's folder, by '..' or a symbolic link",
        "copy the file into the folder, or write its absolute path",
    ),
    Check(
        "file-shared",
        _TABLE,
        "block",
        "one file stands in two places of the table",
        "give each sequence and each exam a file of its own",
    ),
    # 3
    Check(
        "orientation-differs",
        _GRIDS,
        "block",
        "two sequences have the same size and spacing but axes turned against each other, so one affine is flipped",
        "convert the exam from DICOM again; do not mend the affine by hand",
    ),
    Check(
        "little-overlap",
        _GRIDS,
        "block",
        "two sequences share less than half of the smaller one's field of view",
        "register the sequences, or convert them again",
    ),
    Check(
        "grid-differs",
        _GRIDS,
        "warn",
        "sequences of an exam differ in size, spacing (over .001 mm), origin (.001 mm) or direction (.1 degrees); each "
        "is resampled from its own grid, so that is right only if they are registered",
        "make sure that the sequences are registered to each other",
    ),
    # 4
    Check(
        "place-unknown",
        _PLACE,
        "block",
        "sform and qform codes are both 0, so the volume has no place in the world",
        f"{_AGAIN}, for example by dcm2niix",
    ),
    Check("affine-singular", _PLACE, "block", "the affine is singular or not finite", _AGAIN),
    Check("affine-sheared", _PLACE, "block", "the volume's axes are not at right angles (over .5 degrees off)", _AGAIN),
    Check(
        "transforms-disagree",
        _PLACE,
        "block",
        "sform and qform place the volume over .5 mm apart (a qform's own rounding reaches .3 mm)",
        f"{_AGAIN}, or delete the wrong one of the two",
    ),
    Check(
        "units-not-mm",
        _PLACE,
        "block",
        "the header says that lengths are in metres or micrometres",
        f"{_AGAIN}, with lengths in millimetres",
    ),
    Check(
        "spacing-impossible",
        _PLACE,
        "block",
        "voxels are under .1 mm or over 20 mm along an axis, as with units of metres",
        _AGAIN,
    ),
    Check(
        "lesion-outside",
        _PLACE,
        "block",
        "the lesion's point lies outside every volume of its exam",
        "write world mm in RAS; a point in LPS has the other sign in x and y",
    ),
    Check(
        "not-ras",
        _PLACE,
        "warn",
        "the voxel axes do not run to the right, the front and up; this program copes, others may not",
        "nothing, or let `gliorn-client fix` turn the array",
        fixable=True,
    ),
    # 5
    Check(
        "split-leak",
        _SPLITS,
        "block",
        "exams of one patient are in two splits",
        "put all exams of a patient into one split, or delete the column",
    ),
    Check(
        "split-unknown",
        _SPLITS,
        "block",
        "a split is none of train, validation and test, or only some rows have one",
        "write one of the three in every row, or delete the column",
    ),
    # 6
    Check(
        "label-unknown",
        _LABELS,
        "block",
        "a label is empty (no reference standard) or a word that label_map does not hold",
        "map the word if it means necrosis or recurrence, else delete the row",
    ),
    Check(
        "label-ambiguous",
        _LABELS,
        "block",
        "label_map maps a word that says mixed, unknown or not eligible",
        "take the word out of label_map and its rows out of the table",
    ),
    Check("label-contradicts", _LABELS, "block", "a patient has two labels", "give the patient one label"),
    Check(
        "label-differs",
        _LABELS,
        "warn",
        "the table's label of a patient is another one than the diagnosis in participants.tsv beside it",
        "find out which of the two files is right",
    ),
    Check(
        "labels-inverted",
        _LABELS,
        "warn",
        "a model that was trained elsewhere (--model) ranks the site's classes the wrong way round: its AUC's interval "
        "lies below .5, with 10 patients of each class or more",
        "look at label_map: 1 is necrosis, 0 is recurrence",
    ),
    Check(
        "prevalence-far",
        _LABELS,
        "warn",
        "most patients have necrosis, the rarer class wherever it was counted, and chance does not explain it",
        "look at label_map: 1 is necrosis, 0 is recurrence",
    ),
    # 7
    Check("voxels-not-finite", _VALUES, "block", "voxels are NaN or infinite", _AGAIN),
    Check("voxels-constant", _VALUES, "block", "every voxel has the same value, such as 0", _AGAIN),
    Check("no-head", _VALUES, "block", "no head stands out from the background", "look at the volume; drop the exam"),
    Check(
        "negative-islands",
        _VALUES,
        "warn",
        "connected voxels below 0, as where a number overflowed or the volume was normalised before",
        "export the volume as the scanner stored it",
    ),
    Check(
        "saturated",
        _VALUES,
        "warn",
        "over 1 % of the head's voxels have the largest value of the volume",
        "export the volume without windowing",
    ),
    # 8
    Check(
        "t1-is-t1ce",
        _MODALITY,
        "block",
        "two sequences of an exam hold the same voxels",
        "find the right file for one of them",
    ),
    Check(
        "t2-like-t1",
        _MODALITY,
        "warn",
        "T2 is bright where T1 is bright: rank correlation above 0 inside the brain",
        "look at the pictures: one of the two may be another sequence",
    ),
    Check(
        "csf-dark-in-t2",
        _MODALITY,
        "warn",
        "the fluid, dark in T1, is not bright in T2, as in a FLAIR",
        "look at the pictures: T2 may be a FLAIR",
    ),
    Check(
        "no-contrast",
        _MODALITY,
        "warn",
        "nothing is brighter in T1ce than in T1 beyond what is darker: no contrast agent, or both are swapped",
        "look at the pictures: T1 and T1ce may be swapped",
    ),
    # 9
    Check(
        "same-voxels",
        _COPIES,
        "block",
        "two exams hold the same voxels",
        "find out whose images they are; delete the other row",
    ),
    # 10
    Check("dicom-in-tree", _PERSONAL, "block", "DICOM files lie in the table's folder", "move them elsewhere"),
    Check(
        "name-in-path",
        _PERSONAL,
        "block",
        "a path or an identifier seems to hold a person's name or a date of birth",
        "`gliorn-client fix` names files after identifiers",
        fixable=True,
    ),
    Check(
        "header-text",
        _PERSONAL,
        "block",
        "the header's free text (descrip, aux_file, db_name, intent_name) holds more than a program's version; "
        "converters write times and names",
        "`gliorn-client fix` writes fresh headers",
        fixable=True,
    ),
    Check(
        "header-extension",
        _PERSONAL,
        "block",
        "the file carries header extensions, which may hold a whole DICOM header",
        "`gliorn-client fix` writes fresh headers",
        fixable=True,
    ),
    Check(
        "gzip-name",
        _PERSONAL,
        "block",
        "the gzip wrapper holds a file name or a comment",
        "`gliorn-client fix` compresses without one",
        fixable=True,
    ),
    Check(
        "sidecar-personal",
        _PERSONAL,
        "block",
        "a JSON file beside a volume holds fields of a person, a date or a DICOM identifier",
        "delete those fields; `gliorn-client fix` takes no sidecar along",
        fixable=True,
    ),
    Check(
        "sidecar-unreadable",
        _PERSONAL,
        "warn",
        "a JSON file beside a volume cannot be read, so what it holds is not known",
        "look at it, or delete it",
    ),
    Check(
        "tree-too-large",
        _PERSONAL,
        "warn",
        "the table's folder holds more files than are looked at",
        "give the cohort a folder of its own",
    ),
    # 11
    Check("file-empty", _DAMAGE, "block", "a file has 0 bytes", "copy it again"),
    Check(
        "gzip-damaged",
        _DAMAGE,
        "block",
        "a compressed file is cut short, has a wrong checksum or bytes after its end; nibabel alone would load it",
        "copy or export the file again",
    ),
    Check("file-unreadable", _DAMAGE, "block", "a file is no readable NIfTI, or its size is not what it says", _AGAIN),
    Check(
        "file-too-large",
        _DAMAGE,
        "block",
        "a volume takes more than 512 MB of memory, more than any head",
        "export the volume at the scanner's resolution",
    ),
    Check(
        "file-changed",
        _DAMAGE,
        "warn",
        "a file's content is another one than at the last check, though its time and size are not",
        "find out why; a disk may be failing",
    ),
    # 12
    Check(
        "class-missing",
        _CLASSES,
        "block",
        "a class has no patient: nothing is learnt and no AUC can be formed",
        "add patients of this class, or look at label_map",
    ),
    Check(
        "class-small",
        _CLASSES,
        "warn",
        "a class has fewer than 3 patients, so not every split can have one",
        "add patients, or agree with the coordinator",
    ),
    # 13
    Check(
        "spacing-unusual", _SIZES, "warn", "voxels are under .2 mm or over 10 mm along an axis", "look at the volume"
    ),
    Check(
        "field-of-view-unusual",
        _SIZES,
        "warn",
        "the field of view is under 120 mm or over 350 mm along an axis",
        "look at the volume: a part of the head, or of the body, may be shown",
    ),
    Check("few-slices", _SIZES, "warn", "the volume has fewer than 12 slices", "look at the volume; a localizer?"),
    # 14
    Check("not-3d", _KIND, "block", "the file holds several volumes or a plane", "export the one volume that is meant"),
    Check("not-grey", _KIND, "block", "voxels are colours or complex numbers", "export the grey-scale volume"),
    Check(
        "trailing-one",
        _KIND,
        "warn",
        "the volume has a fourth axis of length 1; this program copes",
        "nothing, or let `gliorn-client fix` take it off",
        fixable=True,
    ),
    Check("mask-empty", _KIND, "block", "a mask is the same everywhere", "draw it anew, or leave the field empty"),
    # 15
    Check(
        "disk-small",
        _RESOURCES,
        "warn",
        "the disk of the cache has less room than three times the data",
        "free some, or name a cache on a larger disk in site.yaml",
    ),
)

CHECKS: Mapping[str, Check] = {check.id: check for check in _ALL}
"""By id, in the order of the families."""

FIXABLE = frozenset(check.id for check in _ALL if check.fixable)
"""What `gliorn-client fix` mends; any other block keeps an exam out of the new folder."""


def registry_table() -> str:
    """All checks as a Markdown table, as it stands in docs/preflight.md."""
    lines = ["| check | about | severity | what it finds | what to do |", "|---|---|---|---|---|"]
    for check in _ALL:
        lines.append(
            f"| `{check.id}` | {check.family} | {check.severity} | {check.meaning} | {check.remedy}"
            f"{' (`fix` does it)' if check.fixable and 'fix`' not in check.remedy else ''} |"
        )
    return "\n".join(lines) + "\n"
