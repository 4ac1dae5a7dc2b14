"""The state that the coordinator keeps and sends: which part of the study's network it holds, and what is trained."""

from functools import lru_cache

from common.model_state import Array
from common.models import build_empty_model, initial_state, local_names
from common.study import Study

LOCAL_MODELS = "local: no global model"
"""What stands in the record and in the report of a run in which every site trains by itself."""


def initial_global_state(study: Study) -> dict[str, Array]:
    """The state a run starts from, without what the study leaves with the sites."""
    absent = absent_names(study)
    whole = initial_state(study.model, num_sequences=len(study.sequences), seed=study.seed)
    return {name: array for name, array in whole.items() if name not in absent}


def absent_names(study: Study) -> frozenset[str]:
    """Entries of the network's state that every site keeps to itself, so that no global state holds them."""
    return local_names(study.model, num_sequences=len(study.sequences))


def absence_reason(study: Study) -> str:
    """Why the global state lacks the `absent_names`, for those who load a written model."""
    kept = "normalisation layers" if study.model.norm == "fedbn" else "statistics of the normalisation layers"
    return (
        f"norm {study.model.norm}: every site keeps its own {kept}; a new site estimates them on its own images before "
        "it uses this model"
    )


@lru_cache(maxsize=8)
def trained_names(study: Study) -> frozenset[str]:
    """Names of the trained parameters in the global state: those the network itself calls parameters."""
    model = build_empty_model(study.model, num_sequences=len(study.sequences))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return frozenset(names) - absent_names(study)
