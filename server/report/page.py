"""Everything a report shows, gathered from the record and the rounds of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.report.curves import (
    draw_training_loss,
    draw_validation_auc,
    draw_validation_loss,
    validated_states,
)
from server.report.figure_tables import (
    Hero,
    between_table,
    calibration_table,
    confusion_rows,
    headline_table,
    heroes,
    personal_table,
    site_table,
    three_aucs_table,
    threshold_table,
)
from server.report.figures import ForestRow, draw_calibration, draw_forest, draw_roc, estimate_of, forest_rows
from server.report.participation import Absence, Grid, absences, participation_grid
from server.report.reading import (
    Evaluated,
    EvaluationFigures,
    OperatingPoint,
    OwnThreshold,
    Record,
    RoundLine,
    Selection,
)
from server.report.run_tables import (
    case_lists_table,
    cohort_table,
    contribution_table,
    identity_table,
    milestones_table,
    rounds_table,
    settings_tables,
    versions_table,
    weights_table,
)
from server.report.table import Table
from server.report.wording import (
    and_list,
    count,
    duration,
    moment,
    percent_name,
    rule_text,
    size,
    three,
    threshold_text,
)

OUTCOME_SIGNS = {"COMPLETE": "✓", "DEGRADED": "!", "INVALID": "×"}
MAX_PROBLEMS_ON_TOP = 8


@dataclass(frozen=True)
class Fact:
    """A name and what it is."""

    name: str
    text: str


@dataclass(frozen=True)
class TestPart:
    """What the test brought, where pooled figures were formed.

    Attributes:
        threshold_reason: Why there are no figures at a threshold; empty where there are.
        roc: None where a class has no patients.
        calibration: None without patients.
    """

    summary: str
    heroes: tuple[Hero, ...]
    hero_notes: tuple[tuple[str, str], ...]
    certificate: str
    threshold_reason: str
    headline: Table
    sites: Table
    forests: tuple[Markup, ...]
    between: Table | None
    roc: Markup | None
    confusion: tuple[tuple[str, tuple[tuple[int, float, str], ...]], ...]
    threshold: tuple[Fact, ...]
    threshold_table: Table | None
    calibration: Markup
    calibration_table: Table
    three_aucs: Table


@dataclass(frozen=True)
class PersonalPart:
    """What the sites' own models brought beside the shared one.

    Attributes:
        not_pooled: Why there are no pooled figures of them; empty where there are.
        missing: Sites that are not in these figures, with the reason.
    """

    method: str
    not_pooled: str
    missing: tuple[tuple[str, str], ...]
    threshold: tuple[Fact, ...]
    table: Table | None


@dataclass(frozen=True)
class TrainingPart:
    """What the rounds brought; the figures are empty where no round was pooled."""

    curves: tuple[Markup, ...]
    remark: str
    choice: str
    milestones: Table
    rounds: Table


@dataclass(frozen=True)
class Page:
    """A whole report."""

    record: Record
    outcome_sign: str
    outcome_words: str
    outcome_remark: str
    problems: tuple[str, ...]
    more_problems: int
    facts: tuple[Fact, ...]
    confidence: str
    test: TestPart | None
    not_pooled: str
    test_missing: tuple[tuple[str, str], ...]
    personal: PersonalPart | None
    has_own_models: bool
    training: TrainingPart | None
    grid: Grid | None
    absences: tuple[Absence, ...]
    contribution: Table | None
    cohorts: Table | None
    run_facts: tuple[Fact, ...]
    weights: Table | None
    identity: Table
    case_lists: Table | None
    versions: Table
    settings: tuple[Table, ...]
    interval: str


def page_of(record: Record, rounds: Sequence[RoundLine]) -> Page:
    """Gather a report.

    Args:
        record: The run's record.
        rounds: Its finished rounds, in order.
    """
    test = record.evaluated("test")
    figures = None if test is None else test.figures
    spec = record.study.evaluation
    return Page(
        record=record,
        outcome_sign=OUTCOME_SIGNS[record.outcome],
        outcome_words=_outcome_words(record),
        outcome_remark=_outcome_remark(test),
        problems=tuple(record.problems[:MAX_PROBLEMS_ON_TOP]),
        more_problems=max(0, len(record.problems) - MAX_PROBLEMS_ON_TOP),
        facts=_facts(record),
        confidence=percent_name(spec.confidence),
        test=None if test is None or figures is None else _test_part(record, test, figures),
        not_pooled="" if test is None or test.not_pooled is None else test.not_pooled,
        test_missing=() if test is None else tuple(test.missing.items()),
        personal=_personal_part(record),
        has_own_models=record.has_own_models,
        training=_training_part(record, rounds) if rounds else None,
        grid=participation_grid(record, rounds) if rounds else None,
        absences=tuple(absences(rounds)),
        contribution=contribution_table(record, rounds) if rounds else None,
        cohorts=cohort_table(record) if record.sites else None,
        run_facts=_run_facts(record, rounds),
        weights=None if record.initial_weights is None else weights_table(record.initial_weights),
        identity=identity_table(record),
        case_lists=case_lists_table(record) if record.sites else None,
        versions=versions_table(record),
        settings=settings_tables(record.study),
        interval={"wilson": "Wilson", "clopper-pearson": "Clopper–Pearson"}[spec.interval],
    )


def _outcome_words(record: Record) -> str:
    sites = count(len(record.training_sites), "site")
    rounds = count(record.rounds_done, "round")
    match record.outcome:
        case "COMPLETE":
            all_sites = f"All {sites}" if len(record.training_sites) > 1 else "The one site"
            words = f"{all_sites} took part in every one of the {rounds} and answered in both evaluations."
            if held_out := record.held_out_sites:
                words += f" {and_list(held_out)} trained in none, as the study says, and answered in the test."
            return words
        case "DEGRADED":
            sites = count(len(record.expected_sites), "site")
            return f"There is a result, but not every one of the {sites} took part throughout the {rounds}:"
        case "INVALID":
            when = f"after {rounds}" if record.rounds_done else "before its first round was done"
            return f"There is no result. The run ended {when}:"


def _outcome_remark(test: Evaluated | None) -> str:
    """What a reader of a run with a result must know before the figures: who is not in them."""
    if test is None or not test.missing:
        return ""
    number = count(len(test.missing), "site")
    if test.figures is None:
        return f"No pooled test figure could be formed; the counts of {number} are missing."
    return f"The pooled test figures are without {number}, named below with the reason."


def _choice(record: Record) -> str:
    if record.selection is None:
        return ""
    best = record.selection.best
    if record.has_own_models:
        return f"Chosen by {record.selection.rule}."
    if best.loss is None:
        return f"No state has a pooled validation result, so the last one was kept: that after round {best.round}."
    return f"Chosen: the state after round {best.round} ({record.selection.rule})."


def _facts(record: Record) -> tuple[Fact, ...]:
    facts = [
        Fact("Study", record.study.name),
        Fact("Run", record.run),
        Fact("Ended", moment(record.finished_at)),
        Fact("Sites", _sites_text(record)),
        Fact("Rounds", _rounds_text(record)),
    ]
    if record.sites:
        totals = {
            split: [sum(site.num_patients[split][label] for site in record.sites.values()) for label in (0, 1)]
            for split in ("train", "validation", "test")
        }
        text = " / ".join(str(sum(pair)) for pair in totals.values())
        facts.append(Fact("Patients: training / validation / test", text))
    if record.no_model is not None:
        facts.append(Fact("Model", record.no_model))
    if record.selection is not None:
        facts.append(_chosen_fact(record.selection))
    return tuple(facts)


def _chosen_fact(selection: Selection) -> Fact:
    if selection.rounds:
        each = ", ".join(f"{site} after round {round}" for site, round in selection.rounds.items())
        return Fact("Chosen models", each)
    return Fact("Chosen model", f"after round {selection.best.round}")


def _sites_text(record: Record) -> str:
    expected, joined = len(record.expected_sites), len(record.sites)
    return str(expected) if joined == expected else f"{joined} of {expected} joined"


def _rounds_text(record: Record) -> str:
    done, planned = record.rounds_done, record.study.rounds
    return str(done) if done == planned else f"{done} of {planned}"


def _test_part(record: Record, test: Evaluated, figures: EvaluationFigures) -> TestPart:
    shown, notes = heroes(figures, own_models=record.has_own_models)
    pooled = figures.pooled
    bin_error = pooled.auc.bin_error
    return TestPart(
        summary=_summary(figures, threshold="thresholds of the sites" if record.has_own_models else "threshold")
        + _norms_remark(record),
        heroes=shown,
        hero_notes=notes,
        certificate="" if bin_error is None else three(bin_error),
        threshold_reason=_threshold_reason(record) if pooled.at_threshold is None else "",
        headline=headline_table(figures, own_models=record.has_own_models),
        sites=site_table(
            test,
            figures,
            model="the shared model" if record.no_model is None else "each site’s own model",
            own_models=record.has_own_models,
        ),
        forests=_forests(figures, own_models=record.has_own_models),
        between=between_table(figures),
        roc=draw_roc(test.roc, pooled, confidence=figures.confidence) if test.roc else None,
        confusion=confusion_rows(figures),
        threshold=_threshold_facts(record),
        threshold_table=threshold_table(
            {"Validation, where it was chosen": record.evaluated("validation"), "Test": record.evaluated("test")}
        ),
        calibration=draw_calibration(pooled.calibration.tenths, confidence=figures.confidence),
        calibration_table=calibration_table(figures),
        three_aucs=three_aucs_table(figures),
    )


def _norms_remark(record: Record) -> str:
    """What a pooled AUC compares where part of the model is another one at each site; nothing where all is shared."""
    match record.study.model.norm:
        case "fedbn":
            own = "scale, shift and statistics of its normalisation layers"
        case "silobn":
            own = "statistics of its normalisation layers"
        case _:
            return ""
    return (
        f" Each site scores its patients with its own {own} in the shared model; pooled figures compare scores across "
        "sites all the same, as one threshold for all of them does."
    )


def _summary(figures: EvaluationFigures, *, threshold: str) -> str:
    pooled = figures.pooled
    num = pooled.num_recurrence + pooled.num_necrosis
    text = (
        f"{count(num, 'test patient')} of {count(len(figures.per_site), 'site')}: "
        f"{pooled.num_necrosis} with radiation necrosis (the positive class) and {pooled.num_recurrence} with "
        "glioma recurrence."
    )
    if (at := pooled.at_threshold) is not None and at.counts.num_patients:
        text += (
            f" At the {threshold} frozen before the test, {at.counts.true_positive} of {at.counts.num_necrosis} "
            f"necroses and {at.counts.true_negative} of {at.counts.num_recurrence} recurrences are called what they "
            "are."
        )
    return text


def _personal_part(record: Record) -> PersonalPart | None:
    shared, own = record.evaluated("test"), record.evaluated("personal_test")
    point = None if record.operating_point is None else record.operating_point.personal
    if shared is None or own is None or point is None:
        return None
    method = {"ditto": "Ditto", "fine_tune": "fine-tuning of the last block"}[record.study.personalization.method]
    threshold = (
        Fact("Rule", f"{rule_text(point.rule)}, at each site on its own validation patients under its own model"),
        *_own_thresholds(point),
    )
    is_shown = shared.figures is not None or own.figures is not None
    return PersonalPart(
        method=method,
        not_pooled=own.not_pooled or "",
        missing=tuple(own.missing.items()),
        threshold=threshold,
        table=personal_table(shared, own) if is_shown else None,
    )


def _own_thresholds(point: OperatingPoint) -> tuple[Fact, ...]:
    """The thresholds of models that are each site's own."""
    return tuple(Fact(f"Threshold of {site}", _own_text(each)) for site, each in (point.per_site or {}).items())


def _own_text(own: OwnThreshold) -> str:
    return own.reason if own.reason is not None else threshold_text(own.threshold)


def _threshold_reason(record: Record) -> str:
    point = record.operating_point
    if point is not None and point.per_site is not None:
        without = [site for site, own in point.per_site.items() if own.threshold is None]
        return f"not every site counted at one ({and_list(without)})" if without else "no site chose one"
    return (point.reason if point is not None else None) or "the test was not counted at a threshold"


def _forests(figures: EvaluationFigures, *, own_models: bool) -> tuple[Markup, ...]:
    several = len(figures.per_site) > 1
    measures = (
        ("AUC", "auc", figures.auc_between_sites, 0.5),
        ("Sensitivity", "sensitivity", figures.sensitivity_between_sites, None),
        ("Specificity", "specificity", figures.specificity_between_sites, None),
    )
    drawn = []
    for title, measure, between, chance in measures:
        is_within = own_models and measure == "auc"
        pooled = figures.within_site_auc.estimate if is_within else estimate_of(figures.pooled, measure)
        estimates = [pooled, *(estimate_of(figures_of_site, measure) for figures_of_site in figures.per_site.values())]
        if pooled is not None and any(each is not None and each.value is not None for each in estimates):
            patients = figures.pooled.num_recurrence + figures.pooled.num_necrosis
            rows = forest_rows(figures.per_site, measure)
            whole = ForestRow("Within sites" if is_within else "All patients pooled", pooled, patients)
            drawn.append(draw_forest(rows, whole, between if several else None, measure=title, chance=chance))
    return tuple(drawn)


def _threshold_facts(record: Record) -> tuple[Fact, ...]:
    point = record.operating_point
    if point is None:
        return ()
    if point.per_site is not None:
        rule = Fact("Rule", f"{rule_text(point.rule)}, at each site on its own validation patients")
        return (rule, *_own_thresholds(point))
    rule = Fact("Rule", f"{rule_text(point.rule)}, on the pooled validation patients")
    return (rule, Fact("Threshold", threshold_text(point.threshold)))


def _training_part(record: Record, rounds: Sequence[RoundLine]) -> TrainingPart:
    states = validated_states(record, rounds)
    chosen = None if record.selection is None or record.has_own_models else record.selection.best.round
    curves = []
    if any(state.validation.auc is not None and state.validation.auc.value is not None for state in states):
        curves.append(draw_validation_auc(states, chosen=chosen, confidence=record.study.evaluation.confidence))
    if any(state.validation.loss is not None for state in states):
        curves.append(draw_validation_loss(states, chosen=chosen))
    curves.append(draw_training_loss(rounds, chosen=chosen))
    reasons = {state.validation.not_pooled for state in states if state.validation.not_pooled}
    remark = f"States without a pooled figure: {'; '.join(sorted(reasons))}." if reasons else ""
    return TrainingPart(
        tuple(curves),
        remark,
        _choice(record),
        milestones_table(states, chosen=chosen),
        rounds_table(states, rounds, chosen=chosen),
    )


def _run_facts(record: Record, rounds: Sequence[RoundLine]) -> tuple[Fact, ...]:
    facts = [
        Fact("Engine", record.engine),
        Fact("First round began", moment(record.started_at) if record.started_at else "never"),
        Fact("Ended", moment(record.finished_at)),
        Fact("Continued after a stop", {0: "never", 1: "once"}.get(record.num_resumed, f"{record.num_resumed} times")),
        Fact("Seed", str(record.study.seed)),
    ]
    if rounds:
        replies = [site for line in rounds for site in line.sites.values()]
        weights = " and ".join(three(weight) for weight in rounds[-1].class_weights)
        facts += [
            Fact("Time in rounds", duration(sum(line.seconds for line in rounds))),
            Fact("Time of all sites together", duration(sum(sum(site.seconds) for site in replies if site.seconds))),
            Fact("Model states received", size(sum(site.received_bytes or 0 for site in replies))),
            Fact("Loss weights of recurrence and necrosis, last round", weights),
        ]
    if record.selection is not None:
        facts.append(Fact("Selection of the model", record.selection.rule))
    return tuple(facts)
