"""What of the model stays at a site (FedBN, SiloBN, local training), and how an incomplete state is made whole.

FedBN: Li et al. 2021, arXiv:2102.07623. SiloBN: Andreux et al. 2020, arXiv:2008.07424.
"""

from contextlib import closing
from functools import lru_cache

import torch
from torch import nn

from client.exam_images import Images, batches_of
from client.sampling import num_batches
from common.model_state import ModelState, require_same_parameters
from common.models import build_empty_model, initial_state, local_names, set_state
from common.models.norm import norm_layers
from common.study import ModelSpec, Study


def names_that_stay(study: Study) -> frozenset[str]:
    """Entries of the model state that a site keeps to itself; all of them where every site trains by itself."""
    names = _all_names if study.aggregation.method == "local" else local_names
    return names(study.model, num_sequences=len(study.sequences))


@lru_cache(maxsize=32)
def _all_names(spec: ModelSpec, *, num_sequences: int) -> frozenset[str]:
    return frozenset(build_empty_model(spec, num_sequences=num_sequences).state_dict())


def whole_model(study: Study, arrived: ModelState, own: ModelState | None) -> nn.Module:
    """The study's network with the state that arrived and the entries that stay at this site.

    Args:
        study: What all sites agreed on.
        arrived: The global model, without the normalisation layers' entries that stay at the sites.
        own: The site's own entries. None takes the initial ones for what did not arrive: of norm fedbn the scale 1
            and the shift 0, the mean 0 and the variance 1, of silobn the statistics alone.

    Raises:
        ProtocolError: If the arrived state has not exactly the entries it should have.
    """
    num_sequences = len(study.sequences)
    model = build_empty_model(study.model, num_sequences=num_sequences)
    absent = local_names(study.model, num_sequences=num_sequences)
    require_same_parameters(arrived, {n: t.numpy() for n, t in model.state_dict().items() if n not in absent})
    if own is None and absent:
        initial = initial_state(study.model, num_sequences=num_sequences, seed=study.seed)
        own = {name: initial[name] for name in absent}
    set_state(model, {**arrived, **(own or {})})
    return model


def estimate_statistics(model: nn.Module, images: Images, *, batch_size: int, generator: torch.Generator) -> None:
    """Replace the statistics of all batch norm layers by those of these images, in place; nothing else changes.

    The cumulative average over one pass without augmentation: AdaBN (Li et al. 2016, arXiv:1603.04779). Labels are
    not looked at.

    Args:
        model: On the device it computes on.
        images: Shape (N, C, D, H, W).
        batch_size: Exams at a time, in parts of nearly equal size. One more where an exam would be left over alone,
            which has no variance in layers of one voxel.
        generator: On the CPU; decides which exams come together.
    """
    device = next(model.parameters()).device
    layers = [layer for layer in norm_layers(model).values() if isinstance(layer, nn.BatchNorm3d)]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for the cumulative average
        layer.train()
    order = torch.randperm(len(images), generator=generator)
    num_parts = num_batches(len(images), batch_size=max(batch_size, 2))
    parts = iter(torch.tensor_split(order, num_parts))
    with torch.no_grad(), closing(batches_of(images, parts, device)) as batches:
        for _, batch in batches:
            model(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
