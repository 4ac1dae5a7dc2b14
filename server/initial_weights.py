"""The file of weights a study begins from: checked when a run is begun, kept in its folder, loaded at round 0."""

import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.model_state import Array
from common.study import Study
from server.run_folder import RunFolder, write_json


def require_weights(study: Study, path: Path | None) -> bytes | None:
    """The bytes of the file that the study begins from; None for a study that begins from its seed alone.

    Args:
        study: Names the file by its digest.
        path: The file that the coordinator gave.

    Raises:
        ConfigError: If there is a file and the study names none, or the other way round, or it does not fit.
    """
    if study.model.initial_weights is None:
        if path is not None:
            raise ConfigError(
                f"--initial-weights {path}: the study names no file of weights; write its SHA-256 as "
                "model.initial_weights, or leave the option out"
            )
        return None
    if path is None:
        raise ConfigError(
            "the study begins from a file of weights (model.initial_weights); give it with --initial-weights FILE, "
            "which gliorn-server run and gliorn-simulate take"
        )
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"--initial-weights {path}: unreadable ({type(error).__name__}), expected a file of MedicalNet"
        ) from None
    _state_and_report(study, payload, origin=str(path))
    return payload


def starting_state(folder: RunFolder) -> dict[str, Array]:
    """The state a run starts from, without what the study leaves with the sites.

    Where it is from a file, what became of that is written into the run's folder.

    Raises:
        ConfigError: If the file in the run's folder is absent, or not the one that the study names.
    """
    from server.global_state import initial_global_state

    study = folder.read_study()
    if study.model.initial_weights is None:
        return initial_global_state(study)
    try:
        payload = folder.initial_weights.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{folder.initial_weights}: unreadable ({type(error).__name__}), expected the study's file of weights; "
            "put it there, or begin the run again with --initial-weights"
        ) from None
    state, report = _state_and_report(study, payload, origin=str(folder.initial_weights))
    write_json(folder.weights_report, report)
    return state


def weights_report(folder: RunFolder) -> dict[str, Any] | None:
    """What became of the file a run started from; None for a run that started from its seed alone."""
    if not folder.weights_report.is_file():
        return None
    report: dict[str, Any] = json.loads(folder.weights_report.read_text(encoding="utf-8"))
    return report


def _state_and_report(study: Study, payload: bytes, *, origin: str) -> tuple[dict[str, Array], dict[str, Any]]:
    from common.models import local_names
    from common.models.medicalnet import read_weights, with_weights
    from server.global_state import initial_global_state

    sha256 = study.model.initial_weights
    assert sha256 is not None, "the study begins from a file"
    with_fedbn = study.model.model_copy(update={"norm": "fedbn"})
    state, report = with_weights(
        initial_global_state(study),
        read_weights(BytesIO(payload), sha256=sha256, origin=origin),
        places_of_norm=local_names(with_fedbn, num_sequences=len(study.sequences)),
        sha256=sha256,
        origin=origin,
    )
    return state, asdict(report)
