"""Federated averaging written plainly, in one process: `python -m simulations.benchmark.plain_loop STUDY SITE.npz ...`.

What a researcher would write who needs no federation: a loop over rounds, a loop over sites, the same network on the
same prepared images. Also what the other programs' clients compute.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models import build_model
from common.study import Study, parse_study


@dataclass(frozen=True)
class Patients:
    """Images and labels of a site: those to train on, and those that each state is evaluated on."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


def read_patients(path: Path) -> Patients:
    """Read a site's file."""
    with np.load(path) as arrays:
        return Patients(*(torch.from_numpy(arrays[name]) for name in ("images", "labels", "val_images", "val_labels")))


def read_study(path: Path) -> Study:
    """Read the study of the benchmark."""
    return parse_study(path.read_text(encoding="utf-8"), origin=path.name)


def new_model(study: Study) -> nn.Module:
    """The study's network, with its seed."""
    generator = torch.Generator().manual_seed(study.seed)
    return build_model(study.model, num_sequences=len(study.sequences), generator=generator)


def train_epoch(model: nn.Module, patients: Patients, study: Study) -> None:
    """One pass over the site's patients with a fresh optimiser."""
    spec = study.training
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay)
    model.train()
    for batch in torch.split(torch.randperm(len(patients.labels)), spec.batch_size):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(patients.images[batch]), patients.labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.inference_mode()
def num_right(model: nn.Module, patients: Patients) -> int:
    """Validation patients that the model calls rightly."""
    model.eval()
    return int((model(patients.validation_images).argmax(dim=1) == patients.validation_labels).sum())


def main(argv: Sequence[str]) -> int:
    """Train all rounds."""
    study = read_study(Path(argv[0]))
    sites = [read_patients(Path(path)) for path in argv[1:]]
    weights = [len(site.labels) for site in sites]
    model = new_model(study)
    for _ in range(study.rounds):
        before = {name: values.clone() for name, values in model.state_dict().items()}
        mean = {name: torch.zeros_like(values) for name, values in before.items()}
        for site, weight in zip(sites, weights, strict=True):
            model.load_state_dict(before)
            num_right(model, site)
            train_epoch(model, site, study)
            for name, values in model.state_dict().items():
                mean[name] += values * (weight / sum(weights))
        model.load_state_dict(mean)
    sys.stdout.write(f"{sum(num_right(model, site) for site in sites)} validation patients called rightly\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
