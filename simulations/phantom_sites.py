"""Phantom hospitals for a command: reads its options, writes what is not there yet, shows how far it is."""

import argparse
from pathlib import Path

from rich.console import Console

from common.errors import ConfigError
from simulations.display import progress_bar
from simulations.phantom.federation import num_patients_to_draw, write_hospitals
from simulations.phantom.spec import PhantomOptions


def phantom_sites(
    arguments: argparse.Namespace, console: Console, *, seed: int, spacing_mm: float | None, workers: int
) -> list[Path]:
    """Write the hospitals that a command asks for, below its --data folder; returns their site.yaml.

    Hospitals of different options lie in different folders, so none is made twice and none is taken for another.
    """
    spacing = "native" if spacing_mm is None else f"{spacing_mm:g}mm"
    size = "" if arguments.patients is None else f"-{arguments.patients}"
    out = arguments.data / f"separation-{arguments.separation:g}-seed-{seed}-{spacing}{size}"
    return write_phantoms(arguments, console, out=out, seed=seed, spacing_mm=spacing_mm, workers=workers)


def write_phantoms(
    arguments: argparse.Namespace, console: Console, *, out: Path, seed: int, spacing_mm: float | None, workers: int
) -> list[Path]:
    """Write the hospitals that a command asks for into a folder, with a bar; returns their site.yaml."""
    names = [name.strip() for name in arguments.sites.split(",") if name.strip()]
    patients = positive("--patients", arguments.patients)
    counts = None if patients is None else {name.upper(): patients for name in names}
    options = PhantomOptions(separation=arguments.separation, seed=seed, spacing_mm=spacing_mm)
    missing = num_patients_to_draw(out, names, options, counts)
    with progress_bar(console, "phantom patients to draw", missing) as bar:
        return write_hospitals(out, names, options, num_patients=counts, workers=workers, on_patient=bar.advance)


def positive(option: str, value: int | None) -> int | None:
    """A number from the command line that must be at least 1, if it was given."""
    if value is not None and value < 1:
        raise ConfigError(f"{option} {value}: expected a whole number of at least 1")
    return value
