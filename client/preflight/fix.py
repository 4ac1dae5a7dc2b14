"""The safe remedies, written to a new folder: fresh headers, plain axes, files named after identifiers."""

import csv
import io
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from client.config import SiteConfig
from client.preflight.examine import FileFacts
from client.preflight.findings import Finding
from client.preflight.image import ImageFile, UnreadableError
from client.preflight.listing import ROLES, Row
from client.preflight.registry import CHECKS, FIXABLE
from client.preflight.run import Preflight
from client.private_files import make_private_folder, write_atomically
from common.errors import ConfigError, DataError

TABLE, SITE, RECORD = "table.tsv", "site.yaml", "fixes.json"

_SCANNER_COORDINATES = 1
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._+-]{1,64}")
_COLUMNS = ("patient_id", "exam_id", "label", "split", *ROLES, "lesion_x", "lesion_y", "lesion_z")


@dataclass(frozen=True)
class FixedFile:
    """A volume that was written anew.

    Attributes:
        source: The file it was made of.
        written: Its path in the new folder.
        sha256: Of the source, so that the record names the very bytes.
        done: What was done to it, in words.
    """

    source: str
    written: str
    sha256: str
    done: tuple[str, ...]


@dataclass(frozen=True)
class Fixed:
    """What was written.

    Attributes:
        site_config: The new site.yaml.
        files: One a volume.
        renamed: New identifier by patient, where the old one held a name. Stays at the site.
        left: Exams that were left out, each with the ids of the checks that no safe remedy mends.
    """

    site_config: Path
    files: tuple[FixedFile, ...]
    renamed: Mapping[str, str]
    left: Mapping[str, tuple[str, ...]]


def fix_site(preflight: Preflight, config: SiteConfig, site_file: Path, out: Path) -> Fixed:
    """Write a copy of the site's exams with the safe remedies done. The originals are not touched.

    Args:
        preflight: What was found.
        config: The site's configuration.
        site_file: Where it lies.
        out: A folder that does not exist, or is empty.

    Raises:
        ConfigError: The folder holds something, or lies in the folder of the table.
        DataError: No exam can be carried over, or a file changed since it was checked.
    """
    require_new(out, preflight.listing.folder)
    left = _left(preflight.findings, preflight.listing.rows)
    kept = [row for row in preflight.listing.rows if row.name not in left]
    if not kept:
        raise DataError(f"{site_file}: every exam has a fault that no safe remedy mends; see the preflight's findings")
    renamed = _renamed(preflight.findings, kept)
    facts = {exam.number: exam.files for exam in preflight.examined}
    make_private_folder(out)
    names = _file_names(kept, renamed)
    files = []
    cells = []
    for row in kept:
        written = {}
        for role in row.files:
            target = out / names[row.number] / f"{role}.nii.gz"
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.append(_rewrite(row, facts[row.number][role], target, out))
            written[role] = target.relative_to(out).as_posix()
        cells.append(_cells(row, written, renamed))
    columns = [name for name in _COLUMNS if name != "split" or any(row.split is not None for row in kept)]
    write_atomically(out / TABLE, _table(cells, columns).encode())
    write_atomically(out / SITE, _site_yaml(config, site_file).encode())
    fixed = Fixed(out / SITE, tuple(files), renamed, left)
    record = {**asdict(fixed), "site_config": SITE}
    write_atomically(out / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return fixed


def require_new(out: Path, folder: Path | None) -> None:
    """Refuse a folder that holds something, and one inside the folder that is checked.

    Raises:
        ConfigError: It is such a folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there already, expected a new or empty folder; name another one")
    if folder is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise ConfigError(
            f"--out {out}: lies in the folder of the table, whose files are checked together; name one outside of it"
        )


def _left(findings: Sequence[Finding], rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Exams with a blocking fault that is not mended here, with all such faults."""
    left: dict[str, list[str]] = {}
    names = {row.name for row in rows}
    for finding in findings:
        if finding.severity == "block" and finding.check not in FIXABLE:
            for case in finding.cases:
                if case in names:
                    left.setdefault(case, []).append(finding.check)
    return {case: tuple(checks) for case, checks in left.items()}


def _renamed(findings: Sequence[Finding], rows: Sequence[Row]) -> dict[str, str]:
    """A new identifier for every patient whose own one is suspect or cannot name a file."""
    suspect = {case for finding in findings if finding.check == "name-in-path" for case in finding.cases}
    taken = {row.patient_id for row in rows}
    renamed: dict[str, str] = {}
    number = 0
    for row in rows:
        harmless = re.fullmatch(r"(sub-)?[A-Za-z]?\d{1,7}", row.patient_id)
        if (row.name not in suspect or harmless) and _PLAIN_NAME.fullmatch(row.patient_id):
            continue
        if row.patient_id not in renamed:
            number += 1
            while f"case-{number:04d}" in taken:
                number += 1
            renamed[row.patient_id] = f"case-{number:04d}"
    return renamed


def _file_names(rows: Sequence[Row], renamed: Mapping[str, str]) -> dict[int, str]:
    """A folder for every exam, named after the patient and numbered by exam."""
    counts: dict[str, int] = {}
    names = {}
    for row in rows:
        patient = renamed.get(row.patient_id, row.patient_id)
        counts[patient] = counts.get(patient, 0) + 1
        names[row.number] = f"exams/id-{patient}/{counts[patient]}"
    return names


def _rewrite(row: Row, known: FileFacts, target: Path, out: Path) -> FixedFile:
    image = ImageFile.at(known.path)
    try:
        changed = image.sha256 != known.sha256
        content, done = fixed_bytes(image)
    except UnreadableError as fault:
        raise DataError(f"{row.name}: {fault.detail} since it was checked; check again") from None
    if changed:
        raise DataError(f"{row.name}: a file changed while it was worked on; check again")
    write_atomically(target, content)
    return FixedFile(str(known.path), target.relative_to(out).as_posix(), known.sha256, done)


def fixed_bytes(image: ImageFile) -> tuple[bytes, tuple[str, ...]]:
    """A volume with a fresh header, axes towards right, front and up, and a gzip wrapper without text.

    Every stored number, slope, intercept and place in the world stays what it was.

    Returns:
        The file's bytes, the same at every call, and what was done.
    """
    done = ["fresh header", "gzip without a name"]
    voxels, affine = image.voxels, image.affine
    if len(image.shape) > 3:
        done.append(f"shape {image.shape} made {voxels.shape}")
    turn = nibabel.io_orientation(affine)
    if not np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        done.append(f"axes {''.join(nibabel.aff2axcodes(affine))} made RAS")
        affine = affine @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape)
        voxels = nibabel.apply_orientation(voxels, turn)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(voxels.dtype.newbyteorder("<"))
    header.set_data_shape(voxels.shape)
    header.set_xyzt_units("mm", "sec")
    header.set_qform(affine, code=_SCANNER_COORDINATES)
    header.set_sform(affine, code=_SCANNER_COORDINATES)
    header.set_slope_inter(*image.scaling)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    packer = zlib.compressobj(level=6, wbits=31)
    plain = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    content = packer.compress(header.binaryblock + bytes(4)) + packer.compress(plain) + packer.flush()
    return content, tuple(done)


def _cells(row: Row, written: Mapping[str, str], renamed: Mapping[str, str]) -> dict[str, str]:
    x, y, z = ("", "", "") if row.point is None else (f"{mm:g}" for mm in row.point)
    return {
        "patient_id": renamed.get(row.patient_id, row.patient_id),
        "exam_id": row.exam_id,
        "label": row.label,
        "split": row.split or "",
        "lesion_x": x,
        "lesion_y": y,
        "lesion_z": z,
        **written,
    }


def _table(cells: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


def _site_yaml(config: SiteConfig, site_file: Path) -> str:
    """The site's own settings with the new table; other paths absolute, so that the new file works where it lies."""
    values: dict[str, Any] = yaml.safe_load(site_file.read_text(encoding="utf-8-sig"))
    values["data"] = {"table": TABLE}
    values.pop("eligibility", None)  # what it keeps out is not in the new table, and neither are its columns
    values["cache"] = str(config.cache)
    for name in ("ca_certificate", "private_key"):
        path = None if config.server is None else getattr(config.server, name)
        if path is not None:
            values["server"][name] = str(path)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def remedies_shown(fixed: Fixed) -> list[str]:
    """What was done and what was left, for a person at the site."""
    lines = [f"{len(fixed.files)} volumes written anew"]
    if fixed.renamed:
        lines.append(f"{len(fixed.renamed)} patients got a new identifier; fixes.json, which stays here, says which")
    for case, checks in fixed.left.items():
        lines.append(f"left out: {case}: {'; '.join(f'{check}: {CHECKS[check].remedy}' for check in checks)}")
    return lines
