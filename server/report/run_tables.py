"""Tables about the run: what each site brought, the cohorts, the rounds, settings, hashes and versions."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from common.study import Study
from common.tasks import SPLITS, Split
from server.report.curves import ValidatedState
from server.report.reading import InitialWeights, Record, RoundLine, SiteBrought
from server.report.table import Cell, Row, Table, column_sums, share_of, words
from server.report.wording import (
    CROP_WORDS,
    SEQUENCE_WORDS,
    counts_by_name,
    duration,
    size,
    three,
)

MAX_ROUND_ROWS = 120
MAX_NAMED_ENTRIES = 4
_SPLIT_WORDS: dict[Split, str] = {"train": "training", "validation": "validation", "test": "test"}


def cohort_table(record: Record) -> Table:
    """Patients of each class in each split, exams, missing sequences and how crop centres were found."""
    numbers = {name: _patients(site) for name, site in record.sites.items()}
    rows = [
        Row(
            Cell(name),
            (
                *(Cell(str(number)) for number in numbers[name]),
                words(counts_by_name(site.missing_sequences, SEQUENCE_WORDS)),
                words(counts_by_name(site.crop_centers, CROP_WORDS)),
            ),
        )
        for name, site in sorted(record.sites.items())
    ]
    if len(rows) > 1:
        totals = column_sums(list(numbers.values()))
        sites = list(record.sites.values())
        missing = counts_by_name(_summed(site.missing_sequences for site in sites), SEQUENCE_WORDS)
        crops = counts_by_name(_summed(site.crop_centers for site in sites), CROP_WORDS)
        rows.append(Row(Cell("All"), (*(Cell(str(n)) for n in totals), words(missing), words(crops)), strong=True))
    return Table(
        "Patients of each site, recurrence + necrosis in each split",
        ("Site", *_cohort_header(), "Exams", "Exams without a sequence", "Crop centre"),
        tuple(rows),
    )


def _cohort_header() -> list[str]:
    return [f"{_SPLIT_WORDS[split].capitalize()} {label}" for split in SPLITS for label in ("rec.", "necr.")]


def _patients(site: SiteBrought) -> list[int]:
    per_split = [number for split in SPLITS for number in site.num_patients[split]]
    return [*per_split, sum(site.num_exams.values())]


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, number in each.items():
            total[name] = total.get(name, 0) + number
    return total


def contribution_table(record: Record, rounds: Sequence[RoundLine]) -> Table:
    """What each site put into the shared model: patients, weight, rounds, time, and how its training loss fell."""
    names = sorted({*record.training_sites, *(name for line in rounds for name in line.sites)})
    weights = dict.fromkeys(names, 0.0)
    for line in rounds:
        accepted = {name: site.weight or 0.0 for name, site in line.sites.items() if site.status == "accepted"}
        total = sum(accepted.values())
        for name, weight in accepted.items():
            weights[name] += weight / total if total else 0.0
    rows = [_contribution_row(name, record, rounds, weights[name]) for name in names]
    return Table(
        "What each site put into the shared model" if record.no_model is None else "What each site trained by itself",
        (
            "Site",
            "Training patients",
            "Rounds accepted",
            "Mean share of the update",
            "Training loss, first → last",
            "Time a round",
            "Sent to the coordinator",
        ),
        tuple(rows),
    )


def _contribution_row(name: str, record: Record, rounds: Sequence[RoundLine], weight: float) -> Row:
    done = [site for line in rounds if (site := line.sites.get(name)) is not None and site.status == "accepted"]
    losses = [site.train_loss for site in done if site.train_loss is not None]
    seconds = [sum(site.seconds) for site in done if site.seconds is not None]
    brought = record.sites.get(name)
    return Row(
        Cell(name),
        (
            Cell("–" if brought is None else str(sum(brought.num_patients["train"]))),
            Cell(f"{len(done)}/{len(rounds)}"),
            Cell(share_of(weight, len(rounds)) if record.no_model is None else "–"),
            Cell(f"{three(losses[0])} → {three(losses[-1])}" if losses else "–"),
            Cell(duration(sum(seconds) / len(seconds)) if seconds else "–"),
            Cell(size(sum(site.received_bytes or 0 for site in done)) if done else "–"),
        ),
    )


def milestones_table(states: Sequence[ValidatedState], *, chosen: int | None) -> Table:
    """Pooled validation of the model the run began from, of the chosen one and of the last one."""
    by_round = {state.round: state for state in states}
    names = {states[-1].round: "last"} | {0: "the start"} | ({} if chosen is None else {chosen: "chosen"})
    rows = []
    for round in sorted(names.keys() & by_round.keys()):
        state = by_round[round]
        loss = state.validation.loss
        cells = (
            Cell(str(state.num_patients) if state.num_patients else "–"),
            _auc_cell(state),
            Cell("–" if loss is None else three(loss)),
        )
        rows.append(Row(Cell(f"{round}, {names[round]}"), cells, strong=round == chosen))
    header = ("After round", "Patients", "Validation AUC", "Loss (nats)")
    caption = "Pooled validation, where the model was chosen"
    if any(state.validation.kind == "within_site" for state in states):
        caption = "Validation of all sites, each under its own model; AUC within sites"
    return Table(caption, header, tuple(rows))


def _auc_cell(state: ValidatedState) -> Cell:
    auc = state.validation.auc
    if auc is None or auc.value is None:
        return Cell("–")
    if auc.low is None or auc.high is None:
        return Cell(three(auc.value), "no interval")
    return Cell(three(auc.value), f"[{three(auc.low)}, {three(auc.high)}]")


def rounds_table(states: Sequence[ValidatedState], rounds: Sequence[RoundLine], *, chosen: int | None) -> Table:
    """The figures behind the training curves; a long run is thinned out."""
    step = max(1, -(-len(states) // MAX_ROUND_ROWS))
    by_round = {line.round: line for line in rounds}
    rows = []
    for place, state in enumerate(states):
        if place % step and state.round != chosen and place != len(states) - 1:
            continue
        auc, line = state.validation.auc, by_round.get(state.round)
        missing = sum(site.status != "accepted" for site in line.sites.values()) if line is not None else 0
        rows.append(
            Row(
                Cell(f"{state.round}" + (" (chosen)" if state.round == chosen else "")),
                (
                    Cell(str(state.num_patients) if state.num_patients else "–"),
                    _auc_cell(state),
                    Cell("–" if auc is None or auc.bin_error is None else three(auc.bin_error)),
                    Cell("–" if state.validation.loss is None else three(state.validation.loss)),
                    Cell("–" if line is None else f"{len(line.sites) - missing}/{len(line.sites)}"),
                    Cell("–" if line is None else f"{line.learning_rate:.2g}"),
                    Cell("–" if line is None else duration(line.seconds)),
                ),
                strong=state.round == chosen,
            )
        )
    thinned = "" if step == 1 else f", every {step}th; all of them stand in rounds.jsonl"
    return Table(
        f"Pooled validation of the state after each round{thinned}",
        (
            "After round",
            "Patients",
            "Validation AUC",
            "Binning moves it by at most",
            "Loss (nats)",
            "Sites accepted",
            "Learning rate",
            "Time",
        ),
        tuple(rows),
    )


def settings_tables(study: Study) -> tuple[Table, ...]:
    """The study, a table for each of its parts, with what each setting is."""
    plain: list[Row] = []
    tables: list[Table] = []
    for name, info in Study.model_fields.items():
        value = getattr(study, name)
        if isinstance(value, BaseModel):
            tables.append(_settings(name.capitalize(), _setting_rows(value)))
        else:
            plain.append(_setting_row(name, value, info.description))
    return (_settings("Study", plain), *tables)


def _settings(caption: str, rows: list[Row]) -> Table:
    return Table(caption, ("Setting", "Value", "What it is"), tuple(rows), words=True)


def _setting_rows(part: BaseModel, prefix: str = "") -> list[Row]:
    rows: list[Row] = []
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            rows += _setting_rows(value, prefix=f"{name}.")
        else:
            rows.append(_setting_row(prefix + name, value, info.description))
    return rows


def _setting_row(name: str, value: object, description: str | None) -> Row:
    return Row(Cell(name, code=True), (Cell(_value_text(value), words=True, code=True), words(description or "")))


def _value_text(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case tuple():
            return ", ".join(_value_text(each) for each in value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def identity_table(record: Record) -> Table:
    """Digests that say which study and which models these figures belong to."""
    rows = [Row(Cell("Study, SHA-256"), (Cell(record.study_digest, words=True, code=True),))]
    for name, model in (record.models or {}).items():
        label = f"{name.capitalize()} model, round {model.round}: {model.file}, SHA-256"
        rows.append(Row(Cell(label), (Cell(model.sha256, words=True, code=True),)))
    return Table("Hashes", ("Of what", "Hash"), tuple(rows), words=True)


def weights_table(weights: InitialWeights) -> Table:
    """What of the network came from the file of weights the run began from, and what did not."""
    parts = [
        ("Taken from the file", weights.loaded),
        ("Not in the file, set to 0", weights.zeroed),
        ("Not in the file, as drawn from the seed", weights.missing),
        ("In the file, without a place in the shared model", weights.unexpected),
    ]
    rows = [Row(Cell("File, SHA-256"), (Cell(weights.sha256, words=True, code=True),))]
    rows += [Row(Cell(name), (words(_counted_entries(entries)),)) for name, entries in parts]
    return Table("Initial weights", ("What", "Entries of the model"), tuple(rows), words=True)


def _counted_entries(entries: Sequence[str]) -> str:
    if not entries or len(entries) > MAX_NAMED_ENTRIES:
        return str(len(entries)) if entries else "none"
    return f"{len(entries)}: {', '.join(entries)}"


def case_lists_table(record: Record) -> Table:
    """Beginnings of the keyed hashes of every site's case lists: equal hashes, equal patients."""
    rows = [
        Row(Cell(name), tuple(Cell(site.cohort_digests[split][:16], words=True, code=True) for split in SPLITS))
        for name, site in sorted(record.sites.items())
    ]
    header = ("Site", *(_SPLIT_WORDS[split].capitalize() for split in SPLITS))
    return Table("Case lists, first 16 digits of their keyed hashes", header, tuple(rows), words=True)


def versions_table(record: Record) -> Table:
    """Versions of the programs and the device at the coordinator and at every site."""
    names = sorted({*record.versions, *(name for site in record.sites.values() for name in site.versions)})
    rows = [
        Row(Cell("Coordinator"), (words("–"), words("–"), *(words(record.versions.get(name, "–")) for name in names)))
    ]
    rows += [
        Row(
            Cell(name),
            (
                words(site.device),
                words(str(site.torch_threads)),
                *(words(site.versions.get(program, "–")) for program in names),
            ),
        )
        for name, site in sorted(record.sites.items())
    ]
    return Table("Programs and devices", ("Where", "Device", "Threads", *names), tuple(rows), words=True)
