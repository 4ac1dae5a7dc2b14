"""Which function makes the next global state, by the study's `aggregation.method`, and what the server remembers."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from common.model_state import Array, ModelState
from common.study import AggregationSpec
from server.aggregation.mean import weighted_mean
from server.aggregation.robust import coordinate_median, krum_choice, trimmed_mean
from server.aggregation.server_optimizer import server_step

Memory = Mapping[str, ModelState]
"""What the server remembers from round to round: arrays by the parameters' names, for each part of the memory."""


@dataclass(frozen=True)
class NextState:
    """What a round made of the sites' states.

    Attributes:
        state: The next global state.
        weights: What each site's state weighed in it, not normalised, in the order of the states.
        memory: What the server remembers after it.
    """

    state: ModelState
    weights: tuple[float, ...]
    memory: Memory = field(default_factory=dict)


def initial_memory(
    spec: AggregationSpec, state: ModelState, *, trained: Set[str], control_variates: bool
) -> dict[str, dict[str, Array]]:
    """The memory before the first round, of the parts that the method has.

    Momentum and control variate are 0; the mean of squares is tau², the least that algorithm 2 of Reddi et al. (2021,
    arXiv:2003.00295) allows.

    Args:
        spec: The method.
        state: The initial global state.
        trained: Names of the trained parameters in it.
        control_variates: Whether sites train with SCAFFOLD.
    """

    def filled(value: float) -> dict[str, Array]:
        return {name: np.full(state[name].shape, value, state[name].dtype) for name in sorted(trained)}

    memory = {"control": filled(0.0)} if control_variates else {}
    if spec.method in ("fedavgm", "fedadam", "fedyogi"):
        memory["momentum"] = filled(0.0)
    if spec.method in ("fedadam", "fedyogi"):
        memory["square"] = filled(spec.adaptivity**2)
    return memory


def next_state(
    spec: AggregationSpec,
    states: Sequence[tuple[ModelState, float]],
    *,
    reference: ModelState,
    memory: Memory,
    trained: Set[str],
) -> NextState:
    """Make the next global state.

    Args:
        spec: The method and its settings.
        states: The accepted states in the order of the sites' names, with their weights; not fewer than
            `spec.least_sites`. Of states that lie on disk a part at a time is in memory. None with method local.
        reference: The global state that the sites were sent.
        memory: What the server remembers from the round before.
        trained: Names of the trained parameters.
    """
    if len(states) < spec.least_sites and spec.method != "local":
        raise ValueError(f"{spec.method} needs {spec.least_sites} states, got {len(states)}")
    plain = [state for state, _ in states]
    alike = (1.0,) * len(states)
    match spec.method:
        case "mean":
            return NextState(weighted_mean(states, reference=reference), tuple(weight for _, weight in states))
        case "fedavgm" | "fedadam" | "fedyogi":
            of_step = {part: memory[part] for part in ("momentum", "square") if part in memory}
            state, remembered = server_step(spec, states, reference=reference, memory=of_step, trained=trained)
            return NextState(state, tuple(weight for _, weight in states), remembered)
        case "median":
            return NextState(coordinate_median(plain, reference=reference), alike)
        case "trimmed_mean":
            return NextState(trimmed_mean(plain, spec.num_faulty, reference=reference), alike)
        case "multi_krum":
            kept = krum_choice(plain, spec.num_faulty)
            weights = tuple(weight if place in kept else 0.0 for place, (_, weight) in enumerate(states))
            return NextState(weighted_mean([states[place] for place in kept], reference=reference), weights)
        case "local":
            return NextState(reference, ())
