"""The phantom hospitals of the table, and each site's own table: the published split, and patients with all sequences.

Nothing is copied: the tables name the phantoms' files, and the prepared exams lie beside the phantoms, so that cells,
seeds and whole tables share them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from client.config import SiteConfig, read_site_config
from client.table import SEQUENCES, SPLITS, Exam, Split, read_table
from common.errors import ConfigError
from server.run_folder import write_atomically
from simulations.paper.cells import HOSPITALS_OF_ARM, Arm
from simulations.paper.published import (
    NUM_NECROSIS,
    NUM_PATIENTS,
    NUM_RECURRENCE,
    TEST_NECROSIS,
    TEST_RECURRENCE,
)
from simulations.phantom.spec import HOSPITALS

LEAST_PATIENTS = 20
"""Below this, a class of the one hospital would have nobody in one of the three parts."""

LEAST_PATIENTS_OF_FIVE = 16
"""At each of the five: enough for 4 training patients, below which a phantom site takes no part."""

_WORDS = ("recurrence", "necrosis")


def patients_by_hospital(arms: Sequence[Arm], num_patients: int | None) -> dict[str, int]:
    """Patients of each hospital: the paper's 234 and the phantoms' own numbers, or all in proportion to the first.

    Raises:
        ConfigError: If they are too few.
    """
    asked = NUM_PATIENTS if num_patients is None else num_patients
    if asked < LEAST_PATIENTS:
        raise ConfigError(
            f"--patients {asked}: expected {LEAST_PATIENTS} or more, so that both classes train, validate and are "
            f"tested; the paper has {NUM_PATIENTS}"
        )
    counts: dict[str, int] = {}
    if "one" in arms:
        counts["P"] = asked
    if "five" in arms:
        for letter in HOSPITALS_OF_ARM["five"]:
            own = HOSPITALS[letter].num_patients
            counts[letter] = max(LEAST_PATIENTS_OF_FIVE, int(own * asked / NUM_PATIENTS + 0.5))
    return counts


def published_parts(num_patients: int, label: int, validation_share: float) -> tuple[int, int, int]:
    """How many of a class train, validate and test: the published share of the class is tested, 9 of 42 and 49 of 192.

    At least one patient is in every part.
    """
    tested, all_of_class = ((TEST_RECURRENCE, NUM_RECURRENCE), (TEST_NECROSIS, NUM_NECROSIS))[label]
    test = max(1, int(num_patients * tested / all_of_class + 0.5))
    validation = max(1, int(num_patients * validation_share + 0.5))
    assert num_patients > test + validation, "patients_by_hospital asks for more"
    return num_patients - test - validation, validation, test


def split_as_published(exams: Sequence[Exam], *, validation_share: float, seed: int) -> dict[str, Split]:
    """Where each patient belongs, drawn anew by every seed; the sizes are those of `published_parts`."""
    rng = np.random.default_rng(
        int.from_bytes(hashlib.sha256(json.dumps(["paper split", seed]).encode()).digest(), "big")
    )
    split_of: dict[str, Split] = {}
    for label in (0, 1):
        patients = sorted({exam.patient_id for exam in exams if exam.label == label})
        shuffled = [patients[i] for i in rng.permutation(len(patients))]
        for split, size in zip(SPLITS, published_parts(len(patients), label, validation_share), strict=True):
            split_of.update(dict.fromkeys(shuffled[:size], split))
            shuffled = shuffled[size:]
    return split_of


def write_sites(
    folder: Path, phantoms: Mapping[str, Path], arm: Arm, *, validation_share: float, seed: int
) -> list[Path]:
    """Write the table and the site.yaml of every site of an arm, or find them there; returns the site.yaml.

    Args:
        folder: Gets a folder a site.
        phantoms: The site.yaml of each phantom hospital, by letter.
        arm: Whose sites.
        validation_share: Of the one hospital's patients; five hospitals draw their split as the study says.
        seed: Of the one hospital's split.

    Raises:
        ConfigError: If the folder has sites of other patients.
    """
    paths = []
    for letter in HOSPITALS_OF_ARM[arm]:
        config = read_site_config(phantoms[letter])
        table = read_table(phantoms[letter].with_name("table.tsv"), config.label_map)
        exams = [exam for exam in table if set(exam.volumes) == set(SEQUENCES)]
        split_of = split_as_published(exams, validation_share=validation_share, seed=seed) if arm == "one" else None
        home = folder / config.name
        home.mkdir(parents=True, exist_ok=True)
        _write_same(home / "table.tsv", _table(exams, split_of))
        _write_same(home / "site.yaml", _site_yaml(config))
        paths.append(home / "site.yaml")
    return paths


def _table(exams: Sequence[Exam], split_of: Mapping[str, Split] | None) -> str:
    header = ["patient_id", "label", *([] if split_of is None else ["split"]), *SEQUENCES]
    lines = [[*header, "lesion_x", "lesion_y", "lesion_z"]]
    for exam in exams:
        assert exam.lesion_point is not None, "phantoms have a point each"
        split = [] if split_of is None else [split_of[exam.patient_id]]
        files = [str(exam.volumes[sequence].resolve()) for sequence in SEQUENCES]
        lines.append([exam.patient_id, _WORDS[exam.label], *split, *files, *(f"{x:.1f}" for x in exam.lesion_point)])
    return "".join("\t".join(line) + "\n" for line in lines)


def _site_yaml(config: SiteConfig) -> str:
    """The phantom's own configuration beside another table."""
    values = {
        "name": config.name,
        "data": {"table": "table.tsv"},
        "label_map": dict(config.label_map),
        "cache": str(config.cache.resolve()),
        "device": config.device,
        "torch_threads": 1,
        "disclosure": config.disclosure.model_dump(mode="json"),
    }
    return yaml.safe_dump(values, sort_keys=False)


def _write_same(path: Path, text: str) -> None:
    """Write a file, or check that it is there as it would be written."""
    if not path.exists():
        write_atomically(path, text.encode())
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path}: is not the table of these phantoms; somebody changed it, or another version of this program "
            "made it: give another --out"
        )
