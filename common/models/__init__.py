"""The networks a study can name: one file for each family, built by one function that checks what it built."""

from common.models.build import build_empty_model, build_model, get_state, initial_state, local_names, set_state
from common.models.norm import norm_state_names

__all__ = [
    "build_empty_model",
    "build_model",
    "get_state",
    "initial_state",
    "local_names",
    "norm_state_names",
    "set_state",
]
