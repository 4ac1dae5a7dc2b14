"""One round of training: ask the sites, screen each reply as it comes, fold the accepted ones into the next state."""

import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.messages import MESSAGE_TYPES, read_train_reply
from common.model_state import ModelState, encoded_parts
from common.record_values import content_bytes
from common.study import Study
from common.tasks import Evaluation, Failure, SiteManifest, TrainReply, TrainTask
from common.update_codec import decode_update
from server.aggregation import Memory, aggregation_weight, balanced_class_weights, mean_control, next_state
from server.disk import once_there_is_room
from server.downloads import Downloads, as_sites_have_it
from server.exchange import collect
from server.gatekeeper import outlying_updates, screen_control, screen_train_reply
from server.records import SiteRound
from server.run_folder import RunFolder
from server.stored_state import StoredState

log = logging.getLogger(__name__)

_CONTROL_OF = "control-"
"""Begin of the parts of the memory that hold the control variate of one site, as its last accepted reply gave it."""


@dataclass(frozen=True)
class RoundResult:
    """What came of a round.

    Attributes:
        state: The next global state; None where fewer sites than the quorum were accepted.
        sites: What each asked site did.
        evaluations: What the accepted sites counted of the state they were sent.
        memory: What the server remembers for the next round.
    """

    state: ModelState | None
    sites: Mapping[str, SiteRound]
    evaluations: Mapping[str, Evaluation]
    memory: Memory


@dataclass(frozen=True)
class Aggregation:
    """What the aggregation of a round needs beside the replies.

    Attributes:
        memory: What the server remembers from the round before.
        trained: Names of the trained parameters.
        num_sites: Sites that are expected to train in this run, whether or not they are there.
    """

    memory: Memory
    trained: Set[str]
    num_sites: int


def class_counts(study: Study, manifests: Mapping[str, SiteManifest]) -> tuple[int, int]:
    """Training patients with label 0 and with label 1 of all sites that have joined and train."""
    held_out = study.participation.held_out
    counts = [manifest.num_patients["train"] for site, manifest in manifests.items() if site not in held_out]
    return sum(c[0] for c in counts), sum(c[1] for c in counts)


def class_weights(study: Study, counts: tuple[int, int]) -> tuple[float, float]:
    """Loss weights of the classes, from the `class_counts` of all sites."""
    return balanced_class_weights(counts) if study.training.class_weighting == "balanced" else (1.0, 1.0)


def run_round(
    grid: Grid,
    task: TrainTask,
    *,
    downloads: Downloads,
    folder: RunFolder,
    nodes: Mapping[str, int],
    manifests: Mapping[str, SiteManifest],
    aggregation: Aggregation,
    answered: Callable[[str], None],
) -> RoundResult:
    """Run one round. What is sent and what has come stays on disk, so that one model state at a time is in memory.

    Args:
        grid: Flower's Grid.
        task: What every site is asked.
        downloads: How its state goes to each.
        folder: The run.
        nodes: Flower's node of each site that is asked.
        manifests: What those sites registered.
        aggregation: What is needed to make the next state of their replies.
        answered: Called with each site whose reply has come.
    """
    reception = _Reception(task, folder, manifests, aggregation.trained)

    def take(site: str, records: RecordDict) -> None:
        reception.take(site, records)
        answered(site)

    failures = collect(
        grid,
        downloads.contents,
        message_type=MESSAGE_TYPES[TrainTask],
        group=str(task.round),
        nodes=nodes,
        timeout_s=task.study.participation.round_timeout_s,
        enough=task.study.participation.min_sites,
        on_reply=take,
        on_sent=downloads.note_sent,
    )
    reception.sites |= {name: SiteRound("failed", reason) for name, reason in failures.items()}
    reception.note_bytes(downloads)
    reception.refuse_outliers(task.study.participation.max_update_norm_ratio)
    accepted = {name: site for name, site in sorted(reception.sites.items()) if site.status == "accepted"}
    for name in accepted:
        downloads.holdings.note(name, reception.held[name])
    for name, site in sorted(reception.sites.items()):
        if site.status != "accepted":
            log.warning("round %d, %s: %s: %s", task.round, name, site.status, site.reason)
    state, memory = None, aggregation.memory
    if len(accepted) >= task.study.participation.min_sites:
        state, memory = _aggregate(task, reception, accepted, aggregation)
    reception.clear()
    return RoundResult(state, reception.sites, {name: reception.evaluations[name] for name in accepted}, memory)


def _aggregate(
    task: TrainTask, reception: "_Reception", accepted: Mapping[str, SiteRound], aggregation: Aggregation
) -> tuple[ModelState, Memory]:
    """The next state and memory; notes for each accepted site what it weighs in the state."""
    made = next_state(
        task.study.aggregation,
        reception.states(accepted),
        reference=task.state,
        memory=aggregation.memory,
        trained=aggregation.trained,
    )
    for name, weight in zip(sorted(accepted), made.weights, strict=False):  # no weights where no state is made
        reception.sites[name] = replace(reception.sites[name], weight=weight)
    state, of_code = as_sites_have_it(
        task.study, made.state, before=task.state, memory=aggregation.memory, trained=aggregation.trained
    )
    memory = {**made.memory, **of_code}
    if task.control is not None:
        kept = {part: values for part, values in aggregation.memory.items() if part.startswith(_CONTROL_OF)}
        kept = dict(sorted((kept | reception.controls(accepted)).items()))
        memory["control"] = mean_control(list(kept.values()), like=task.control, num_sites=aggregation.num_sites)
        memory |= kept
    return state, memory


class _Reception:
    """Takes the replies of one round."""

    def __init__(
        self, task: TrainTask, folder: RunFolder, manifests: Mapping[str, SiteManifest], trained: Set[str]
    ) -> None:
        self._trained = trained
        self._bytes_up: dict[str, int] = {}
        self._task = task
        self._folder = folder
        self._manifests = manifests
        self._sends_state = task.study.aggregation.method != "local"
        self.sites: dict[str, SiteRound] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.held: dict[str, str] = {}
        folder.replies.mkdir(exist_ok=True)
        self.clear()

    def take(self, site: str, records: RecordDict) -> None:
        task = self._task
        self._bytes_up[site] = content_bytes(records)
        try:
            reply = read_train_reply(records, study=task.study)
            if isinstance(reply, Failure):
                self.sites[site] = SiteRound("failed", reply.code)
                return
            reply = self._decoded(reply)
            norm = screen_train_reply(
                reply,
                study_digest=task.study.digest,
                round=task.round,
                manifest=self._manifests[site],
                global_state=task.state if self._sends_state else {},
            )
            control_norm = screen_control(reply.control, task.control)
        except ProtocolError as error:
            self.sites[site] = SiteRound("refused", str(error))
            return
        received_bytes = 0
        if self._sends_state:
            received_bytes += self._store(self._path(site), reply.state)
        if reply.control is not None:
            received_bytes += self._store(self._control_path(site), reply.control)
        self.evaluations[site] = reply.evaluation
        self.held[site] = reply.held
        self.sites[site] = SiteRound(
            "accepted",
            num_patients=reply.num_patients,
            weight=aggregation_weight(reply.num_patients, task.class_weights) if self._sends_state else None,
            update_norm=norm if self._sends_state else None,
            num_steps=reply.num_steps,
            train_loss=reply.train_loss,
            optimizer=reply.optimizer,
            plan=reply.plan,
            step_microseconds=dict(reply.step_microseconds) or None,
            seconds=reply.seconds,
            received_bytes=received_bytes,
            control_norm=control_norm,
            damaged=reply.damaged,
        )

    def _decoded(self, reply: TrainReply) -> TrainReply:
        """The reply with the state that its coded update stands for: what is checked and aggregated.

        Raises:
            ProtocolError: If the update cannot be decoded.
        """
        scheme = self._task.study.communication.upload
        if reply.update is None or scheme == "fp32":
            return reply
        state = decode_update(reply.update, self._task.state, scheme, trained=self._trained)
        return replace(reply, state=state, update=None)

    def note_bytes(self, sent: Downloads) -> None:
        """Note what went to each site and what came of it."""
        self.sites = {
            name: replace(
                site,
                bytes_down=sent.num_bytes.get(name, 0),
                state_down=sent.ways.get(name, ()),
                bytes_up=self._bytes_up.get(name, 0),
            )
            for name, site in self.sites.items()
        }

    @staticmethod
    def _store(path: Path, state: ModelState) -> int:
        def write() -> int:
            # Not synced: a reply that a crash swallows is asked for again with its round.
            with path.open("wb") as file:
                file.writelines(encoded_parts(state))
                return file.tell()

        return once_there_is_room(write)

    def refuse_outliers(self, max_ratio: float) -> None:
        norms = {name: site.update_norm for name, site in self.sites.items() if site.update_norm is not None}
        controls = {name: site.control_norm for name, site in self.sites.items() if site.control_norm is not None}
        outliers = outlying_updates(controls, max_ratio=max_ratio, what="control variate")
        outliers |= outlying_updates(norms, max_ratio=max_ratio)
        for name, reason in outliers.items():
            self.sites[name] = replace(self.sites[name], status="refused", reason=reason)

    def states(self, accepted: Mapping[str, SiteRound]) -> list[tuple[ModelState, float]]:
        """The accepted states, on disk, in the order of the sites' names; none where sites send no state."""
        states: list[tuple[ModelState, float]] = []
        for name, site in sorted(accepted.items()):
            if site.weight is None:
                continue
            states.append((StoredState(self._path(name), origin=f"the reply of {name}"), site.weight))
        return states

    def controls(self, accepted: Mapping[str, SiteRound]) -> dict[str, ModelState]:
        """The accepted sites' control variates, on disk, by the part of the server's memory that they become."""
        return {
            f"{_CONTROL_OF}{name}": StoredState(self._control_path(name), origin=f"the reply of {name}")
            for name in accepted
        }

    def clear(self) -> None:
        for path in self._folder.replies.iterdir():
            path.unlink()

    def _path(self, site: str) -> Path:
        return self._folder.replies / f"{site}.safetensors"

    def _control_path(self, site: str) -> Path:
        return self._folder.replies / f"{site}.control"  # no state of another site, all of which end otherwise
