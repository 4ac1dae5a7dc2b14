"""Reads what a run left behind: `record.json` and `rounds.jsonl`, as typed values or a clear error."""

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.metrics.auc import Auc, MacroAuc
from common.metrics.heterogeneity import BetweenSites
from common.metrics.pooled import Figures
from common.metrics.proportions import IntervalMethod
from common.study import Study
from common.tasks import Split
from server.record import Outcome
from server.records import SiteRound
from server.run_folder import RunFolder

ModelT = TypeVar("ModelT", bound=BaseModel)
EvaluationName = Literal["validation", "test", "personal_validation", "personal_test"]
"""An evaluation of the chosen model, or of the sites' own models of the same round."""


class _Part(BaseModel):
    """A part of a record; fields that this version does not know are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SiteBrought(_Part):
    """What a site registered; see `common.tasks.SiteManifest`."""

    num_patients: dict[Split, tuple[int, int]]
    num_exams: dict[Split, int]
    cohort_digests: dict[Split, str]
    missing_sequences: dict[str, int]
    crop_centers: dict[str, int]
    device: str
    torch_threads: int
    versions: dict[str, str]


class ValidationAuc(_Part):
    """A round's pooled validation AUC."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None
    bin_error: float | None


class ValidationSummary(_Part):
    """The pooled validation of one model state; see `server.pooling.summary`."""

    sites: list[str]
    missing: dict[str, str]
    not_pooled: str | None
    num_patients: tuple[int, int] | None
    loss: float | None
    auc: ValidationAuc | None
    kind: Literal["pooled", "within_site"] = "pooled"


class RoundLine(_Part):
    """A line of `rounds.jsonl`; see `server.records.RoundRecord`."""

    round: int
    learning_rate: float
    class_weights: tuple[float, float]
    fedprox_mu: float
    sites: dict[str, SiteRound]
    evaluated_round: int
    validation: ValidationSummary
    started_at: str
    seconds: float


class BestRound(_Part):
    """The chosen round."""

    round: int
    num_patients: int
    auc: float | None
    loss: float | None


class Selection(_Part):
    """Which round's model was chosen, by which rule, and how the last state did.

    Attributes:
        rounds: The round of each site's model, where every site trained and chose by itself; empty otherwise.
    """

    rule: str
    best: BestRound
    last_validation: ValidationSummary
    rounds: dict[str, int] = {}


class OwnThreshold(_Part):
    """The threshold of one site's own model."""

    threshold: float | Literal["inf", "-inf"] | None
    reason: str | None


class OperatingPoint(_Part):
    """The frozen threshold on the logit margin; "inf" calls nobody necrosis and "-inf" everybody.

    Attributes:
        personal: That of the sites' own models, where the study has them.
        per_site: Of models that are each site's own, the threshold of each; None where one holds for all.
    """

    rule: str
    threshold: float | Literal["inf", "-inf"] | None
    reason: str | None
    personal: "OperatingPoint | None" = None
    per_site: dict[str, OwnThreshold] | None = None


class EvaluationFigures(_Part):
    """The figures of one evaluation; see `common.metrics.pooled.PooledFigures`."""

    confidence: float
    interval: IntervalMethod
    pooled: Figures
    per_site: dict[str, Figures]
    within_site_auc: Auc
    macro_auc: MacroAuc
    sensitivity_between_sites: BetweenSites | None
    specificity_between_sites: BetweenSites | None
    auc_between_sites: BetweenSites


class Evaluated(_Part):
    """One evaluation of the chosen model; `figures` is None where none could be pooled."""

    missing: dict[str, str]
    not_pooled: str | None
    figures: EvaluationFigures | None
    roc: list[tuple[float, float, float | Literal["inf", "-inf"]]]


class WrittenModel(_Part):
    """A model file of the run."""

    round: int
    file: str
    sha256: str
    state_digest: str


class InitialWeights(_Part):
    """What became of the file of weights the run began from; see `common.models.medicalnet.WeightsReport`."""

    sha256: str
    loaded: list[str]
    zeroed: list[str]
    missing: list[str]
    unexpected: list[str]


class Record(_Part):
    """`record.json`. What only a run with a result has is None for an INVALID one."""

    schema_number: Literal[1] = Field(alias="schema")
    notice: str
    run: str
    outcome: Outcome
    problems: list[str]
    started_at: str | None
    finished_at: str
    num_resumed: int
    engine: str
    study: Study
    study_digest: str
    sites: dict[str, SiteBrought]
    not_joined: dict[str, str]
    quarantined: dict[str, str]
    rounds_done: int
    versions: dict[str, str]
    initial_weights: InitialWeights | None = None
    selection: Selection | None = None
    operating_point: OperatingPoint | None = None
    figures: dict[EvaluationName, Evaluated] | None = None
    models: dict[str, WrittenModel] | None = None
    no_model: str | None = None

    @property
    def expected_sites(self) -> list[str]:
        """All sites that were expected, joined or not, by name."""
        return sorted({*self.sites, *self.not_joined})

    @property
    def has_own_models(self) -> bool:
        """Whether every site trained by itself, so that the models of the figures differ from site to site."""
        return self.study.aggregation.method == "local"

    @property
    def held_out_sites(self) -> list[str]:
        """Sites that never train and take part in the test alone, by name."""
        return sorted(self.study.participation.held_out)

    @property
    def training_sites(self) -> list[str]:
        """All sites that were expected to train, joined or not, by name."""
        return [site for site in self.expected_sites if site not in self.held_out_sites]

    def evaluated(self, name: EvaluationName) -> Evaluated | None:
        """One evaluation; None in a run without a result, and of own models in a study without."""
        return None if self.figures is None else self.figures.get(name)


def read_record(folder: RunFolder) -> Record:
    """The record of a run that has ended.

    Raises:
        ConfigError: If there is none, or it is damaged or of another version.
    """
    _require_folder(folder)
    text = _text_of(
        folder,
        "record.json",
        f"it is written when a run ends; look at how far this one is with `gliorn-server status {folder.path}`",
    )
    return _parsed(text, Record, f"{folder.record}")


def read_round_lines(folder: RunFolder, *, at_most: int | None = None) -> list[RoundLine]:
    """The finished rounds, in order.

    Args:
        folder: The run.
        at_most: Rounds that count; a line beyond them was left by a run that was killed before it could commit it.

    Raises:
        ConfigError: If the file is absent or damaged, with the line.
    """
    _require_folder(folder)
    text = _text_of(folder, "rounds.jsonl", "restore it from a copy")
    lines = text.splitlines()[:at_most]
    rounds = [_parsed(line, RoundLine, f"{folder.rounds}: line {n}") for n, line in enumerate(lines, start=1)]
    for number, line in enumerate(rounds, start=1):
        if line.round != number:
            raise ConfigError(f"{folder.rounds}: line {number} is of round {line.round}; restore it from a copy")
    if at_most is not None and len(rounds) < at_most:
        raise ConfigError(
            f"{folder.rounds}: {len(rounds)} rounds, expected the {at_most} that the record names; "
            "restore it from a copy"
        )
    return rounds


def _require_folder(folder: RunFolder) -> None:
    if not folder.path.is_dir():
        raise ConfigError(f"{folder.path}: no such folder, expected the folder of a run; check the path")
    if not folder.study.is_file():
        raise ConfigError(f"{folder.path}: no study.yaml in it, expected the folder of a run; check the path")


def _text_of(folder: RunFolder, name: str, advice: str) -> str:
    path = folder.path / name
    if not path.is_file():
        raise ConfigError(f"{folder.path}: no {name} in it; {advice}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: unreadable ({type(error).__name__}); restore it from a copy") from None


def _parsed(text: str, model: type[ModelT], origin: str) -> ModelT:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{origin}: damaged, or written by another version of this program"
            f"{f' (at {where}: ' if where else ' ('}{first['msg']}); restore it from a copy"
        ) from None
