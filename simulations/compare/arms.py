"""The arms of a comparison: who trains with whom, by which study, so that all of them do the same work.

In every arm a model takes `local_steps` optimiser steps a round with the study's optimiser, and is chosen and gets its
threshold by the study's rule on validation patients of its own. A federated round costs as many batches as there are
sites; so does one of the pooled arms:

- `pooled` takes the same number of steps, each on a batch as large as those of all sites together: what a federation
  would do if it averaged after every step.
- `pooled_long` takes its batches one after the other, as many steps as all sites together: what one would do who had
  all patients in one place. It is the harder one to match.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from client.sampling import num_batches
from common.errors import ConfigError
from common.study import Study, parse_study
from server.method_studies import METHODS, study_of_method
from simulations.side_by_side import PlannedRun

FIXED_ARMS = ("local", "pooled", "pooled_long", "leave_one_out")
MAX_BATCH = 256
NUM_DIGITS = 10
"""Of the digest in the name of a run."""


@dataclass(frozen=True)
class ArmRun:
    """One run of an arm.

    Attributes:
        arm: The arm.
        seed: Of the study.
        site: The site that the run is for: that trains alone, or that is left out; "" for a run of all.
        planned: The run.
    """

    arm: str
    seed: int
    site: str
    planned: PlannedRun


def require_arms(names: Sequence[str]) -> list[str]:
    """The arms of a comparison in their order; raises ConfigError for an unknown one."""
    known = [*FIXED_ARMS, *(method for method in METHODS if method != "local")]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(f"arms {', '.join(unknown) or 'none'}: expected some of {', '.join(known)}, between commas")
    return list(dict.fromkeys(names))


def with_equal_steps(study: Study, num_training: Mapping[str, int]) -> Study:
    """The study with a number of steps a round instead of epochs: the mean of what the sites' epochs come to.

    Args:
        study: The base.
        num_training: Training exams by site.
    """
    epochs = study.training.local_epochs
    if epochs is None:
        return study
    batches = [num_batches(number, batch_size=study.training.batch_size) for number in num_training.values()]
    steps = max(1, round(epochs * sum(batches) / len(batches)))
    return _with(study, {"training": {"local_epochs": None, "local_steps": steps}})


def runs_of_arms(
    base: Study,
    arms: Sequence[str],
    *,
    seeds: Sequence[int],
    sites: Mapping[str, Path],
    pooled: Mapping[int, Path],
    out: Path,
) -> list[ArmRun]:
    """All runs, those of the first seed first, so that an interrupted comparison is whole before it is repeated.

    Args:
        base: What all arms have in common, with local_steps.
        arms: Their names.
        seeds: Of the studies.
        sites: The site.yaml of each site.
        pooled: That of the place where all patients are, by seed; needed by the pooled arms alone.
        out: The comparison's folder.
    """
    assert base.training.local_steps is not None, "arms are compared by steps"
    runs: list[ArmRun] = []
    comparison = digest_of_comparison(out, tuple(sites))
    for seed in seeds:
        for arm in arms:
            for site, study in studies_of_arm(_with_top(base, {"seed": seed}), arm, tuple(sites)).items():
                name = "-".join(filter(None, (arm.replace("_", "-"), f"seed-{seed}", site, comparison)))
                where = tuple(sites.values())
                if arm == "local":
                    where = (sites[site],)
                elif arm in ("pooled", "pooled_long"):
                    where = (pooled[seed],)
                runs.append(ArmRun(arm, seed, site, PlannedRun(out / "runs" / name, study, where)))
    return runs


def digest_of_comparison(out: Path, sites: Sequence[str]) -> str:
    """What tells the runs of a comparison from those of another, where both leave scores in the cache of one site.

    Args:
        out: The comparison's folder.
        sites: Names, in any order.
    """
    return hashlib.sha256(json.dumps([str(out.resolve()), sorted(sites)]).encode()).hexdigest()[:NUM_DIGITS]


def studies_of_arm(base: Study, arm: str, sites: Sequence[str]) -> dict[str, Study]:
    """The study of each run of an arm, by the site it is for; "" for a run of all.

    Where fewer sites validate than the base asks for in a pooled figure, all that do are enough: a run without pooled
    figures would choose neither round nor threshold.
    """
    steps = base.training.local_steps
    assert steps is not None, "arms are compared by steps"
    plain = study_of_method(base, "fedavg")
    alone: dict[str, dict[str, object]] = {
        "participation": {"min_sites": 1, "held_out": []},
        "evaluation": {"min_pooled_sites": 1},
    }
    match arm:
        case "local":
            return {site: _with(plain, alone) for site in sites}
        case "pooled":
            batch = base.training.batch_size * len(sites)
            if batch > MAX_BATCH:
                raise ConfigError(
                    f"arm pooled: {len(sites)} sites of {base.training.batch_size} patients a step are a batch of "
                    f"{batch}, expected {MAX_BATCH} at most; lower training.batch_size, or leave this arm out"
                )
            return {"": _with(plain, {**alone, "training": {"batch_size": batch}})}
        case "pooled_long":
            return {"": _with(plain, {**alone, "training": {"local_steps": steps * len(sites)}})}
        case "leave_one_out":
            least = min(base.participation.min_sites, len(sites) - 1)
            if least < 1:
                raise ConfigError("arm leave_one_out: needs two sites or more; name more sites, or leave this arm out")
            pooled = {"min_pooled_sites": min(base.evaluation.min_pooled_sites, len(sites) - 1)}
            return {
                site: _with(plain, {"participation": {"held_out": [site], "min_sites": least}, "evaluation": pooled})
                for site in sites
            }
        case _:
            pooled = {"min_pooled_sites": min(base.evaluation.min_pooled_sites, len(sites))}
            return {"": _with(study_of_method(base, arm), {"evaluation": pooled})}


def num_batches_of_run(base: Study, arm: str, num_sites: int) -> int:
    """Batches of the base's size that a run of an arm trains on, the measure of its cost."""
    steps = base.training.local_steps
    assert steps is not None, "arms are compared by steps"
    match arm:
        case "local":
            return base.rounds * steps
        case "leave_one_out":
            return base.rounds * steps * (num_sites - 1)
        case "ditto":
            return 2 * base.rounds * steps * num_sites
        case _:
            return base.rounds * steps * num_sites


def _with(study: Study, changes: Mapping[str, Mapping[str, object]]) -> Study:
    values: dict[str, Any] = study.model_dump(mode="json")
    return _with_top(study, {section: {**values[section], **change} for section, change in changes.items()})


def _with_top(study: Study, changes: Mapping[str, object]) -> Study:
    return parse_study(yaml.safe_dump({**study.model_dump(mode="json"), **changes}), origin="the study of an arm")
