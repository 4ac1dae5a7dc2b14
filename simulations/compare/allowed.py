"""What the sites of a comparison or a cross-validation let leave, looked at before anything is trained."""

from collections.abc import Mapping, Sequence

import yaml

from client.cohort import load_cohort
from client.config import SiteConfig
from common.errors import ConfigError, list_of_faults
from common.study import CLASS_NAMES, Study, parse_study
from simulations.side_by_side import PlannedRun


def finest_allowed(base: Study, sites: Mapping[str, SiteConfig], *, is_own: bool) -> Study:
    """The study with score bins that every site shows.

    Args:
        base: The study of all arms.
        sites: By name.
        is_own: Whether the study is the comparison's own, whose bins may become fewer; those of a study that was given
            stay as they are.

    Raises:
        ConfigError: If a study that was given counts more finely than a site shows.
    """
    wanted = base.evaluation.num_bins
    least = min(config.disclosure.max_bins for config in sites.values())
    if wanted <= least:
        return base
    if not is_own:
        stricter = {n: c.disclosure.max_bins for n, c in sites.items() if c.disclosure.max_bins < wanted}
        shown = ", ".join(f"{name} {bins}" for name, bins in stricter.items())
        raise ConfigError(
            f"evaluation.num_bins: the study counts scores in {wanted} bins, these sites show fewer "
            f"(disclosure.max_bins): {shown}; write num_bins: {least} in the study"
        )
    values = base.model_dump(mode="json")
    values["evaluation"]["num_bins"] = least
    return parse_study(yaml.safe_dump(values), origin="the study with the sites' bins")


def withheld_tests(study: Study, sites: Mapping[str, SiteConfig]) -> list[str]:
    """Which sites will withhold the counts of a study's test, and why, as lines for a person; none where all show them.

    Args:
        study: Of one run.
        sites: By name.
    """
    lines = []
    for name, config in sites.items():
        small = _small_test(config, study)
        if small is not None:
            what = f"only {small[0][0]} {small[0][1]}" if small else "no test patients"
            lines.append(
                f"{name} will withhold the counts of its test: {what}, disclosure.min_cell {config.disclosure.min_cell}"
            )
    return lines


def _small_test(config: SiteConfig, study: Study) -> list[tuple[int, str]] | None:
    """Classes too small for a site to show its test, smallest first; empty without test patients, None if it shows."""
    labels = {exam.patient_id: exam.label for exam in load_cohort(config, study).exams_of("test")}
    counts = [sum(label == each for label in labels.values()) for each in range(len(CLASS_NAMES))]
    small = [(n, CLASS_NAMES[label]) for label, n in enumerate(counts) if 0 < n < config.disclosure.min_cell]
    return sorted(small) if small or not labels else None


def withheld_folds(runs: Sequence[PlannedRun], sites: Mapping[str, SiteConfig]) -> list[str]:
    """What the sites will withhold of the folds' tests, as lines for a person; none where they show all.

    Args:
        runs: All folds of every repeat.
        sites: By name.

    Raises:
        ConfigError: If no figures can come out: a site shows some folds and not others, or too few sites show any.
    """
    withheld: dict[str, list[str]] = {}
    lines = []
    for name, config in sites.items():
        fewest = None
        for run in runs:
            small = _small_test(config, run.study)
            if small is not None:
                withheld.setdefault(name, []).append(run.name)
                fewest = min(small[0], fewest) if small and fewest else (small[0] if small else fewest)
        if name in withheld:
            what = "no test patients" if fewest is None else f"only {fewest[0]} {fewest[1]} in one of them"
            lines.append(
                f"{name} will withhold the test counts of {len(withheld[name])} of {len(runs)} folds: {what}, "
                f"disclosure.min_cell {config.disclosure.min_cell}"
            )
    if not lines:
        return []
    some = [name for name, folds in withheld.items() if len(folds) < len(runs)]
    num_shown = len(sites) - len(withheld)
    needed = runs[0].study.evaluation.min_pooled_sites
    advice = "take fewer folds, lower min_cell at these sites where that is allowed, or leave these sites out"
    if some:
        lines.append(f"folds whose counts are of different sites cannot be added up ({', '.join(some)}); {advice}")
        raise ConfigError(list_of_faults("cross-validation", lines))
    if num_shown < needed:
        lines.append(f"{num_shown} sites show theirs, evaluation.min_pooled_sites is {needed}; {advice}")
        raise ConfigError(list_of_faults("cross-validation", lines))
    return lines
