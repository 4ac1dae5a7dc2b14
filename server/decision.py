"""The decision threshold of a run: chosen on the pooled validation patients, then frozen for the test."""

from dataclasses import dataclass, replace

from common.errors import DataError
from common.metrics.confusion import confusion_from_histogram
from common.metrics.operating_point import ThresholdRule, choose_threshold
from common.study import Study
from server.pooling import Pool


@dataclass(frozen=True)
class Decision:
    """The threshold on the logit margin at or above which a patient is called necrosis.

    Attributes:
        threshold: None where none could be chosen.
        rule: The rule as a text.
        reason: Why no threshold was chosen; empty where one was.
    """

    threshold: float | None
    rule: str
    reason: str


def decide(validation: Pool, study: Study) -> Decision:
    """Choose the threshold by the study's rule on the pooled validation patients."""
    spec = study.evaluation.operating_point
    rule = ThresholdRule(spec.rule, spec.target)
    text = spec.rule if spec.target is None else f"{spec.rule} {spec.target:g}"
    total = validation.total
    if spec.rule == "fixed":
        return Decision(spec.target, text, "")
    if total is None:
        return Decision(None, text, f"no pooled validation result: {validation.reason}")
    try:
        return Decision(choose_threshold(total.histogram, rule, total.bins).threshold, text, "")
    except DataError as error:
        return Decision(None, text, str(error))


def with_confusion(pool: Pool, threshold: float | None) -> Pool:
    """The pool with the counts at a threshold, read from the histograms.

    Exact where the threshold is an edge of the bins, as every chosen one is; a fixed threshold within a bin leaves the
    pool as it is.
    """
    if threshold is None:
        return pool
    per_site = {}
    for site, statistics in pool.per_site.items():
        first = statistics.bins.first_positive_bin(threshold)
        if first is None:
            return pool
        per_site[site] = replace(statistics, confusion=confusion_from_histogram(statistics.histogram, first))
    return replace(pool, per_site=per_site)
