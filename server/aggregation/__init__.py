"""How the sites' states become the next global state: one function for each method, and one that chooses among them."""

from server.aggregation.control import mean_control
from server.aggregation.mean import aggregation_weight, balanced_class_weights, weighted_mean
from server.aggregation.methods import Memory, NextState, initial_memory, next_state
from server.aggregation.robust import coordinate_median, krum_choice, trimmed_mean
from server.aggregation.server_optimizer import server_step

__all__ = [
    "Memory",
    "NextState",
    "aggregation_weight",
    "balanced_class_weights",
    "coordinate_median",
    "initial_memory",
    "krum_choice",
    "mean_control",
    "next_state",
    "server_step",
    "trimmed_mean",
    "weighted_mean",
]
