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


def studies_of_plan(
    base: Study, methods: Sequence[str], *, num_folds: int | None, repeats: int, num_seeds: int = 1
) -> dict[str, Study]:
    """All studies of a comparison by the name of their file: one for each method and seed, or for each method and fold.

    Args:
        base: What they have in common; its seed is the first one.
        methods: Their names.
        num_folds: Parts of a cross-validation; None for none.
        repeats: Its divisions into parts.
        num_seeds: Seeds, each of which splits the patients anew, where the sites' tables name no splits.

    Raises:
        ConfigError: If they cannot be.
    """
    studies: dict[str, Study] = {}
    for seed in range(base.seed, base.seed + num_seeds):
        for method in methods if num_folds is None else ():
            name = method if num_seeds == 1 else f"{method}-seed-{seed}"
            studies[name] = _named(_seeded(study_of_method(base, method), seed), f"{base.name}-{name}")
    for method in methods if num_folds is not None else ():
        study = study_of_method(base, method)
        for repeat in range(repeats):
            for fold in range(num_folds or 0):
                name = fold_name(method, fold=fold, repeat=repeat)
                studies[name] = _named(study_of_fold(study, num_folds or 0, fold, repeat), f"{base.name}-{name}")
    return studies


def studies_without_each(base: Study, sites: Sequence[str], *, num_seeds: int) -> dict[str, Study]:
    """The federation by plain FedAvg without each site in turn, which is tested all the same.

    Args:
        base: What the studies of the comparison have in common.
        sites: All that take part in them.
        num_seeds: As in `studies_of_plan`.

    Raises:
        ConfigError: If there are not sites enough, or the base holds one out already.
    """
    if base.participation.held_out:
        raise ConfigError("leave_one_out: the study has participation.held_out already; delete it there")
    others = len(sites) - 1
    if others < 1:
        raise ConfigError("leave_one_out: needs two sites or more; name all of them with --sites, between commas")
    participation = {"min_sites": min(base.participation.min_sites, others)}
    least = {"min_pooled_sites": min(base.evaluation.min_pooled_sites, others)}
    studies = {}
    for seed in range(base.seed, base.seed + num_seeds):
        for site in sites:
            changes: Mapping[str, Mapping[str, object]] = {
                "participation": {**participation, "held_out": [site]},
                "evaluation": least,
            }
            values = _changed(study_of_method(base, "fedavg").model_dump(mode="json"), changes)
            name = without_name(site) if num_seeds == 1 else f"{without_name(site)}-seed-{seed}"
            studies[name] = _named(_seeded(_parsed(values, name), seed), f"{base.name}-{name}")
    return studies


def without_name(site: str) -> str:
    """What the study and the run without a site are called."""
    return f"without-{site}"


def _seeded(study: Study, seed: int) -> Study:
    return _parsed({**study.model_dump(mode="json"), "seed": seed}, f"seed {seed}")


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
