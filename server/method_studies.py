"""The studies of a comparison: one for each method, alike in all that is not the method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from common.study import Study, parse_study

METHODS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "fedavg": {},
    "fedprox": {"training": {"fedprox_mu": 0.01}},
    "fedprox_adaptive": {"training": {"fedprox_mu": 0.01, "fedprox_adaptive": True}},
    "batch_norm": {"model": {"norm": "batch"}},
    "fedbn": {"model": {"norm": "fedbn"}},
    "silobn": {"model": {"norm": "silobn"}},
    "fedavgm": {"aggregation": {"method": "fedavgm"}},
    "fedadam": {"aggregation": {"method": "fedadam"}},
    "fedyogi": {"aggregation": {"method": "fedyogi"}},
    "median": {"aggregation": {"method": "median"}},
    "trimmed_mean": {"aggregation": {"method": "trimmed_mean"}},
    "multi_krum": {"aggregation": {"method": "multi_krum"}},
    "ditto": {"personalization": {"method": "ditto"}},
    "fine_tune": {"personalization": {"method": "fine_tune"}},
    "local": {"aggregation": {"method": "local"}},
}
"""What each method changes in a study of plain FedAvg. SCAFFOLD is none of them: it needs another optimiser, and its
figures would show that."""

_PLAIN: Mapping[str, Mapping[str, object]] = {
    "training": {"fedprox_mu": 0.0, "fedprox_adaptive": False, "control_variates": False},
    "aggregation": {"method": "mean"},
    "personalization": {"method": "none"},
}


def require_methods(text: str, *, option: str) -> list[str]:
    """The methods that a command line names between commas, each once.

    Raises:
        ConfigError: If one is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ConfigError(f"{option} {text!r}: expected some of {', '.join(METHODS)}, between commas")
    return names


def study_of_method(base: Study, method: str) -> Study:
    """The base with the settings of one method, and without those of any other.

    Normalisation that stays at its sites is a method as well: where the base has it, the other methods get plain batch
    norm.

    Raises:
        ConfigError: If the base's other settings do not go with the method.
    """
    norm = "batch" if base.model.norm in ("fedbn", "silobn") else base.model.norm
    values = _changed(base.model_dump(mode="json"), {**_PLAIN, "model": {"norm": norm}})
    return _parsed(_changed(values, METHODS[method]), method)


def studies_of_plan(base: Study, methods: Sequence[str], *, num_folds: int | None, repeats: int) -> dict[str, Study]:
    """All studies of a comparison by the name of their file: one for each method, or for each method and fold.

    Raises:
        ConfigError: If they cannot be.
    """
    studies: dict[str, Study] = {}
    for method in methods:
        study = study_of_method(base, method)
        if num_folds is None:
            studies[method] = _named(study, f"{base.name}-{method}")
        for repeat in range(repeats if num_folds is not None else 0):
            for fold in range(num_folds or 0):
                name = fold_name(method, fold=fold, repeat=repeat)
                studies[name] = _named(study_of_fold(study, num_folds or 0, fold, repeat), f"{base.name}-{name}")
    return studies


def fold_name(method: str, *, fold: int, repeat: int) -> str:
    """What the study and the run of a fold are called."""
    return f"{method}-repeat-{repeat}-fold-{fold}"


def study_of_fold(base: Study, num_folds: int, fold: int, repeat: int) -> Study:
    """The base with one part of the patients as its test."""
    split = {"num_folds": num_folds, "fold": fold, "repeat": repeat}
    return _parsed(_changed(base.model_dump(mode="json"), {"split": split}), f"fold {fold}")


def write_studies(folder: Path, studies: Mapping[str, Study]) -> list[Path]:
    """Write the studies as files for the sites to accept; those that are there already stay as they are.

    Raises:
        ConfigError: If a file is there with another study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, study in studies.items():
        path = folder / f"{name}.yaml"
        if path.exists() and parse_study(path.read_text(encoding="utf-8"), origin=str(path)).digest != study.digest:
            raise ConfigError(f"{path}: is there with another study; name another folder with --out, or delete it")
        path.write_text(study_text(study), encoding="utf-8")
        paths.append(path)
    return paths


def study_text(study: Study) -> str:
    """The study as YAML, with every setting written out."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)


def _named(study: Study, name: str) -> Study:
    return _parsed({**study.model_dump(mode="json"), "name": name}, name)


def _changed(values: dict[str, Any], changes: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    return values | {section: {**values[section], **change} for section, change in changes.items()}


def _parsed(values: Mapping[str, Any], what: str) -> Study:
    return parse_study(yaml.safe_dump(dict(values)), origin=f"the study of {what}")
