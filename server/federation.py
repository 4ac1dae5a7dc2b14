"""A whole run: sites join, rounds of training, choice of the best model and its threshold, the test, the record."""

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flwr.serverapp import Grid

from common.errors import ConfigError, GliornError
from common.model_state import Array, state_digest
from common.schedule import learning_rate_in_round
from common.tasks import CompareTask, EvaluateTask, ModelOfRun, Split, TrainTask
from server import progress as checkpoint
from server.aggregation import initial_memory
from server.compare_with import EarlierModel, noted_models
from server.comparison import ComparedSites, compare_at_sites, comparison_values
from server.decision import Decision, decide, decided_by_sites, with_confusion, with_own_confusions
from server.downloads import Downloads, Holdings, remembered_difference
from server.evaluation import EvaluatedState, evaluate_at_sites
from server.fedprox import ProximalStrength, adapted, first_strength
from server.global_state import trained_names
from server.initial_weights import starting_state
from server.membership import Membership
from server.pooling import Pool, candidate, pool_evaluations, summary
from server.progress import Progress
from server.record import FinalEvaluation, PersonalEvaluation, manifest_values, stopped_text, write_record
from server.records import RoundRecord, SiteRound
from server.rounds import Aggregation, RoundResult, class_counts, class_weights, run_round
from server.run_folder import RunFolder, write_json
from server.status import Phase, StatusBoard

log = logging.getLogger(__name__)

State = Mapping[str, Array]

LATE_JOIN_TIMEOUT_S = 30.0
"""How long a round waits at its begin for a site that comes late to say what it brings."""


class QuorumError(GliornError):
    """Too few sites for a result. The run can be continued when they are back."""

    code = "quorum"


def _work_done(site: SiteRound) -> str:
    """What an accepted site did in a round, for the log."""
    assert site.num_patients is not None
    assert site.seconds is not None
    return (
        f"accepted, {site.num_steps} steps on {sum(site.num_patients)} patients, mean loss {site.train_loss:.3f}, "
        f"{sum(site.seconds):.1f} s at the site"
    )


def _require_expected(held_out: Iterable[str], sites: Sequence[str]) -> None:
    unknown = sorted(set(held_out) - set(sites))
    if unknown:
        raise ConfigError(
            f"participation.held_out names {', '.join(unknown)}, which this run does not expect; "
            f"name sites out of {', '.join(sites)}, or none"
        )


class Federation:
    """One run over a Grid.

    Args:
        grid: Flower's Grid, of any engine.
        folder: The run's folder, with the study and the participants in it.
        now: The clock for the record.
    """

    def __init__(self, grid: Grid, folder: RunFolder, *, now: Callable[[], datetime]) -> None:
        self._grid = grid
        self._folder = folder
        self._now = now
        self._study = folder.read_study()
        self._participants = folder.read_participants()
        _require_expected(self._study.participation.held_out, self._participants.sites)
        self._compared_with = noted_models(folder)
        self._membership = Membership(grid, self._study, self._participants)
        self._board = StatusBoard(folder, num_rounds=self._study.rounds)
        resumed = checkpoint.resume(folder)
        if resumed is None:
            resumed = self._begin_run()
        self._progress = resumed
        self._memory = checkpoint.load_memory(folder, resumed)
        self._holdings = Holdings()

    def _begin_run(self) -> Progress:
        study, state = self._study, starting_state(self._folder)
        memory = initial_memory(
            study.aggregation,
            state,
            trained=trained_names(study),
            control_variates=study.training.control_variates,
        )
        return checkpoint.begin(self._folder, state, memory=memory, run_id=secrets.token_hex(8))

    def run(self) -> str:
        """Run to the end, from wherever the folder says the run stands, unless the coordinator wishes otherwise.

        Returns:
            "COMPLETE" or "DEGRADED"; "PAUSED" where the coordinator wished that, which leaves no record; "INVALID"
            where the coordinator stopped the run.

        Raises:
            QuorumError: If too few sites took part in a round or in the test; the record then says INVALID.
        """
        self._take_up()
        try:
            self._join()
            state: State = checkpoint.load_state(self._folder, self._progress.round, digest=self._progress.state_digest)
            for round in range(self._progress.round + 1, self._study.rounds + 1):
                if (ended := self._heed_wish()) is not None:
                    return ended
                state = self._run_round(round, state)
            if (ended := self._heed_wish()) is not None:
                return ended
            final = self._evaluate_final(state)
            comparisons = self._compare()
        except QuorumError as error:
            self._record(None, error=str(error))
            self._begin("finished", [])
            raise
        outcome = self._record(final, error=None, comparisons=comparisons)
        self._begin("finished", [])
        return outcome

    def _heed_wish(self) -> str | None:
        """Leave off between two rounds where the coordinator wishes it; returns how, or None to go on."""
        match self._folder.read_wish():
            case "run":
                return None
            case "pause":
                log.info("paused after round %d", self._progress.round)
                self._begin("paused", [])
                return "PAUSED"
            case "stop":
                return self.stop()

    def stop(self) -> str:
        """End the run here, with a record that says that the coordinator wished it."""
        error = stopped_text(self._progress.round)
        log.warning("%s", error)
        self._record(None, error=error)
        self._begin("finished", [])
        return "INVALID"

    def _take_up(self) -> None:
        """Clear away an earlier end. After one without result, sites refused before may come back: they were mended."""
        if not self._folder.record.is_file():
            return
        if json.loads(self._folder.record.read_text(encoding="utf-8"))["outcome"] == "INVALID":
            self._progress = replace(self._progress, quarantined={})
        self._folder.record.unlink()
        self._folder.resumption.unlink(missing_ok=True)

    # --- who takes part ----------------------------------------------------------------------------------------------

    def _join(self) -> None:
        answered = self._begin("joining", self._participants.sites)
        self._membership.wait_and_join(timeout_s=self._study.participation.join_timeout_s, on_join=answered)
        self._remember_cohorts()
        self._require_quorum(len(self._nodes()), "joined", self._not_asked(), of=self._training_sites())

    def _remember_cohorts(self) -> None:
        self._membership.require_unchanged_cohorts(self._progress.cohorts)
        new: dict[str, dict[str, str]] = {
            site: {str(split): digest for split, digest in manifest.cohort_digests.items()}
            for site, manifest in self._membership.manifests.items()
        }
        self._progress = replace(self._progress, cohorts=self._progress.cohorts | new)
        manifests = sorted(self._membership.manifests.items())
        write_json(self._folder.manifests, {site: manifest_values(manifest) for site, manifest in manifests})

    def _training_sites(self) -> list[str]:
        """Sites that are expected to train."""
        return [site for site in self._participants.sites if site not in self._study.participation.held_out]

    def _nodes(self) -> dict[str, int]:
        """Nodes of the sites that train: joined, not quarantined, not held out."""
        held_out = self._study.participation.held_out
        return {site: node for site, node in self._test_nodes().items() if site not in held_out}

    def _test_nodes(self) -> dict[str, int]:
        """Nodes of the sites that are tested: those held out too."""
        quarantined = self._progress.quarantined
        return {site: node for site, node in self._membership.nodes.items() if site not in quarantined}

    def _sites_not_asked(self, *, held_out: bool = False) -> dict[str, SiteRound]:
        """Sites that should be asked and are not; of those held out only where they are asked at all."""
        absent = {site: SiteRound("absent", why) for site, why in self._membership.problems.items()}
        absent |= {site: SiteRound("quarantined", why) for site, why in self._progress.quarantined.items()}
        never = () if held_out else self._study.participation.held_out
        return {site: what for site, what in absent.items() if site not in never}

    def _not_asked(self, *, held_out: bool = False) -> dict[str, str]:
        return {
            name: f"{site.status}: {site.reason}" for name, site in self._sites_not_asked(held_out=held_out).items()
        }

    def _require_quorum(self, num_sites: int, what: str, missing: Mapping[str, str], *, of: Sequence[str]) -> None:
        least = self._study.participation.min_sites
        if num_sites >= least:
            return
        names = "; ".join(f"{site} ({why})" for site, why in sorted(missing.items()))
        raise QuorumError(
            f"{num_sites} of {len(of)} sites {what}, the study needs {least}. "
            f"Missing: {names}. Mend these sites, then continue the run: "
            f"nothing before round {self._progress.round + 1} is lost"
        )

    def _begin(self, phase: Phase, asked: Iterable[str], *, round: int | None = None) -> Callable[[str], None]:
        return self._board.begin(phase, round=self._progress.round if round is None else round, asked=list(asked))

    # --- rounds ------------------------------------------------------------------------------------------------------

    def _run_round(self, round: int, state: State) -> State:
        started_at, started = self._now(), time.monotonic()
        self._membership.join(
            timeout_s=min(LATE_JOIN_TIMEOUT_S, self._study.participation.round_timeout_s),
            on_join=lambda site: log.info("%s joined before round %d", site, round),
        )
        self._remember_cohorts()
        nodes, manifests = self._nodes(), self._membership.manifests
        counts, strength = class_counts(self._study, manifests), self._fedprox()
        task = TrainTask(
            study=self._study,
            run=self._folder.name,
            round=round,
            class_weights=class_weights(self._study, counts),
            class_counts=counts,
            fedprox_mu=strength.mu,
            best_round=self._progress.best.round if self._progress.best else 0,
            state=state,
            control=self._memory.get("control"),
            run_id=self._progress.run_id,
        )
        answered = self._begin("round", nodes, round=round)
        before = self._progress.state_digest
        result = run_round(
            self._grid,
            task,
            downloads=Downloads(task, before, self._holdings),
            folder=self._folder,
            nodes=nodes,
            manifests=manifests,
            aggregation=Aggregation(self._memory, trained_names(self._study), len(self._training_sites())),
            answered=answered,
        )
        sites = self._sites_not_asked() | dict(result.sites)
        missing = {name: f"{site.status}: {site.reason}" for name, site in sites.items() if site.status != "accepted"}
        if result.state is None:
            num_accepted = len(sites) - len(missing)
            self._require_quorum(
                num_accepted, f"gave a usable reply in round {round}", missing, of=self._training_sites()
            )
        assert result.state is not None, "a round with a quorum has a state"
        pool = pool_evaluations(result.evaluations, missing=missing, study=self._study)
        if round > 1:
            self._consider(round - 1, pool)
        self._adapt_fedprox(strength, pool)
        self._quarantine(result)
        record = RoundRecord(
            round=round,
            learning_rate=learning_rate_in_round(self._study.training, round=round, num_rounds=self._study.rounds),
            class_weights=task.class_weights,
            fedprox_mu=task.fedprox_mu,
            sites=sites,
            evaluated_round=round - 1,
            validation=summary(pool, study=self._study),
            state_digest=state_digest(result.state),
            started_at=started_at.isoformat(timespec="seconds"),
            seconds=time.monotonic() - started,
        )
        self._progress = checkpoint.commit(
            self._folder, self._progress, record=record, state=result.state, memory=result.memory
        )
        self._memory = checkpoint.load_memory(self._folder, self._progress)
        self._holdings.difference = remembered_difference(self._memory, reference=before, digest=record.state_digest)
        for name, site in sorted(sites.items()):
            log.info("round %d, %s: %s", round, name, missing.get(name) or _work_done(site))
        return checkpoint.load_state(self._folder, round)

    def _fedprox(self) -> ProximalStrength:
        """The strength of FedProx in the next round."""
        training = self._study.training
        if not training.fedprox_adaptive:
            return ProximalStrength(training.fedprox_mu)
        return self._progress.fedprox or first_strength(training.fedprox_mu)

    def _adapt_fedprox(self, strength: ProximalStrength, pool: Pool) -> None:
        if not self._study.training.fedprox_adaptive:
            return
        new = adapted(strength, pool.total)
        if new.mu != strength.mu:
            log.info("pooled validation loss %.4f: FedProx goes on with mu %g", new.loss, new.mu)
        self._progress = replace(self._progress, fedprox=new)

    def _consider(self, round: int, pool: Pool) -> None:
        new = candidate(round, summary(pool, study=self._study))
        if new.beats(self._progress.best):
            self._progress = replace(self._progress, best=new)

    def _quarantine(self, result: RoundResult) -> None:
        refused = {name: site.reason for name, site in result.sites.items() if site.status == "refused"}
        for name, reason in refused.items():
            log.warning("%s is quarantined for the rest of the run: %s", name, reason)
        self._progress = replace(self._progress, quarantined=self._progress.quarantined | refused)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _evaluate_final(self, state: State) -> FinalEvaluation:
        """Evaluate the last state, choose the best one, fix its threshold on validation, then apply it to the test."""
        last = self._evaluate("validation", self._study.rounds, state)
        self._consider(self._study.rounds, last.pool)
        checkpoint.save(self._folder, self._progress)
        if self._study.aggregation.method == "local":
            return self._evaluate_own_models(state, last)
        best = self._progress.best
        assert best is not None, "the last state is a candidate"
        if best.round == self._study.rounds:
            best_state, chosen = state, last
        else:
            best_state = checkpoint.load_state(self._folder, best.round, digest=self._digest_after(best.round))
            chosen = self._evaluate("validation", best.round, best_state)
        decision = decide(chosen.pool, self._study)
        test = self._test(best.round, best_state, decision=decision)
        personal = None
        if chosen.personal is not None and test.personal is not None:
            own = decided_by_sites(test.personal_choices, self._study)
            validation = with_own_confusions(chosen.personal, test.personal_choices)
            personal = PersonalEvaluation(own, validation, test.personal)
        return FinalEvaluation(
            best=best,
            best_state=best_state,
            final_state=state,
            last_validation=summary(last.pool, study=self._study),
            decision=decision,
            validation=with_confusion(chosen.pool, decision.threshold),
            test=test.pool,
            personal=personal,
            damaged={"validation": {**last.damaged, **chosen.damaged}, "test": test.damaged},
        )

    def _evaluate_own_models(self, state: State, last: EvaluatedState) -> FinalEvaluation:
        """Test models that the sites trained by themselves: each site chooses its own round and threshold."""
        rounds = self._study.rounds
        chosen = self._evaluate("validation", rounds, state, own_round=True)
        test = self._test(rounds, state, own_round=True)
        values = summary(last.pool, study=self._study)
        return FinalEvaluation(
            best=candidate(rounds, values),
            best_state=state,
            final_state=state,
            last_validation=values,
            decision=decided_by_sites(test.choices, self._study),
            validation=with_own_confusions(chosen.pool, test.choices),
            test=test.pool,
            damaged={"validation": {**last.damaged, **chosen.damaged}, "test": test.damaged},
        )

    def _test(
        self, round: int, state: State, *, decision: Decision | None = None, own_round: bool = False
    ) -> EvaluatedState:
        test = self._evaluate("test", round, state, decision=decision, own_round=own_round)
        num_answered = len(test.pool.answered)
        self._require_quorum(num_answered, "answered in the test", test.pool.missing, of=self._participants.sites)
        return test

    def _evaluate(
        self,
        split: Split,
        round: int,
        state: State,
        *,
        decision: Decision | None = None,
        own_round: bool = False,
    ) -> EvaluatedState:
        """Evaluate a state at the sites at the threshold that is frozen, and their own models of its round.

        Args:
            split: Of the patients.
            round: Of the state.
            state: The global model.
            decision: The threshold, for the test of a global model.
            own_round: Whether sites that train by themselves evaluate the models that they choose.
        """
        assert split != "train"
        tested = split == "test"
        nodes, manifests = self._test_nodes() if tested else self._nodes(), self._membership.manifests
        counts = class_counts(self._study, manifests)
        task = EvaluateTask(
            study=self._study,
            run=self._folder.name,
            round=round,
            class_weights=class_weights(self._study, counts),
            class_counts=counts,
            split=split,
            threshold=None if decision is None else decision.threshold,
            state=state,
            own_round=own_round,
            run_id=self._progress.run_id,
        )
        return evaluate_at_sites(
            self._grid,
            task,
            downloads=Downloads(task, self._digest_after(round), self._holdings),
            nodes=nodes,
            manifests=manifests,
            missing=self._not_asked(held_out=tested),
            answered=self._begin(split, nodes),
        )

    def _digest_after(self, round: int) -> str:
        """SHA-256 of the global state after a finished round."""
        digest: str = checkpoint.read_rounds(self._folder, self._progress)[round - 1]["state_digest"]
        return digest

    def _compare(self) -> list[dict[str, Any]]:
        """Compare what was tested with the runs that the coordinator named, as the record has it."""
        shared = ModelOfRun(self._folder.name, self._study.digest, run_id=self._progress.run_id)
        firsts = [EarlierModel(shared, own_models=self._study.aggregation.method == "local")]
        if self._study.personalization.method != "none":
            firsts.append(EarlierModel(replace(shared, personal=True), own_models=True))
        pairs = [(first, second) for second in self._compared_with for first in firsts]
        nodes = self._test_nodes()
        return [
            comparison_values(
                compare_at_sites(
                    ComparedSites(self._grid, nodes, self._membership.manifests, self._begin("test", nodes)),
                    CompareTask(self._study, first.model, second.model),
                    missing=self._not_asked(held_out=True),
                    own_models=first.own_models or second.own_models,
                ),
                confidence=self._study.evaluation.confidence,
            )
            for first, second in pairs
        ]

    def _record(
        self,
        final: FinalEvaluation | None,
        *,
        error: str | None,
        comparisons: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        return write_record(
            self._folder,
            self._study,
            progress=self._progress,
            manifests=self._membership.manifests,
            not_joined=self._membership.problems,
            final=final,
            error=error,
            now=self._now(),
            comparisons=comparisons,
        )
