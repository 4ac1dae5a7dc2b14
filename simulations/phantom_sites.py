"""Phantom hospitals for a command: reads its options, writes what is not there yet, shows how far it is."""

import argparse
from pathlib import Path

from rich.console import Console

from common.errors import ConfigError
from simulations.display import progress_bar
from simulations.phantom.federation import num_patients_to_draw, write_hospitals
from simulations.phantom.spec import HOSPITALS, PhantomOptions

PHANTOM_OPTIONS = ("sites", "patients", "separation", "data")
"""Options of a command that are about phantom hospitals alone. None where they were not given."""

DEMO_HOSPITALS = "A,B,C,D,E"
DEMO_SEPARATION = 1.5
DEMO_SIZE = 2
"""The demo's hospitals have this many times the patients of the phantom's table: 240 at A to 48 at E."""

DATA_FOLDER = Path("hospitals")


def hospital_names(arguments: argparse.Namespace, default: str = DEMO_HOSPITALS) -> list[str]:
    """The letters of the hospitals that a command asks for."""
    return [name.strip() for name in (arguments.sites or default).split(",") if name.strip()]


def separation_of(arguments: argparse.Namespace) -> float:
    """How far apart a command wants the classes."""
    return DEMO_SEPARATION if arguments.separation is None else float(arguments.separation)


def phantom_sites(
    arguments: argparse.Namespace, console: Console, *, seed: int, spacing_mm: float | None, workers: int
) -> list[Path]:
    """Write the hospitals that a command asks for, below its --data folder; returns their site.yaml.

    Hospitals of different options lie in different folders, so none is made twice and none is taken for another.
    """
    spacing = "native" if spacing_mm is None else f"{spacing_mm:g}mm"
    size = f"x{DEMO_SIZE}" if arguments.patients is None else str(arguments.patients)
    folder = arguments.data or DATA_FOLDER
    out = folder / f"separation-{separation_of(arguments):g}-seed-{seed}-{spacing}-{size}"
    return write_phantoms(
        arguments,
        console,
        names=hospital_names(arguments),
        times=DEMO_SIZE,
        out=out,
        seed=seed,
        spacing_mm=spacing_mm,
        workers=workers,
    )


def write_phantoms(
    arguments: argparse.Namespace,
    console: Console,
    *,
    names: list[str],
    times: int,
    out: Path,
    seed: int,
    spacing_mm: float | None,
    workers: int,
) -> list[Path]:
    """Write the hospitals that a command asks for into a folder, with a bar; returns their site.yaml.

    Without --patients each has its own number of patients, as many times as told.
    """
    patients = positive("--patients", arguments.patients)
    known = [name.upper() for name in names if name.upper() in HOSPITALS]
    counts = {name: patients or times * HOSPITALS[name].num_patients for name in known}
    options = PhantomOptions(separation=separation_of(arguments), seed=seed, spacing_mm=spacing_mm)
    missing = num_patients_to_draw(out, names, options, counts)
    with progress_bar(console, "phantom patients to draw", missing) as bar:
        return write_hospitals(out, names, options, num_patients=counts, workers=workers, on_patient=bar.advance)


def positive(option: str, value: int | None) -> int | None:
    """A number from the command line that must be at least 1, if it was given."""
    if value is not None and value < 1:
        raise ConfigError(f"{option} {value}: expected a whole number of at least 1")
    return value
