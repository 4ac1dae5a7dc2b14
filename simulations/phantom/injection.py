"""Faults of real hospital data, put into a copy of a phantom hospital, each with the check that has to find it."""

import csv
import gzip
import io
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from simulations.phantom.grid import Array
from simulations.phantom.nifti import write_whole
from simulations.phantom.spec import SEQUENCES

Row = dict[str, str]
Header: TypeAlias = Any
Voxels = npt.NDArray[Any]

_START = 348
_NAME = "Mustermann_Erika"
"""Germany's specimen name for a person who does not exist."""


@dataclass
class Copy:
    """A copy of a hospital that may be spoilt.

    Attributes:
        folder: Holds table.tsv and the images.
        generator: Source of all that is random.
    """

    folder: Path
    generator: np.random.Generator

    def rows(self) -> list[Row]:
        """The table."""
        with (self.folder / "table.tsv").open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines, delimiter="\t"))

    def write_rows(self, rows: list[Row]) -> None:
        """Replace the table."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.folder / "table.tsv", text.getvalue().encode())

    def a_row(self) -> int:
        """Index of an exam that has all the sequences that any exam has."""
        rows = self.rows()
        most = max(sum(bool(row[name]) for name in SEQUENCES) for row in rows)
        whole = [index for index, row in enumerate(rows) if sum(bool(row[name]) for name in SEQUENCES) == most]
        return int(self.generator.choice(whole))

    def a_file(self, sequence: str = "t1") -> Path:
        """A volume of such an exam."""
        return self.folder / self.rows()[self.a_row()][sequence]


def _plain(path: Path) -> bytearray:
    return bytearray(gzip.decompress(path.read_bytes()))


def _pack(path: Path, plain: bytes | bytearray) -> None:
    packer = zlib.compressobj(level=1, wbits=31)
    write_whole(path, packer.compress(bytes(plain)) + packer.flush())


def _edit(path: Path, change: Callable[[Header, Voxels], Voxels]) -> None:
    """Change header and voxels (i, j, k); what the header says of shape and type is set from the voxels after."""
    plain = _plain(path)
    header = nibabel.Nifti1Header(bytes(plain[:_START]))
    begin = int(header["vox_offset"])
    stored = np.frombuffer(bytes(plain[begin:]), header.get_data_dtype()).reshape(header.get_data_shape(), order="F")
    voxels = change(header, stored.copy(order="F"))
    if voxels.dtype.names is None:
        header.set_data_dtype(voxels.dtype)
    header["dim"][: voxels.ndim + 1] = [voxels.ndim, *voxels.shape]
    _pack(path, header.structarr.tobytes() + bytes(begin - _START) + voxels.tobytes(order="F"))


def _edit_voxels(path: Path, change: Callable[[Voxels], Voxels]) -> None:
    _edit(path, lambda _, voxels: change(voxels))


def _edit_header(path: Path, change: Callable[[Header], None]) -> None:
    def both(header: Header, voxels: Voxels) -> Voxels:
        change(header)
        return voxels

    _edit(path, both)


def _set_affine(header: Header, affine: Array) -> None:
    """The sform, and a qform of code 0, as programs write that know no quaternions."""
    header["sform_code"], header["qform_code"] = 1, 0
    header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]


def _edit_affine(path: Path, change: Callable[[Array], Array]) -> None:
    _edit_header(path, lambda header: _set_affine(header, change(np.array(header.get_sform()))))


# The values


def nan_block(copy: Copy) -> None:
    """A block of voxels is NaN."""

    def change(voxels: Voxels) -> Voxels:
        values = voxels.astype(np.float32)
        values[2:5, 2:5, 2:4] = np.nan
        return np.asfortranarray(values)

    _edit_voxels(copy.a_file(), change)


def constant_image(copy: Copy) -> None:
    """Every voxel is 0."""
    _edit_voxels(copy.a_file(), np.zeros_like)


def negative_islands(copy: Copy) -> None:
    """The brightest voxels overflow into negative numbers."""

    def change(voxels: Voxels) -> Voxels:
        values = voxels.astype(np.int32)
        highest = float(np.percentile(values, 95))
        return np.asfortranarray(np.where(values > highest, values - int(2 * highest), values).astype(np.int32))

    _edit_voxels(copy.a_file(), change)


def saturated_image(copy: Copy) -> None:
    """All above the 90th percentile is cut off, as an export with a display's window does."""
    _edit_voxels(copy.a_file(), lambda voxels: np.minimum(voxels, int(np.percentile(voxels, 90))).astype(voxels.dtype))


def hardly_a_head(copy: Copy) -> None:
    """Nothing but a piece of the middle is left."""

    def change(voxels: Voxels) -> Voxels:
        kept = np.zeros_like(voxels)
        middle = tuple(slice(round(0.42 * n), round(0.58 * n)) for n in voxels.shape)
        kept[middle] = voxels[middle]
        return kept

    _edit_voxels(copy.a_file(), change)


# The sequences


def swapped_t1_t1ce(copy: Copy) -> None:
    """The files of T1 and T1ce of one exam have changed places; their names say nothing."""
    rows = copy.rows()
    row = rows[copy.a_row()]
    for old, new in (("t1", "one.nii.gz"), ("t1ce", "two.nii.gz")):
        path = copy.folder / row[old]
        path.with_suffix("").with_suffix(".json").unlink(missing_ok=True)
        path.rename(path.with_name(new))
        row[old] = (path.parent / new).relative_to(copy.folder).as_posix()
    row["t1"], row["t1ce"] = row["t1ce"], row["t1"]
    copy.write_rows(rows)


def t1_copied_to_t1ce(copy: Copy) -> None:
    """T1 stands in for T1ce."""
    row = copy.rows()[copy.a_row()]
    shutil.copyfile(copy.folder / row["t1"], copy.folder / row["t1ce"])


def t2_is_t1_like(copy: Copy) -> None:
    """T2 is another take of T1: its voxels are T1's, with other noise."""
    rows = copy.rows()
    row = next(row for row in rows if row["t2"] and row["t1"])
    source, target = copy.folder / row["t1"], copy.folder / row["t2"]
    shutil.copyfile(source, target)

    def change(voxels: Voxels) -> Voxels:
        sd = 0.02 * float(voxels.max())
        return np.asfortranarray(np.abs(voxels + copy.generator.normal(0, sd, voxels.shape)).astype(voxels.dtype))

    _edit_voxels(target, change)


def t2_is_flair(copy: Copy) -> None:
    """The fluid of a T2 is nulled: what is brightest in it is dark, as in a FLAIR."""
    rows = copy.rows()
    row = next(row for row in rows if row["t2"] and row["t1"])

    def change(voxels: Voxels) -> Voxels:
        fluid = float(np.percentile(voxels, 90))
        return np.asfortranarray(np.where(voxels > fluid, fluid * 0.1, voxels).astype(voxels.dtype))

    _edit_voxels(copy.folder / row["t2"], change)


def misnamed_sequence(copy: Copy) -> None:
    """The T2 column names a file called T2_FLAIR."""
    rows = copy.rows()
    row = next(row for row in rows if row["t2"])
    path = copy.folder / row["t2"]
    path.rename(path.with_name("T2_FLAIR.nii.gz"))
    row["t2"] = (path.parent / "T2_FLAIR.nii.gz").relative_to(copy.folder).as_posix()
    copy.write_rows(rows)


def forgotten_file(copy: Copy) -> None:
    """The table lacks a T1 that lies beside the exam's other volumes."""
    rows = copy.rows()
    rows[copy.a_row()]["t1"] = ""
    copy.write_rows(rows)


# The place in the world


def affine_zero(copy: Copy) -> None:
    """Codes of sform and qform are 0."""

    def change(header: Header) -> None:
        header["sform_code"] = header["qform_code"] = 0

    _edit_header(copy.a_file(), change)


def affine_singular(copy: Copy) -> None:
    """Two axes run the same way."""

    def change(affine: Array) -> Array:
        affine[:3, 1] = affine[:3, 0]
        return affine

    _edit_affine(copy.a_file(), change)


def affine_sheared(copy: Copy) -> None:
    """Slices are shifted against each other."""

    def change(affine: Array) -> Array:
        affine[:3, 2] += 0.2 * affine[:3, 1] * np.linalg.norm(affine[:3, 2]) / np.linalg.norm(affine[:3, 1])
        return affine

    _edit_affine(copy.a_file(), change)


def affine_flipped(copy: Copy) -> None:
    """The first axis of one sequence runs the other way, while its voxels lie as before."""

    def change(affine: Array) -> Array:
        affine[:3] *= np.array([-1.0, 1.0, 1.0, 1.0])
        return affine

    _edit_affine(copy.a_file(), change)


def transforms_disagree(copy: Copy) -> None:
    """The sform is 5 mm away from the qform."""

    def change(header: Header) -> None:
        header["srow_x"][3] += 5.0

    _edit_header(copy.a_file(), change)


def far_away(copy: Copy) -> None:
    """One sequence lies 400 mm from the others."""

    def change(affine: Array) -> Array:
        affine[2, 3] += 400.0
        return affine

    _edit_affine(copy.a_file(), change)


def shifted_grid(copy: Copy) -> None:
    """One sequence lies 3 mm from the others."""

    def change(affine: Array) -> Array:
        affine[2, 3] += 3.0
        return affine

    _edit_affine(copy.a_file(), change)


def _scaled(copy: Copy, factor: float) -> None:
    def change(affine: Array) -> Array:
        affine[:3] *= factor
        return affine

    _edit_affine(copy.a_file(), change)


def units_in_metres(copy: Copy) -> None:
    """Lengths are in metres, and the header says so."""

    def change(header: Header) -> None:
        header["xyzt_units"] = 1
        affine = np.array(header.get_sform())
        affine[:3] /= 1000
        _set_affine(header, affine)

    _edit_header(copy.a_file(), change)


def metres_unsaid(copy: Copy) -> None:
    """Lengths are in metres, and the header says millimetres."""
    _scaled(copy, 0.001)


def spacing_zero(copy: Copy) -> None:
    """Voxels are 0 mm thick."""

    def change(header: Header) -> None:
        header["pixdim"][3] = 0
        affine = np.array(header.get_sform())
        affine[:3, 2] = 0
        _set_affine(header, affine)

    _edit_header(copy.a_file(), change)


def spacing_50_mm(copy: Copy) -> None:
    """Slices are 50 mm apart."""

    def change(header: Header) -> None:
        header["pixdim"][3] = 50
        affine = np.array(header.get_sform())
        affine[:3, 2] *= 50 / np.linalg.norm(affine[:3, 2])
        _set_affine(header, affine)

    _edit_header(copy.a_file(), change)


def lesion_in_lps(copy: Copy) -> None:
    """A lesion's point is far outside the head."""
    rows = copy.rows()
    rows[copy.a_row()]["lesion_x"] = "900.0"
    copy.write_rows(rows)


# The kind of volume


def four_dimensional(copy: Copy) -> None:
    """Two volumes in one file."""
    _edit_voxels(copy.a_file(), lambda voxels: np.asfortranarray(np.stack([voxels, voxels], axis=-1)))


def trailing_one(copy: Copy) -> None:
    """A fourth axis of length 1."""
    _edit_voxels(copy.a_file(), lambda voxels: voxels[..., None])


def colours(copy: Copy) -> None:
    """Voxels are red, green and blue."""

    def change(header: Header, voxels: Voxels) -> Voxels:
        header.set_data_dtype(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        coloured = np.zeros(voxels.shape, header.get_data_dtype(), order="F")
        coloured["R"] = (voxels / max(float(voxels.max()), 1.0) * 255).astype(np.uint8)
        return coloured

    _edit(copy.a_file(), change)


def few_slices(copy: Copy) -> None:
    """A localizer of 9 slices."""
    _edit_voxels(copy.a_file(), lambda voxels: np.asfortranarray(voxels[:, :, voxels.shape[2] // 2 - 4 :][:, :, :9]))


# The file


def gz_truncated(copy: Copy) -> None:
    """The last 8 bytes, checksum and length, are missing."""
    path = copy.a_file()
    write_whole(path, path.read_bytes()[:-8])


def gz_cut_in_half(copy: Copy) -> None:
    """The second half is missing, as after a broken copy."""
    path = copy.a_file()
    write_whole(path, path.read_bytes()[: path.stat().st_size // 2])


def gz_bit_flipped(copy: Copy) -> None:
    """One bit in the middle of the compressed data is the other one."""
    path = copy.a_file()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << int(copy.generator.integers(8))
    write_whole(path, bytes(content))


def gz_bad_crc(copy: Copy) -> None:
    """The checksum at the end is wrong."""
    path = copy.a_file()
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    write_whole(path, bytes(content))


def file_of_no_bytes(copy: Copy) -> None:
    """A file has 0 bytes."""
    write_whole(copy.a_file(), b"")


def voxels_cut_off(copy: Copy) -> None:
    """A sound gzip wrapper around a NIfTI file that ends early."""
    path = copy.a_file()
    plain = _plain(path)
    _pack(path, plain[: len(plain) - 1000])


def file_gone(copy: Copy) -> None:
    """A file that the table names is not there."""
    copy.a_file().unlink()


# Personal data


def name_in_path(copy: Copy) -> None:
    """An exam lies in a folder with a person's name."""
    rows = copy.rows()
    row = rows[copy.a_row()]
    for sequence in SEQUENCES:
        if row[sequence]:
            new = Path(_NAME, Path(row[sequence]).name)
            (copy.folder / _NAME).mkdir(exist_ok=True)
            (copy.folder / row[sequence]).rename(copy.folder / new)
            row[sequence] = new.as_posix()
    copy.write_rows(rows)


def _text(field: str, text: bytes) -> Callable[[Copy], None]:
    def inject(copy: Copy) -> None:
        def change(header: Header) -> None:
            header[field] = text

        _edit_header(copy.a_file(), change)

    inject.__doc__ = f"The header's {field} holds text that a converter wrote."
    return inject


def header_extension(copy: Copy) -> None:
    """A header extension of code 2 holds a DICOM header."""
    path = copy.a_file()
    plain = _plain(path)
    header = nibabel.Nifti1Header(bytes(plain[:_START]))
    begin = int(header["vox_offset"])
    content = b"DICM" + _NAME.encode()
    content += bytes(-(len(content) + 8) % 16)
    extension = np.array([len(content) + 8, 2], dtype="<i4").tobytes() + content
    header["vox_offset"] = begin + len(extension)
    _pack(path, header.structarr.tobytes() + b"\x01\0\0\0" + extension + bytes(plain[begin:]))


def gzip_name(copy: Copy) -> None:
    """The gzip wrapper holds the name that the file had when it was compressed."""
    path = copy.a_file()
    plain = _plain(path)
    packed = io.BytesIO()
    with gzip.GzipFile(filename=f"{_NAME}.nii", mode="wb", compresslevel=1, fileobj=packed, mtime=0) as file:
        file.write(plain)
    write_whole(path, packed.getvalue())


def personal_sidecar(copy: Copy) -> None:
    """The JSON file beside a volume holds a name and a date of birth."""
    path = copy.a_file()
    beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
    write_whole(beside, json.dumps({"PatientName": _NAME, "PatientBirthDate": "1964-08-12"}).encode())


def dicom_in_tree(copy: Copy) -> None:
    """A DICOM file without an ending was left beside an image."""
    write_whole(copy.a_file().with_name("IM0001"), bytes(128) + b"DICM" + bytes(64))


# The table


def labels_swapped(copy: Copy) -> None:
    """The table calls necrosis recurrence and the reverse; participants.tsv does not."""
    rows = copy.rows()
    for row in rows:
        row["label"] = {"necrosis": "recurrence", "recurrence": "necrosis"}[row["label"]]
    copy.write_rows(rows)


def labels_swapped_everywhere(copy: Copy) -> None:
    """As `labels_swapped`, and no other file says better."""
    labels_swapped(copy)
    (copy.folder / "participants.tsv").unlink()


def duplicate_image(copy: Copy) -> None:
    """A volume of one patient was copied to another one, compressed anew with another header."""
    rows = copy.rows()
    first, second = [row for row in rows if row["t1"]][:2]
    _pack(copy.folder / second["t1"], _plain(copy.folder / first["t1"]))
    _edit_header(copy.folder / second["t1"], lambda header: header.set_xyzt_units("mm", None))


def patient_in_two_splits(copy: Copy) -> None:
    """A patient's second exam is in the test."""
    rows = copy.rows()
    for row in rows:
        row["split"], row["exam_id"] = "train", "1"
    first, second = [row for row in rows if row["t1"]][:2]
    second["patient_id"], second["label"] = first["patient_id"], first["label"]
    second["split"], second["exam_id"] = "test", "2"
    copy.write_rows(rows)


def leading_zeros_lost(copy: Copy) -> None:
    """A spreadsheet made numbers of the identifiers, while the files keep the zeros."""
    rows = copy.rows()
    for number, row in enumerate(rows, start=1):
        folder = copy.folder / f"{number:03d}"
        folder.mkdir()
        for sequence in SEQUENCES:
            if row[sequence]:
                new = f"{number:03d}/{number:03d}_{sequence}.nii.gz"
                (copy.folder / row[sequence]).rename(copy.folder / new)
                row[sequence] = new
        row["patient_id"] = str(number)
    copy.write_rows(rows)


def letter_case(copy: Copy) -> None:
    """A second exam of a patient is written in capitals."""
    rows = copy.rows()
    first, second = rows[0], rows[1]
    second["patient_id"], second["label"] = first["patient_id"].swapcase(), first["label"]
    copy.write_rows(rows)


def exam_twice(copy: Copy) -> None:
    """An exam stands in two rows."""
    rows = copy.rows()
    copy.write_rows([*rows, dict(rows[0])])


def special_characters(copy: Copy) -> None:
    """An identifier holds a space and a slash."""
    rows = copy.rows()
    rows[copy.a_row()]["patient_id"] = "7 / 2"
    copy.write_rows(rows)


def mixed_pathology(copy: Copy) -> None:
    """A label says mixed."""
    rows = copy.rows()
    rows[copy.a_row()]["label"] = "mixed"
    copy.write_rows(rows)


def no_reference_standard(copy: Copy) -> None:
    """A label is empty."""
    rows = copy.rows()
    rows[copy.a_row()]["label"] = "n/a"
    copy.write_rows(rows)


def one_class_only(copy: Copy) -> None:
    """Only recurrences are listed."""
    copy.write_rows([row for row in copy.rows() if row["label"] == "recurrence"])


def link_out_of_tree(copy: Copy) -> None:
    """A volume is a symbolic link to a file outside of the hospital's folder."""
    path = copy.a_file()
    outside = copy.folder.with_name(f"{copy.folder.name}-outside")
    outside.mkdir(exist_ok=True)
    target = outside / path.name
    path.rename(target)
    path.symlink_to(target)


@dataclass(frozen=True)
class Fault:
    """A fault and what has to be said of it.

    Attributes:
        inject: Puts it into a copy.
        check: Id of the preflight's check that has to find it.
        least_patients: With fewer it cannot be told from chance.
        needs_t2: Whether the hospital needs exams with a T2.
    """

    inject: Callable[[Copy], None]
    check: str
    least_patients: int = 2
    needs_t2: bool = False


FAULTS: Mapping[str, Fault] = {
    "NaN block": Fault(nan_block, "voxels-not-finite"),
    "T1 and T1ce swapped": Fault(swapped_t1_t1ce, "no-contrast"),
    "labels swapped in the table": Fault(labels_swapped, "label-differs"),
    "labels swapped everywhere": Fault(labels_swapped_everywhere, "prevalence-far", least_patients=45),
    "affine zero": Fault(affine_zero, "place-unknown"),
    "affine singular": Fault(affine_singular, "affine-singular"),
    "affine sheared": Fault(affine_sheared, "affine-sheared"),
    "affine flipped": Fault(affine_flipped, "orientation-differs"),
    "qform and sform disagree": Fault(transforms_disagree, "transforms-disagree"),
    "4D": Fault(four_dimensional, "not-3d"),
    "RGB": Fault(colours, "not-grey"),
    "gz truncated": Fault(gz_truncated, "gzip-damaged"),
    "gz cut in half": Fault(gz_cut_in_half, "gzip-damaged"),
    "gz bit flipped": Fault(gz_bit_flipped, "gzip-damaged"),
    "gz with a bad CRC": Fault(gz_bad_crc, "gzip-damaged"),
    "name in path": Fault(name_in_path, "name-in-path"),
    "descrip": Fault(_text("descrip", b"TE=2.5;Time=101502.000;phase=1"), "header-text"),
    "aux_file": Fault(_text("aux_file", _NAME.encode()), "header-text"),
    "db_name": Fault(_text("db_name", _NAME.encode()), "header-text"),
    "intent_name": Fault(_text("intent_name", _NAME[:15].encode()), "header-text"),
    "header extension": Fault(header_extension, "header-extension"),
    "gzip FNAME": Fault(gzip_name, "gzip-name"),
    "duplicate image": Fault(duplicate_image, "same-voxels"),
    "patient in two splits": Fault(patient_in_two_splits, "split-leak"),
    "leading zeros lost": Fault(leading_zeros_lost, "id-leading-zeros"),
    "0-byte file": Fault(file_of_no_bytes, "file-empty"),
    "link out of the tree": Fault(link_out_of_tree, "link-outside"),
    "units in metres": Fault(units_in_metres, "units-not-mm"),
    "metres called millimetres": Fault(metres_unsaid, "spacing-impossible"),
    "spacing 0": Fault(spacing_zero, "affine-singular"),
    "spacing 50 mm": Fault(spacing_50_mm, "spacing-impossible"),
    "negative islands": Fault(negative_islands, "negative-islands"),
    "constant image": Fault(constant_image, "voxels-constant"),
    # beyond the list of the phantom's specification
    "saturated": Fault(saturated_image, "saturated"),
    "hardly a head": Fault(hardly_a_head, "no-head"),
    "T1 copied to T1ce": Fault(t1_copied_to_t1ce, "t1-is-t1ce"),
    "T2 is a T1": Fault(t2_is_t1_like, "t2-like-t1", needs_t2=True),
    "T2 is a FLAIR": Fault(t2_is_flair, "csf-dark-in-t2", needs_t2=True),
    "misnamed sequence": Fault(misnamed_sequence, "sequence-misnamed", needs_t2=True),
    "forgotten file": Fault(forgotten_file, "file-forgotten"),
    "far away": Fault(far_away, "little-overlap"),
    "shifted grid": Fault(shifted_grid, "grid-differs"),
    "lesion outside": Fault(lesion_in_lps, "lesion-outside"),
    "trailing 1": Fault(trailing_one, "trailing-one"),
    "few slices": Fault(few_slices, "few-slices"),
    "voxels cut off": Fault(voxels_cut_off, "file-unreadable"),
    "file gone": Fault(file_gone, "file-absent"),
    "personal sidecar": Fault(personal_sidecar, "sidecar-personal"),
    "DICOM in the tree": Fault(dicom_in_tree, "dicom-in-tree"),
    "letter case": Fault(letter_case, "id-letter-case"),
    "exam twice": Fault(exam_twice, "id-duplicate"),
    "special characters": Fault(special_characters, "id-characters"),
    "mixed pathology": Fault(mixed_pathology, "label-unknown"),
    "no reference standard": Fault(no_reference_standard, "label-unknown"),
    "one class only": Fault(one_class_only, "class-missing"),
}
"""By name: the phantom's specified faults first."""


def inject(name: str, hospital: Path, folder: Path, *, seed: int = 0) -> Fault:
    """Copy a written hospital and put one fault into the copy; the same bytes at every call.

    Args:
        name: One of FAULTS.
        hospital: Folder of a written phantom hospital; it is only read.
        folder: Of the copy; must not exist.
        seed: Decides which exam is spoilt.

    Returns:
        The fault, which names the check that has to find it.

    Raises:
        ConfigError: There is no such fault, or no hospital.
    """
    if name not in FAULTS:
        raise ConfigError(f"fault {name!r} is not known; expected one of {', '.join(FAULTS)}")
    if not (hospital / "table.tsv").is_file():
        raise ConfigError(f"{hospital}: holds no table.tsv, expected the folder of a written phantom hospital")
    shutil.copytree(hospital, folder, ignore=shutil.ignore_patterns("cache"))
    fault = FAULTS[name]
    fault.inject(Copy(folder, np.random.default_rng([seed, *name.encode()])))
    return fault
