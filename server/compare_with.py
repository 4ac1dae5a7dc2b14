"""Which earlier runs a run shall be compared with at its end: checked when it is begun, noted in its folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from common.errors import ConfigError, list_of_faults
from common.tasks import ModelOfRun
from server.run_folder import RunFolder, write_json
from server.statistics_note import is_statistics_run

PERSONAL = "/personal"
"""What stands behind a run's name where the sites' own models are meant."""


@dataclass(frozen=True)
class EarlierModel:
    """What a run is compared with.

    Attributes:
        model: The model.
        own_models: Whether it is another one at each site, so that scores of two sites have no common scale.
    """

    model: ModelOfRun
    own_models: bool


_MODELS = TypeAdapter(list[EarlierModel])


def find_models(runs: Path, names: Sequence[str]) -> list[EarlierModel]:
    """The models that names such as "first-run" and "first-run/personal" mean.

    Args:
        runs: The folder of all runs.
        names: As the coordinator wrote them.

    Raises:
        ConfigError: All names at once that are of no run with a result.
    """
    models, faults = [], []
    for name in dict.fromkeys(names):
        run = name.removesuffix(PERSONAL)
        folder = RunFolder(runs / run)
        if "/" in run or not folder.record.is_file():
            known = ", ".join(sorted(path.parent.name for path in runs.glob("*/record.json"))) or "none yet"
            faults.append(f"{name!r}: no run of that name has ended, expected one of: {known}")
            continue
        study, record = folder.read_study(), json.loads(folder.record.read_text(encoding="utf-8"))
        outcome = record["outcome"]
        personal = name.endswith(PERSONAL)
        if is_statistics_run(folder):
            faults.append(f"{name!r}: is a run of statistics and tested no model; name a run that trained one")
        elif outcome == "INVALID":
            faults.append(f"{name!r}: ended INVALID and was not tested; name a run with a result")
        elif personal and study.personalization.method == "none":
            faults.append(f"{name!r}: its study has no personalization; write {run}")
        else:
            model = ModelOfRun(run, study.digest, personal, record.get("run_id", ""))
            models.append(EarlierModel(model, own_models=personal or study.aggregation.method == "local"))
    if faults:
        raise ConfigError(list_of_faults("--compare-with", faults))
    return models


def note_models(folder: RunFolder, models: Sequence[EarlierModel]) -> None:
    """Note in a run's folder what it shall be compared with."""
    write_json(_file(folder), [asdict(model) for model in models])


def noted_models(folder: RunFolder) -> list[EarlierModel]:
    """What a run shall be compared with; nothing where nothing was noted.

    Raises:
        ConfigError: If the note was damaged.
    """
    try:
        return _MODELS.validate_json(_file(folder).read_bytes())
    except FileNotFoundError:
        return []
    except ValidationError:
        raise ConfigError(f"{_file(folder)}: unreadable; delete it, and the run ends without comparisons") from None


def _file(folder: RunFolder) -> Path:
    return folder.path / "compare_with.json"
