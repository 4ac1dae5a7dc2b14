"""Which entries of a state are trained and shared; the coordinator finds the same ones by the same means."""

from functools import lru_cache

from common.models import build_empty_model, local_names
from common.study import Study


@lru_cache(maxsize=8)
def trained_names(study: Study) -> frozenset[str]:
    """Names of the parameters that are trained and sent."""
    num_sequences = len(study.sequences)
    model = build_empty_model(study.model, num_sequences=num_sequences)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return frozenset(names) - local_names(study.model, num_sequences=num_sequences)
