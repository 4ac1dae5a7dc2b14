"""`record.json`: every figure of a run, who took part, what was chosen and why, hashes, versions and seeds."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal

from common.metrics.auc import Auc
from common.metrics.estimate import not_estimable
from common.metrics.pooled import pooled_figures, roc_points, to_json
from common.model_state import ModelState, encode_state, state_digest
from common.study import CLASS_NAMES, Study
from common.tasks import Damage, SiteManifest
from server.decision import Decision
from server.global_state import LOCAL_MODELS, absence_reason, absent_names
from server.initial_weights import weights_report
from server.pooling import OWN_SCALES, Pool
from server.progress import Candidate, Progress, read_rounds
from server.records import damage_text, damaged_parts, missing_sites, ranges
from server.run_folder import RunFolder, write_atomically, write_json

SCHEMA = 1
RESEARCH_USE_ONLY = "Research use only. Not a medical device; not for diagnosis or treatment."

Outcome = Literal["COMPLETE", "DEGRADED", "INVALID"]


@dataclass(frozen=True)
class FinalEvaluation:
    """What the end of a run brought.

    Attributes:
        best: The chosen round with its validation result.
        best_state: Its model state.
        final_state: The model state after the last round.
        last_validation: `summary` of the last state on the validation patients.
        decision: The frozen threshold.
        validation: Counts of the best state on the validation patients.
        test: Counts of the best state on the test patients, at the frozen threshold.
        personal: The same of the sites' own models; None in a study without.
        damaged: By split, what sites had kept and could not read.
    """

    best: Candidate
    best_state: ModelState
    final_state: ModelState
    last_validation: Mapping[str, Any]
    decision: Decision
    validation: Pool
    test: Pool
    personal: "PersonalEvaluation | None" = None
    damaged: Mapping[str, Mapping[str, tuple[Damage, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class PersonalEvaluation:
    """What the sites' own models brought, each on the patients of its own site.

    Attributes:
        decision: Their frozen thresholds, chosen by the same rule, each on its own site's validation patients.
        validation: Counts on the validation patients.
        test: Counts on the test patients, at these thresholds.
    """

    decision: Decision
    validation: Pool
    test: Pool


def write_record(
    folder: RunFolder,
    study: Study,
    *,
    progress: Progress,
    manifests: Mapping[str, SiteManifest],
    not_joined: Mapping[str, str],
    final: FinalEvaluation | None,
    error: str | None,
    now: datetime,
    comparisons: Sequence[Mapping[str, Any]] = (),
    statistics: Sequence[str] | None = None,
) -> Outcome:
    """Write the models and the record of a run that has ended.

    Args:
        folder: The run.
        study: Its study.
        progress: How far it came.
        manifests: What the sites brought.
        not_joined: Expected sites that never joined, with the reason.
        final: What the end brought; None for a run that did not get there.
        error: Why the run did not get there.
        now: When it ended.
        comparisons: With earlier runs, as `server.comparison.comparison_values` has them.
        statistics: Of a run without training whose sites showed statistics of their cohorts, why the others did not.

    Returns:
        How the run ended. COMPLETE: every site in every round and evaluation. DEGRADED: somebody was missing, and the
        record says who, when and why. INVALID: there is no result.
    """
    rounds = read_rounds(folder, progress)
    participation = missing_sites(rounds)
    evaluations = {} if final is None else {"validation": final.validation, "test": final.test}
    problems = _problems(participation, evaluations, not_joined, error) + _damages(rounds, final)
    if statistics is not None:
        problems = list(statistics)
    has_result = final is not None or statistics is not None
    outcome: Outcome = "INVALID" if not has_result else ("DEGRADED" if problems else "COMPLETE")
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "notice": RESEARCH_USE_ONLY,
        "run": folder.name,
        "run_id": progress.run_id,
        "outcome": outcome,
        "problems": problems,
        "started_at": rounds[0]["started_at"] if rounds else None,
        "finished_at": now.isoformat(timespec="seconds"),
        "num_resumed": progress.num_resumed,
        "engine": folder.read_participants().engine,
        "study": study.model_dump(mode="json"),
        "study_digest": study.digest,
        "classes": list(CLASS_NAMES),
        "sites": {site: manifest_values(manifest) for site, manifest in sorted(manifests.items())},
        "not_joined": dict(sorted(not_joined.items())),
        "quarantined": dict(sorted(progress.quarantined.items())),
        "missing_in_rounds": participation,
        "rounds_done": progress.round,
        "versions": _versions(),
    }
    if statistics is not None:
        record["kind"] = "statistics"
    if (report := weights_report(folder)) is not None:
        record["initial_weights"] = report
    if final is not None:
        record |= _result_values(folder, study, final)
    if comparisons:
        record["comparisons"] = list(comparisons)
    write_json(folder.record, record)
    return outcome


def stopped_text(round: int) -> str:
    """Why a run has no result that the coordinator stopped."""
    return f"the coordinator stopped the run after round {round}"


def _problems(
    participation: Mapping[str, Mapping[str, list[int]]],
    evaluations: Mapping[str, Pool],
    not_joined: Mapping[str, str],
    error: str | None,
) -> list[str]:
    problems = [] if error is None else [error]
    for site, reasons in sorted(participation.items()):
        problems += [
            f"{site} was not in round{'s' if len(numbers) > 1 else ''} {ranges(numbers)}: {reason}"
            for reason, numbers in reasons.items()
        ]
    for site, reason in sorted(not_joined.items()):
        if site not in participation:
            problems.append(f"{site} did not join: {reason}")
    for split, pool in evaluations.items():
        for site, reason in pool.missing.items():
            if site not in pool.answered:
                problems.append(f"{site} is not in the {split} figures: {reason}")
    return problems


def _damages(rounds: Sequence[Mapping[str, Any]], final: FinalEvaluation | None) -> list[str]:
    texts = [
        damage_text(site, part, f"in round{'s' if len(numbers) > 1 else ''} {ranges(numbers)}")
        for (site, part), numbers in sorted(damaged_parts(rounds).items())
    ]
    for split, sites in ({} if final is None else final.damaged).items():
        for site, parts in sorted(sites.items()):
            texts += [damage_text(site, part, f"in the evaluation on {split} patients") for part in parts]
    return texts


def manifest_values(manifest: SiteManifest) -> dict[str, Any]:
    """What a site brought, as it stands in the record."""
    values = asdict(manifest)
    del values["site"], values["study_digest"]
    return values


def _result_values(folder: RunFolder, study: Study, final: FinalEvaluation) -> dict[str, Any]:
    states = {"best": (final.best.round, final.best_state), "final": (study.rounds, final.final_state)}
    is_local = study.aggregation.method == "local"
    values: dict[str, Any] = {
        "selection": {
            "rule": "highest pooled validation AUC; ties: lower loss, then the earlier round",
            "best": asdict(final.best),
            "last_validation": final.last_validation,
        },
        "operating_point": _decision_values(final.decision),
        "figures": {
            "validation": _figures(final.validation, study, own_models=is_local),
            "test": _figures(final.test, study, own_models=is_local),
        },
    }
    if (own := final.personal) is not None:
        values["operating_point"]["personal"] = _decision_values(own.decision)
        values["figures"]["personal_validation"] = _figures(own.validation, study, own_models=True)
        values["figures"]["personal_test"] = _figures(own.test, study, own_models=True)
    if is_local:
        values["selection"]["rule"] = (
            "every site for itself: highest AUC on its own validation patients; ties: lower loss, then the earlier "
            "round"
        )
        values["selection"]["rounds"] = {site: choice.round for site, choice in (final.decision.per_site or {}).items()}
        return values | {"models": {}, "no_model": LOCAL_MODELS}
    return values | {
        "models": {
            name: _write_model(folder, study, final.decision, name=name, round=round, state=state)
            for name, (round, state) in states.items()
        },
    }


def _decision_values(decision: Decision) -> dict[str, Any]:
    values: dict[str, Any] = {
        "rule": decision.rule,
        "threshold": None if decision.threshold is None else _number_or_text(decision.threshold),
        "reason": decision.reason or None,
    }
    if decision.per_site is not None:
        values["per_site"] = {
            site: {
                "threshold": None if choice.threshold is None else _number_or_text(choice.threshold),
                "reason": NO_THRESHOLD[choice.reason],
            }
            for site, choice in decision.per_site.items()
        }
    return values


NO_THRESHOLD = {
    "": None,
    "no_class": "none: the rule needs a class that its validation patients lack",
    "withheld": "used and withheld: a class has fewer validation patients than the site shows",
}
"""Why a site shows no threshold of its own."""


def _figures(pool: Pool, study: Study, *, own_models: bool) -> dict[str, Any]:
    """All figures of an evaluation; of models that differ from site to site without any across sites' scores."""
    values: dict[str, Any] = {"missing": dict(pool.missing), "not_pooled": pool.reason or None}
    total = pool.total
    if total is None:
        return values | {"figures": None, "roc": []}
    spec = study.evaluation
    figures = pooled_figures(
        pool.per_site, confidence=spec.confidence, interval=spec.interval, prevalence=spec.prevalence
    )
    if own_models:
        patients = sum(total.num_patients)
        without = replace(figures.pooled, auc=Auc(not_estimable(OWN_SCALES, patients), None))
        return values | {"figures": to_json(replace(figures, pooled=without)), "roc": []}
    roc = [[fpr, tpr, _number_or_text(threshold)] for fpr, tpr, threshold in roc_points(total.histogram, total.bins)]
    return values | {"figures": to_json(figures), "roc": roc}


def _number_or_text(value: float) -> float | str:
    """JSON has no infinities: they become "inf" and "-inf"."""
    return value if math.isfinite(value) else str(value)


def _write_model(
    folder: RunFolder, study: Study, decision: Decision, *, name: str, round: int, state: ModelState
) -> dict[str, Any]:
    """Write a model with what is needed to refuse a wrong use of it, as metadata of the safetensors file.

    The metadata is one entry, since safetensors writes several in an order that differs from process to process.
    """
    threshold = decision.threshold if name == "best" else None
    use = {
        "notice": RESEARCH_USE_ONLY,
        "round": round,
        "study": study.model_dump(mode="json"),
        "study_digest": study.digest,
        "classes": CLASS_NAMES,
        "threshold": None if threshold is None else _number_or_text(threshold),
    }
    if absent := absent_names(study):
        use["absent"] = {"names": sorted(absent), "why": absence_reason(study)}
    payload = encode_state(state, metadata={"gliorn": json.dumps(use, sort_keys=True)})
    path = folder.model / f"{name}.safetensors"
    write_atomically(path, payload)
    return {
        "round": round,
        "file": f"model/{path.name}",
        "sha256": hashlib.sha256(payload).hexdigest(),
        "state_digest": state_digest(state),
    }


def _versions() -> dict[str, str]:
    names = ("gliorn", "flwr", "torch", "monai", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
