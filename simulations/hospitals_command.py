"""`gliorn-simulate hospitals`: writes phantom hospitals and a picture of each, and says what can be done with them."""

import argparse
import json

from rich.console import Console

from simulations.phantom.montage import write_montage
from simulations.phantom_sites import hospital_names, positive, write_phantoms
from simulations.processors import default_workers

ALL_HOSPITALS = "A,B,C,D,E,F"


def hospitals_command(arguments: argparse.Namespace, console: Console) -> int:
    """Write the hospitals; returns 0."""
    workers = positive("--workers", arguments.workers) or default_workers()
    seed = 0 if arguments.seed is None else arguments.seed
    names = hospital_names(arguments, default=ALL_HOSPITALS)
    paths = write_phantoms(
        arguments,
        console,
        names=names,
        times=1,
        out=arguments.out,
        seed=seed,
        spacing_mm=arguments.spacing,
        workers=workers,
    )
    pictures = []
    for path in paths:
        picture = arguments.out / f"{path.parent.name}.png"
        write_montage(path.parent, picture)
        pictures.append(picture)
        console.print(f"{path.parent.name}: {path}, picture {picture}")
    console.print("Phantoms, not patients. Next: gliorn-simulate " + " ".join(f"--site {path}" for path in paths[:3]))
    if arguments.json:
        values = [{"site": str(path), "picture": str(png)} for path, png in zip(paths, pictures, strict=True)]
        print(json.dumps(values, indent=1))  # noqa: T201 - what --json is for
    return 0
