"""All patients in one place: a site whose table is the union of the sites' tables, with the splits that they have.

Only on one machine, where the images are: the pooled arm is what a federation is measured against.
"""

import csv
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from client.cohort import load_cohort
from client.config import SiteConfig
from client.exam import SEQUENCES
from client.private_files import make_private_folder, write_atomically
from common.errors import ConfigError
from common.study import Study

POOLED = "pooled"
SEPARATOR = "--"
"""Between a site's name and its patient's identifier."""

_COLUMNS = ("patient_id", "exam_id", "label", "split", *SEQUENCES, "lesion_x", "lesion_y", "lesion_z", "lesion_mask")
_WORDS = ("recurrence", "necrosis")


def write_pooled_site(folder: Path, sites: Mapping[str, SiteConfig], study: Study) -> Path:
    """Write the pooled site of a study, or find it there; returns its site.yaml.

    Args:
        folder: Gets the table and the site.yaml; the cache lies beside it, shared by the pooled sites of all seeds.
        sites: By name.
        study: Says, by its seed, how the sites split their patients.

    Raises:
        ConfigError: If another table is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    table = csv.writer(lines, delimiter="\t", lineterminator="\n")
    table.writerow(_COLUMNS)
    for name, config in sorted(sites.items()):
        cohort = load_cohort(config, study)
        for exam in cohort.exams:
            point = exam.lesion_point or ("", "", "")
            mask = "" if exam.lesion_mask is None else str(exam.lesion_mask.resolve())
            files = [str(exam.volumes[seq].resolve()) if seq in exam.volumes else "" for seq in SEQUENCES]
            patient, split = pooled_id(name, exam.patient_id), cohort.split_of[exam.patient_id]
            table.writerow([patient, exam.exam_id, _WORDS[exam.label], split, *files, *point, mask])
    _write_same(folder / "table.tsv", lines.getvalue())
    first = next(iter(sites.values()))
    values = {
        "name": POOLED,
        "data": {"table": "table.tsv"},
        "label_map": {"recurrence": 0, "necrosis": 1},
        "cache": str((folder.parent / "cache").resolve()),
        "device": first.device,
        "torch_threads": first.torch_threads,
        "disclosure": strictest(sites),
    }
    _write_same(folder / "site.yaml", yaml.safe_dump(values, sort_keys=False))
    return folder / "site.yaml"


def strictest(sites: Mapping[str, SiteConfig]) -> dict[str, int]:
    """What the pooled site lets leave: no more than the strictest of the sites, so that its figures rest on like rules.

    The fewest training patients are not among it: they are those of the whole pool.
    """
    rules = [config.disclosure for config in sites.values()]
    return {
        "min_patients": 1,
        "min_cell": max(rule.min_cell for rule in rules),
        "max_bins": min(rule.max_bins for rule in rules),
    }


def share_cache(folder: Path, sites: Mapping[str, SiteConfig]) -> None:
    """Let the pooled sites find the exams that the sites have prepared.

    An entry's name is a digest of the files and the settings it was made from, so it is the same wherever it lies.

    Args:
        folder: The pooled sites' cache.
        sites: Whose exams are prepared.
    """
    make_private_folder(folder / "exams")
    for config in sites.values():
        for entry in (config.cache / "exams").glob("*.exam"):
            place = folder / "exams" / entry.name
            if place.exists():
                continue
            try:
                os.link(entry, place)
            except OSError:  # on another disk
                shutil.copyfile(entry, place.with_suffix(".part"))
                place.with_suffix(".part").replace(place)


def pooled_id(site: str, patient_id: str) -> str:
    """A patient's identifier at the pooled site."""
    return f"{site}{SEPARATOR}{patient_id}"


def _write_same(path: Path, text: str) -> None:
    if not path.exists():
        write_atomically(path, text.encode())
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path}: was made of other patients or another study; give the same options as at first, or another --out"
        )
