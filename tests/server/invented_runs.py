"""Run folders with invented scores, written by the coordinator's own code, for tests of what reads a run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np

from common.metrics.bins import MarginBins
from common.metrics.site_statistics import SiteStatistics
from common.model_state import state_digest
from common.study import Study
from common.tasks import SPLITS, Evaluation, OwnChoice, SiteManifest, Split
from server import progress as checkpoint
from server.decision import Decision, decide, decided_by_sites, with_confusion, with_own_confusions
from server.evaluation import HELD_OUT
from server.pooling import Pool, candidate, pool_evaluations, summary
from server.progress import Progress
from server.record import FinalEvaluation, PersonalEvaluation, write_record
from server.records import RoundRecord, SiteRound, SiteStatus
from server.run_folder import Participants, RunFolder, create_run_folder
from server.status import StatusBoard
from tests.tiny_hospitals import study_text

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
VERSIONS = {"flwr": "1.41.0", "gliorn": "0.1.0", "monai": "1.6.1", "python": "3.11.7", "torch": "2.13.0+cpu"}


@dataclass(frozen=True)
class InventedSite:
    """A hospital that never was.

    Attributes:
        patients: Recurrence and necrosis in each split.
        shift: Added to all its scores, as another scanner would.
        withholds: Splits whose counts it does not show.
        not_accepted: Round by round, its status and the reason where it was not accepted.
        missing_test: Why it gave no test result; empty where it did.
        joined: Whether it joined at all.
    """

    name: str
    patients: Mapping[Split, tuple[int, int]] = field(
        default_factory=lambda: {"train": (30, 9), "validation": (12, 5), "test": (16, 6)}
    )
    shift: float = 0.0
    withholds: tuple[str, ...] = ()
    not_accepted: Mapping[int, tuple[SiteStatus, str]] = field(default_factory=dict)
    missing_test: str = ""
    joined: bool = True


def write_invented_run(
    path: Path,
    sites: Sequence[InventedSite],
    *,
    rounds: int = 8,
    rounds_done: int | None = None,
    error: str | None = None,
    separation: float = 1.6,
    num_resumed: int = 0,
    finished: bool = True,
    **study: object,
) -> RunFolder:
    """Write the folder of a run.

    Args:
        path: The folder to make; its name is the run's.
        sites: Who was expected.
        rounds: Rounds of the study.
        rounds_done: Rounds that were finished; all by default.
        error: Why the run ended INVALID; None for a run with a result.
        separation: Distance of the two classes' scores at the end, in standard deviations.
        num_resumed: How often it was continued.
        finished: Whether the record is written; else the run is still at its last round.
        **study: Settings that differ from the tiny study's.
    """
    participants = Participants(tuple(site.name for site in sites), "claimed", "in-process")
    folder = create_run_folder(path, study_text=study_text(rounds=rounds, **study), participants=participants)
    return _Inventor(folder, sites, separation).write(
        rounds if rounds_done is None else rounds_done, error=error, num_resumed=num_resumed, finished=finished
    )


class _Inventor:
    def __init__(self, folder: RunFolder, sites: Sequence[InventedSite], separation: float) -> None:
        self.folder = folder
        self.study: Study = folder.read_study()
        self.expected = list(sites)
        self.joined = [site for site in sites if site.joined]
        self.separation = separation
        self.rng = np.random.default_rng(1)
        self.state = {"weight": np.zeros(3, dtype=np.float32)}

    def write(self, rounds_done: int, *, error: str | None, num_resumed: int, finished: bool) -> RunFolder:
        progress = checkpoint.begin(self.folder, self.state)
        board = StatusBoard(self.folder, num_rounds=self.study.rounds)
        board.begin("joining", round=0, asked=[site.name for site in self.expected])
        for round in range(1, rounds_done + 1):
            answered = board.begin("round", round=round, asked=[site.name for site in self.joined])
            progress = self._round(round, progress)
            for site in self.joined:
                if round not in site.not_accepted:
                    answered(site.name)
        if not finished:
            return self.folder
        progress = replace(progress, num_resumed=num_resumed)
        final = None
        if error is None:
            final, progress = self._final(progress)
        write_record(
            self.folder,
            self.study,
            progress=progress,
            manifests={site.name: self._manifest(site) for site in self.joined},
            not_joined={site.name: "never connected" for site in self.expected if not site.joined},
            final=final,
            error=error,
            now=START + timedelta(minutes=3 * rounds_done + 2),
        )
        if final is not None:
            board.begin("finished", round=rounds_done, asked=[])
        return self.folder

    def _round(self, round: int, progress: Progress) -> Progress:
        sites = {site.name: self._site_round(site, round) for site in self.expected}
        missing = {name: f"{each.status}: {each.reason}" for name, each in sites.items() if each.status != "accepted"}
        pool = self._pool("validation", missing=missing, quality=self._quality(round - 1))
        values = summary(pool, study=self.study)
        if round > 1:
            new = candidate(round - 1, values)
            progress = replace(progress, best=new if new.beats(progress.best) else progress.best)
        quarantined = {name: each.reason for name, each in sites.items() if each.status == "quarantined"}
        record = RoundRecord(
            round=round,
            learning_rate=1e-3 / round,
            class_weights=(0.65, 2.17),
            fedprox_mu=self.study.training.fedprox_mu,
            sites=sites,
            evaluated_round=round - 1,
            validation=values,
            state_digest=state_digest(self.state),
            started_at=(START + timedelta(minutes=3 * round)).isoformat(timespec="seconds"),
            seconds=150.0 + round,
        )
        progress = replace(progress, quarantined=progress.quarantined | quarantined)
        return checkpoint.commit(self.folder, progress, record=record, state=self.state)

    def _site_round(self, site: InventedSite, round: int) -> SiteRound:
        if not site.joined:
            return SiteRound("absent", "never connected")
        if round in site.not_accepted:
            return SiteRound(*site.not_accepted[round])
        patients = site.patients["train"]
        loss = 0.25 + 0.5 * np.exp(-round / 5) + 0.03 * self.rng.standard_normal()
        return SiteRound(
            "accepted",
            num_patients=patients,
            weight=float(sum(patients)),
            update_norm=1.0 / round,
            num_steps=-(-sum(patients) // 4),
            train_loss=float(loss),
            optimizer="fresh",
            seconds=(4.0, 2.0 * sum(patients)),
            received_bytes=935712,
        )

    def _quality(self, round: int) -> float:
        return self.separation * (1 - float(np.exp(-round / 3)))

    def _final(self, progress: Progress) -> tuple[FinalEvaluation, Progress]:
        last = self._pool("validation", missing={}, quality=self._quality(self.study.rounds))
        new = candidate(self.study.rounds, summary(last, study=self.study))
        progress = replace(progress, best=new if new.beats(progress.best) else progress.best)
        checkpoint.save(self.folder, progress)
        best = progress.best
        assert best is not None
        quality = self._quality(best.round)
        validation = last if best.round == self.study.rounds else self._pool("validation", missing={}, quality=quality)
        decision = decide(validation, self.study)
        missing = {site.name: site.missing_test for site in self.expected if site.missing_test}
        missing |= {site.name: "absent: never connected" for site in self.expected if not site.joined}
        personal = None
        if self.study.personalization.method != "none":
            own_missing = missing | dict.fromkeys(self.study.participation.held_out, HELD_OUT)
            personal = PersonalEvaluation(*self._own(quality + 1, own_missing, round=best.round))
        if self.study.aggregation.method == "local":
            decision, validation, test = self._own(quality, missing, round=2)
            return FinalEvaluation(
                best=replace(best, round=self.study.rounds),
                best_state=self.state,
                final_state=self.state,
                last_validation=summary(last, study=self.study),
                decision=decision,
                validation=validation,
                test=test,
            ), progress
        return FinalEvaluation(
            best=best,
            best_state=self.state,
            final_state=self.state,
            last_validation=summary(last, study=self.study),
            decision=decision,
            validation=with_confusion(validation, decision.threshold),
            test=self._pool("test", missing=missing, quality=quality, threshold=decision.threshold),
            personal=personal,
        ), progress

    def _own(self, quality: float, missing: Mapping[str, str], *, round: int) -> tuple[Decision, Pool, Pool]:
        """Thresholds, validation and test of models that are each site's own."""
        validation = self._pool("validation", missing=missing, quality=quality)
        choices = {}
        for site in validation.per_site:
            alone = replace(validation, per_site={site: validation.per_site[site]}, reason="")
            choices[site] = OwnChoice(round, decide(alone, self.study).threshold, "")
        test = self._pool("test", missing=missing, quality=quality)
        return (
            decided_by_sites(choices, self.study),
            with_own_confusions(validation, choices),
            with_own_confusions(test, choices),
        )

    def _pool(
        self,
        split: Literal["validation", "test"],
        *,
        missing: Mapping[str, str],
        quality: float,
        threshold: float | None = None,
    ) -> Pool:
        evaluations = {
            site.name: self._evaluation(site, split, quality, threshold)
            for site in self.joined
            if site.name not in missing
        }
        return pool_evaluations(evaluations, missing=missing, study=self.study)

    def _evaluation(
        self, site: InventedSite, split: Literal["validation", "test"], quality: float, threshold: float | None
    ) -> Evaluation:
        if split in site.withholds:
            return Evaluation(split, None, "min_cell", "0" * 64)
        rng = np.random.default_rng([*site.name.encode(), split == "test"])
        num_recurrence, num_necrosis = site.patients[split]
        labels = np.array([0] * num_recurrence + [1] * num_necrosis, dtype=np.int64)
        scores = rng.standard_normal(labels.size) + quality * (labels - 0.6) + site.shift
        spec = self.study.evaluation
        bins = MarginBins(spec.num_bins, spec.margin_limit)
        statistics = SiteStatistics.from_margins(1.4 * scores, labels, bins=bins, threshold=threshold)
        return Evaluation(split, statistics, "", "0" * 64)

    def _manifest(self, site: InventedSite) -> SiteManifest:
        num_exams = {split: sum(site.patients[split]) for split in SPLITS}
        return SiteManifest(
            site=site.name,
            study_digest=self.study.digest,
            num_patients=dict(site.patients),
            num_exams=num_exams,
            cohort_digests={split: f"{len(site.name):02x}" * 32 for split in SPLITS},
            missing_sequences={"t1": 0, "t2": 1, "t1ce": 0},
            crop_centers={"point": sum(num_exams.values()) - 2, "enhancement": 2},
            device="cpu",
            torch_threads=1,
            versions=VERSIONS,
        )
