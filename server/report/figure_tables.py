"""Tables of figures: headline, every site beside the pool, confusion matrix, three AUCs, between sites, calibration."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.metrics.confusion import Confusion
from common.metrics.estimate import Estimate
from common.metrics.heterogeneity import BetweenSites
from common.metrics.pooled import Figures
from server.report.figures import estimate_of
from server.report.reading import Evaluated, EvaluationFigures
from server.report.table import Cell, Notes, Row, Table, estimate_cell, words
from server.report.wording import and_list, count, percent_name, three, with_interval


@dataclass(frozen=True)
class Hero:
    """One of the three figures that stand large at the top."""

    name: str
    cell: Cell
    meaning: str


def heroes(figures: EvaluationFigures, *, own_models: bool) -> tuple[tuple[Hero, ...], tuple[tuple[str, str], ...]]:
    """AUC, sensitivity and specificity of the pool, and the notes that belong to them.

    Args:
        figures: Of the test.
        own_models: Whether the models differ from site to site; the AUC is that within sites then.
    """
    pooled, notes = figures.pooled, Notes()
    if own_models:
        auc = estimate_cell(figures.within_site_auc.estimate, notes, key="test.within_site.auc", with_bar=True)
        meaning = "Chance that a necrosis scores higher than a recurrence of the same site; 0.5 is guessing"
        found = [Hero("AUC within sites", auc, meaning)]
    else:
        auc = estimate_cell(pooled.auc.estimate, notes, key="test.pooled.auc", with_bar=True)
        found = [Hero("AUC", auc, "Chance that a necrosis scores higher than a recurrence; 0.5 is guessing")]
    at = pooled.at_threshold
    if at is not None:
        counts = at.counts
        for name, estimate, of, meaning in (
            ("Sensitivity", at.sensitivity, (counts.true_positive, counts.num_necrosis), "Share of necroses called so"),
            (
                "Specificity",
                at.specificity,
                (counts.true_negative, counts.num_recurrence),
                "Share of recurrences called so",
            ),
        ):
            key = f"test.pooled.{name.lower()}"
            cell = estimate_cell(estimate, notes, counts=_of(*of), key=key, with_bar=True)
            found.append(Hero(name, cell, meaning))
    return tuple(found), notes.pairs()


def headline_table(figures: EvaluationFigures, *, own_models: bool) -> Table:
    """The pooled figures of the test at the frozen threshold, one to a row, with what each means.

    Args:
        figures: Of the test.
        own_models: Whether the models differ from site to site, and so do their thresholds.
    """
    notes, pooled = Notes(), figures.pooled
    meaning = "Pairs of a necrosis and a recurrence that are ranked rightly"
    if own_models:
        within = figures.within_site_auc.estimate
        rows = [_headline("AUC within sites", within, "", f"{meaning}, both of the same site", notes)]
    else:
        rows = [_headline("AUC", pooled.auc.estimate, "", meaning, notes)]
    if (at := pooled.at_threshold) is not None:
        c = at.counts
        called, cleared = c.true_positive + c.false_positive, c.true_negative + c.false_negative
        rows += [
            _headline(*line, notes)
            for line in (
                ("Sensitivity", at.sensitivity, _of(c.true_positive, c.num_necrosis), "Necroses called necrosis"),
                (
                    "Specificity",
                    at.specificity,
                    _of(c.true_negative, c.num_recurrence),
                    "Recurrences called recurrence",
                ),
                ("PPV", at.ppv, _of(c.true_positive, called), "Right among those called necrosis"),
                ("NPV", at.npv, _of(c.true_negative, cleared), "Right among those called recurrence"),
                ("Accuracy", at.accuracy, _of(c.true_positive + c.true_negative, c.num_patients), "Right calls"),
                ("Balanced accuracy", at.balanced_accuracy, "", "Mean of sensitivity and specificity"),
                ("F1", at.f1, "", "Harmonic mean of sensitivity and PPV"),
                ("MCC", at.mcc, "", "Correlation of call and truth, from −1 to 1"),
            )
        ]
        if at.prevalence is not None:
            where = f"where {100 * at.prevalence:g} % of patients have necrosis"
            rows += [
                _headline("PPV at prevalence", at.ppv_at_prevalence, "", f"PPV {where}", notes),
                _headline("NPV at prevalence", at.npv_at_prevalence, "", f"NPV {where}", notes),
            ]
    return Table(
        f"Pooled test figures with {percent_name(figures.confidence)} intervals"
        + (", counts at each site’s own threshold" if own_models else ""),
        ("Figure", "Value and interval", "Patients", "What it is"),
        tuple(rows),
        notes.pairs(),
    )


def _headline(name: str, estimate: Estimate | None, counts: str, meaning: str, notes: Notes) -> Row:
    key = "test.pooled." + name.lower().replace(" ", "_")
    cell = estimate_cell(estimate, notes, key=key, with_bar=name != "MCC")
    return Row(Cell(name), (cell, Cell(counts), words(meaning)))


def site_table(evaluated: Evaluated, figures: EvaluationFigures, *, model: str, own_models: bool) -> Table:
    """Every site's row, those without one with the reason, and the pooled row.

    Args:
        evaluated: The test.
        figures: Its figures.
        model: Which model the figures are of, in words.
        own_models: Whether that is another one at each site; the last row's AUC is that within sites then.
    """
    notes = Notes()
    header = ("Site", "Recurrence", "Necrosis", "AUC", "Sensitivity", "Specificity", "PPV", "NPV", "Accuracy")
    rows = []
    for name in sorted({*figures.per_site, *evaluated.missing}):
        if name in figures.per_site:
            rows.append(_figures_row(name, figures.per_site[name], notes, key=f"test.{name}"))
        else:
            reason = words(f"not in these figures – {evaluated.missing[name]}")
            rows.append(Row(Cell(name), (Cell(reason.text, span=len(header) - 1, words=True),)))
    last = figures.pooled
    if own_models:
        last = replace(last, auc=figures.within_site_auc)
    name = "All patients; AUC within sites" if own_models else "All patients pooled"
    rows.append(_figures_row(name, last, notes, key="sites.pooled", strong=True))
    return Table(
        f"Test figures of {model} at every site, with {percent_name(figures.confidence)} intervals",
        header,
        tuple(rows),
        notes.pairs(),
    )


def _figures_row(name: str, row: Figures, notes: Notes, *, key: str, strong: bool = False) -> Row:
    cells = [
        Cell(str(row.num_recurrence), key=f"{key}.num_recurrence"),
        Cell(str(row.num_necrosis), key=f"{key}.num_necrosis"),
        estimate_cell(row.auc.estimate, notes, key=f"{key}.auc"),
    ]
    at = row.at_threshold
    if at is None:
        cells += [Cell("–")] * 5
    else:
        for figure, estimate, counts in _shares(at.counts, at):
            cells.append(estimate_cell(estimate, notes, counts=counts, key=f"{key}.{figure}"))
    return Row(Cell(name), tuple(cells), strong)


def _shares(c: Confusion, at: object) -> list[tuple[str, Estimate, str]]:
    of = {
        "sensitivity": _of(c.true_positive, c.num_necrosis),
        "specificity": _of(c.true_negative, c.num_recurrence),
        "ppv": _of(c.true_positive, c.true_positive + c.false_positive),
        "npv": _of(c.true_negative, c.true_negative + c.false_negative),
        "accuracy": _of(c.true_positive + c.true_negative, c.num_patients),
    }
    return [(name, getattr(at, name), counts) for name, counts in of.items()]


def personal_table(shared: Evaluated, own: Evaluated) -> Table:
    """The shared model and each site's own one on the same test patients, and over all sites.

    There the AUC is that within sites, of both, since the own models' scores cannot be pooled.

    Args:
        shared: The test of the shared model.
        own: That of the sites' own models.
    """
    notes = Notes()
    models = (("shared", shared.figures), ("own", own.figures))
    names = sorted({name for _, figures in models if figures is not None for name in figures.per_site})
    rows = []
    for name in [*names, None]:
        cells = []
        for measure in ("auc", "sensitivity", "specificity"):
            for model, figures in models:
                found = None if figures is None else figures.pooled if name is None else figures.per_site.get(name)
                estimate = None if found is None else estimate_of(found, measure)
                if figures is not None and name is None and measure == "auc":
                    estimate = figures.within_site_auc.estimate  # own models' scores have no common scale
                cells.append(estimate_cell(estimate, notes, key=f"personal.{name or 'pooled'}.{model}.{measure}"))
        rows.append(Row(Cell(name or "All patients; AUC within sites"), tuple(cells), strong=name is None))
    confidence = next(figures.confidence for _, figures in models if figures is not None)
    header = [f"{measure}, {model}" for measure in ("AUC", "Sensitivity", "Specificity") for model, _ in models]
    return Table(
        f"The shared model and every site’s own one, with {percent_name(confidence)} intervals",
        ("Site", *header),
        tuple(rows),
        notes.pairs(),
    )


def between_table(figures: EvaluationFigures) -> Table | None:
    """Heterogeneity and what a new hospital should expect; None with fewer than 2 sites."""
    if len(figures.per_site) < 2:
        return None
    notes = Notes()
    measures = (
        ("AUC", figures.auc_between_sites),
        ("Sensitivity", figures.sensitivity_between_sites),
        ("Specificity", figures.specificity_between_sites),
    )
    rows = [_between_row(name, between, notes) for name, between in measures if between is not None]
    return Table(
        f"Between sites, with {percent_name(figures.confidence)} intervals",
        ("Figure", "Mean over sites", "New hospital", "I²", "τ² (logit)", "Sites"),
        tuple(rows),
        notes.pairs(),
    )


def _between_row(name: str, between: BetweenSites, notes: Notes) -> Row:
    left_out = None
    if between.sites_left_out:
        left_out = f"without {and_list(between.sites_left_out)}: no such figure, or no interval"
    prediction = estimate_cell(between.prediction, notes)
    if between.prediction.value is not None:
        prediction = Cell(prediction.detail, mark=prediction.mark)
    return Row(
        Cell(name),
        (
            estimate_cell(between.mean, notes),
            prediction,
            estimate_cell(between.i_squared, notes),
            Cell("–" if between.tau_squared is None else three(between.tau_squared)),
            Cell(str(between.mean.num), mark=notes.mark(left_out)),
        ),
    )


def three_aucs_table(figures: EvaluationFigures) -> Table:
    """Pooled, within-site and macro AUC, and the question that each answers."""
    notes = Notes()
    left_out = figures.macro_auc.sites_left_out
    over = count(figures.macro_auc.estimate.num, "site")
    without = ""
    if left_out:
        without = f"; without {and_list(left_out)}, which {'lacks' if len(left_out) == 1 else 'lack'} a class"
    questions = (
        (
            "Pooled",
            figures.pooled.auc.estimate,
            figures.pooled.auc.bin_error,
            "All pairs of patients, also across sites: how well one threshold for everybody can work.",
        ),
        (
            "Within sites",
            figures.within_site_auc.estimate,
            figures.within_site_auc.bin_error,
            "Only pairs of two "
            "patients of the same site: how well each site can rank its own patients; shifts of the score between "
            "scanners do not touch it.",
        ),
        (
            "Macro",
            figures.macro_auc.estimate,
            None,
            f"Mean of the AUCs of {over}, each counting the same{without}: how a site fares on average.",
        ),
    )
    return Table(
        f"Three AUCs, with {percent_name(figures.confidence)} intervals",
        ("AUC", "Value and interval", "Binning moves it by at most", "Which question it answers"),
        tuple(
            Row(
                Cell(name),
                (
                    estimate_cell(estimate, notes, key=f"aucs.{name.lower().replace(' ', '_')}", with_bar=True),
                    Cell("–" if bin_error is None else three(bin_error)),
                    words(answer),
                ),
            )
            for name, estimate, bin_error, answer in questions
        ),
        notes.pairs(),
    )


def calibration_table(figures: EvaluationFigures) -> Table:
    """Calibration of the pool, with what is best."""
    notes, found = Notes(), figures.pooled.calibration
    lines = (
        ("Brier score", found.brier, "0", "Mean squared error of the probability"),
        ("ECE", found.expected_calibration_error, "0", "Mean distance of observed from predicted, over tenths"),
        ("Observed − predicted", found.observed_minus_expected, "0", "Above 0: necrosis is predicted too rarely"),
        ("In the large", found.in_the_large, "0", "The same on the logit scale"),
        ("Intercept", found.intercept, "0", "Logistic fit of truth on margin"),
        ("Slope", found.slope, "1", "Below 1: probabilities are too extreme"),
        ("Log loss", found.log_loss, "0", "Mean cross-entropy, nats"),
    )
    return Table(
        f"Calibration of the pooled test patients, with {percent_name(figures.confidence)} intervals",
        ("Figure", "Value and interval", "Best", "What it is"),
        tuple(
            Row(
                Cell(name),
                (
                    estimate_cell(estimate, notes, key=f"calibration.{name.lower().replace(' ', '_')}"),
                    Cell(best),
                    words(meaning),
                ),
            )
            for name, estimate, best, meaning in lines
        ),
        notes.pairs(),
    )


def threshold_table(evaluations: Mapping[str, Evaluated | None]) -> Table | None:
    """Sensitivity and specificity at the frozen threshold, where it was chosen and where it was tested."""
    notes, rows = Notes(), []
    for name, evaluated in evaluations.items():
        at = None if evaluated is None or evaluated.figures is None else evaluated.figures.pooled.at_threshold
        if at is None:
            continue
        counts = at.counts
        cells = (
            estimate_cell(at.sensitivity, notes, counts=_of(counts.true_positive, counts.num_necrosis)),
            estimate_cell(at.specificity, notes, counts=_of(counts.true_negative, counts.num_recurrence)),
        )
        rows.append(Row(Cell(name), cells))
    header = ("Patients", "Sensitivity", "Specificity")
    return Table("At the frozen threshold", header, tuple(rows), notes.pairs()) if rows else None


def confusion_rows(figures: EvaluationFigures) -> tuple[tuple[str, tuple[tuple[int, float, str], ...]], ...]:
    """Rows of the confusion matrix: the truth, then the count of each call and its share of the row, also as text."""
    at = figures.pooled.at_threshold
    if at is None:
        return ()
    c = at.counts
    rows = (
        ("Radiation necrosis", (c.true_positive, c.false_negative), at.sensitivity),
        ("Glioma recurrence", (c.true_negative, c.false_positive), at.specificity),
    )
    found = []
    for truth, (right, wrong), share in rows:
        cells = ((right, share, with_interval(share)), (wrong, _rest(share), with_interval(_rest(share))))
        found.append((truth, tuple((number, each.value or 0.0, text) for number, each, text in cells)))
    # The second row's right call is the second column.
    return (found[0], (found[1][0], found[1][1][::-1]))


def _rest(share: Estimate) -> Estimate:
    """One minus a share, with its interval turned round."""
    if share.value is None or share.low is None or share.high is None:
        return share
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.num)


def _of(part: int, whole: int) -> str:
    return f"{part}/{whole}"
