"""Runs of one method that belong together: of several seeds, or without each hospital in turn."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.special import logit
from scipy.stats import norm

from common.metrics.auc import logit_interval
from common.metrics.estimate import Estimate, not_estimable, without_interval

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunGroup:
    """Runs whose studies differ in seed and name alone, or also in the one site that each holds out.

    Attributes:
        records: In the order in which they were named.
        leaves_out: Whether each of them holds out one site.
    """

    records: tuple[Record, ...]
    leaves_out: bool

    @property
    def name(self) -> str:
        """The one run's name, or what the names of all have in common."""
        names = [str(record["run"]) for record in self.records]
        if self.leaves_out:
            return "without each hospital"
        without_seed = {re.sub(r"-seed-\d+$", "", name) for name in names}
        return without_seed.pop() if len(without_seed) == 1 else ", ".join(names)


def grouped(records: Sequence[Record]) -> list[RunGroup]:
    """The runs by what they are of, in the order in which each kind was first named."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_kind(record), []).append(record)
    return [RunGroup(tuple(group), held_out_site(group[0]) is not None) for group in groups.values()]


def held_out_site(record: Record) -> str | None:
    """The one site that a run holds out; None where it holds out none, or several."""
    held_out = record["study"].get("participation", {}).get("held_out") or []
    return str(held_out[0]) if len(held_out) == 1 else None


def _kind(record: Record) -> str:
    study = {name: value for name, value in record["study"].items() if name not in ("name", "seed")}
    sites = sorted({*record["sites"], *record["not_joined"]})
    if held_out_site(record) is not None:
        study["participation"] = {**study["participation"], "held_out": "one", "min_sites": None}
        study["evaluation"] = {**study["evaluation"], "min_pooled_sites": None}
    return json.dumps([study, sites], sort_keys=True)


def mean_over_runs(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of a figure over runs that test the same or overlapping patients.

    The ends of its interval are the means of theirs: the standard error of a mean is at most the mean of the standard
    errors, so repetition makes no interval narrower.
    """
    num = max(estimate.num for estimate in estimates)
    values = [estimate.value for estimate in estimates if estimate.value is not None]
    lows = [estimate.low for estimate in estimates if estimate.low is not None]
    highs = [estimate.high for estimate in estimates if estimate.high is not None]
    if len(values) < len(estimates):
        return not_estimable("a run has no such figure", num)
    if len(lows) < len(estimates):
        return without_interval(fmean(values), "a run has no interval", num)
    return Estimate(fmean(values), fmean(lows), fmean(highs), num)


def spread_over_runs(estimates: Sequence[Estimate]) -> float | None:
    """Standard deviation of a figure between runs; None where there are not two."""
    values = [estimate.value for estimate in estimates if estimate.value is not None]
    return stdev(values) if len(values) > 1 else None


def auc_of_held_out(records: Sequence[Record], *, confidence: float) -> Estimate:
    """AUC within the sites that were held out, each under the model that never saw it, from one run for each.

    Pairs of patients of the same site, as `common.metrics.auc.within_site_auc` has it. A record has the sites' AUCs and
    no histograms; their variances follow from their intervals.
    """
    parts = []
    for record in records:
        site, figures = held_out_site(record), record["figures"]["test"]["figures"]
        row = None if figures is None else figures["per_site"].get(site)
        if row is None or row["auc"]["estimate"]["value"] is None:
            return not_estimable(f"{site} shows no AUC", 0)
        parts.append((row["num_recurrence"] * row["num_necrosis"], Estimate(**row["auc"]["estimate"])))
    pairs, num = sum(weight for weight, _ in parts), sum(auc.num for _, auc in parts)
    value = sum(weight * auc.value for weight, auc in parts if auc.value is not None) / pairs
    z, variance = float(norm.ppf((1 + confidence) / 2)), 0.0
    for weight, auc in parts:
        if auc.value is None or auc.low is None or auc.high is None:
            return without_interval(value, "a hospital's AUC has no interval", num)
        error = float(logit(auc.high) - logit(auc.low)) / (2 * z) * auc.value * (1 - auc.value)
        variance += (weight / pairs * error) ** 2
    return logit_interval(value, variance, num=num, confidence=confidence)
