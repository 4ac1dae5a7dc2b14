"""What a run leaves behind of each round, as values and as lines of `rounds.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from common.tasks import Damage, Way

SiteStatus = Literal["accepted", "refused", "failed", "absent", "quarantined"]


@dataclass(frozen=True)
class SiteRound:
    """What one site did in one round.

    Attributes:
        status: "accepted": its update is part of the new state. "refused": its reply broke a rule. "failed": it said
            so, or gave no reply. "absent": it never joined. "quarantined": it was refused before and was not asked.
        reason: Why it was not accepted; empty otherwise.
        weight: Its weight in the new state, not normalised; 0 where multi-Krum did not choose it. None where there is
            no state to be made.
        seconds: What it spent on evaluation and on training.
        received_bytes: Size of its model state, and of its control variate.
        control_norm: Norm of its control variate; None without SCAFFOLD.
        plan: How it computed its steps: "fp32" or a faster way.
        step_microseconds: What a step took it by each way it measured; None where it measured none.
        bytes_down: Bytes of what it was sent, as often as that was sent; without the framing of Flower and TLS.
        state_down: How the global state went there, as often as it was sent: "whole", "difference" or, where the site
            kept it already, "held". Whole after another way: the site asked for that.
        bytes_up: Bytes of its reply, likewise. All three are None for a site that was not asked.
        damaged: What it had kept of the run and could not read.
    """

    status: SiteStatus
    reason: str = ""
    num_patients: tuple[int, int] | None = None
    weight: float | None = None
    update_norm: float | None = None
    num_steps: int | None = None
    train_loss: float | None = None
    optimizer: str | None = None
    seconds: tuple[float, float] | None = None
    received_bytes: int | None = None
    control_norm: float | None = None
    bytes_down: int | None = None
    state_down: tuple[Way, ...] | None = None
    bytes_up: int | None = None
    damaged: tuple[Damage, ...] = ()
    plan: str | None = None
    step_microseconds: Mapping[str, int] | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One round: who took part, what came of it, and the evaluation of the state the round began with.

    Attributes:
        round: Counted from 1.
        evaluated_round: The round whose state was evaluated: `round - 1`, where 0 is the initial state.
        validation: Pooled figures of that state on the validation patients, as in `server.pooling.summary`.
        state_digest: SHA-256 of the state after this round.
    """

    round: int
    learning_rate: float
    class_weights: tuple[float, float]
    fedprox_mu: float
    sites: Mapping[str, SiteRound]
    evaluated_round: int
    validation: Mapping[str, Any]
    state_digest: str
    started_at: str
    seconds: float

    def to_line(self) -> str:
        """One line of JSON, ended by a newline."""
        values = asdict(self) | {"sites": {name: asdict(site) for name, site in sorted(self.sites.items())}}
        return json.dumps(values, allow_nan=False) + "\n"


def missing_sites(rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """For each site that was not accepted in some round: the rounds by reason. Rounds are lines of `rounds.jsonl`."""
    missing: dict[str, dict[str, list[int]]] = {}
    for record in rounds:
        for name, site in record["sites"].items():
            if site["status"] != "accepted":
                reason = f"{site['status']}: {site['reason']}" if site["reason"] else site["status"]
                missing.setdefault(name, {}).setdefault(reason, []).append(record["round"])
    return missing


_DAMAGED: Mapping[Damage, str] = {
    "own": "its own layers",
    "personal": "its own model",
    "fine-tuned": "its fine-tuned layers",
    "control": "its control variate",
    "optimizer": "its optimiser's state",
    "personal-optimizer": "the state of its own model's optimiser",
    "residual": "what its coded updates had lost",
    "best": "its choice of a best round",
}


def damage_text(site: str, part: Damage, when: str) -> str:
    """What a damaged file at a site means, as a sentence.

    Args:
        site: Its name.
        part: What was in the file.
        when: Such as "in round 3".
    """
    return f"{site} went on from older values of {_DAMAGED[part]}, or began them anew, {when}: its file was unreadable"


def damaged_parts(rounds: Sequence[Mapping[str, Any]]) -> dict[tuple[str, Damage], list[int]]:
    """The rounds in which a site could not read a part of what it had kept. Rounds are lines of `rounds.jsonl`."""
    found: dict[tuple[str, Damage], list[int]] = {}
    for record in rounds:
        for name, site in record["sites"].items():
            for part in site.get("damaged", ()):
                found.setdefault((name, part), []).append(record["round"])
    return found


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in short: 1–4, 7, 9–12."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in runs)
