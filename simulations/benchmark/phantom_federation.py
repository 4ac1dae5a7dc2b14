"""A small federation of phantom hospitals for benchmarks, prepared before anything is timed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from client.config import SiteConfig
from common.study import Study, parse_study
from server.run_folder import RunFolder
from simulations.phantom.federation import write_hospitals
from simulations.phantom.spec import PhantomOptions
from simulations.single_machine import EngineName, carry, open_run, prepare_sites, read_sites
from simulations.studies import study_yaml

Sites = Mapping[str, tuple[Path, SiteConfig]]


def phantom_federation(
    folder: Path, letters: Sequence[str], *, patients: int, spacing_mm: float, threads: int, seed: int = 1
) -> Sites:
    """Write hospitals that compute with so many threads each; by name."""
    options = PhantomOptions(separation=1.5, seed=seed, spacing_mm=spacing_mm)
    paths = write_hospitals(folder, letters, options, num_patients=dict.fromkeys(letters, patients))
    for path in paths:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump(values | {"torch_threads": threads, "device": "cpu"}), encoding="utf-8")
    return read_sites(paths)


def small_study(*, rounds: int, seed: int, size: int, spacing_mm: float, **sections: Mapping[str, Any]) -> Study:
    """A study of crops of so many voxels; sections are added to its own settings."""
    values: dict[str, Any] = {
        "name": "benchmark",
        "seed": seed,
        "rounds": rounds,
        "preprocessing": {
            "spacing_mm": [spacing_mm] * 3,
            "size_voxels": [size] * 3,
            "crop": "lesion",
            "missing_sequence": "zero_fill",
        },
        "augmentation": {"drop_sequence": 0.1},
        "training": {"learning_rate": 1e-3, "batch_size": 8, "local_epochs": 1},
        "participation": {"min_sites": 1, "round_timeout_s": 1800, "join_timeout_s": 900},
        "evaluation": {"min_pooled_sites": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse_study(yaml.safe_dump(values), origin="the benchmark's study")


def prepared_run(out: Path, study: Study, sites: Sites, *, engine: EngineName, workers: int) -> RunFolder:
    """Carry a run to its end by an engine; raises if it has no result."""
    prepare_sites(study, sites, workers=1, on_exam=lambda site, done, total: None)
    folder = open_run(out, study_text=study_yaml(study), sites=sites, engine=engine)
    record = carry(folder, sites, engine=engine, workers=workers, faults=(), while_running=lambda: None)
    if record["outcome"] == "INVALID":
        raise RuntimeError(f"the run of the benchmark has no result: {'; '.join(record['problems'])}")
    return folder
