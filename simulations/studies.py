"""The study of a command: the file it names or the command's own, with what the command line says instead."""

import argparse
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import yaml

from common.errors import ConfigError
from common.study import Study, parse_study
from simulations.phantom_sites import PHANTOM_OPTIONS


def study_of_command(arguments: argparse.Namespace, *, default: str) -> Study:
    """The study that a command line names, for phantom hospitals or for sites of its own.

    Args:
        arguments: With `study`, `site`, `seed` and the options of phantom hospitals; `rounds` and `fedprox_mu`, where
            the command has them, change the study as `seed` does.
        default: The study in `simulations/` that is taken where none is named.

    Raises:
        ConfigError: If it cannot be read, a value is out of range, or options contradict each other.
    """
    given = [option for option in PHANTOM_OPTIONS if getattr(arguments, option) is not None]
    if arguments.site and given:
        raise ConfigError(f"--{given[0]} is for phantom hospitals and has no meaning beside --site; leave one out")
    return with_changes(
        read_study(arguments.study, default=default),
        seed=arguments.seed,
        rounds=getattr(arguments, "rounds", None),
        fedprox_mu=getattr(arguments, "fedprox_mu", None),
    )


def refuse_options(arguments: argparse.Namespace, options: Sequence[str], *, place: str) -> None:
    """Refuse options of the plain command that another one, before whose name they stand, has no use for.

    Args:
        arguments: Of the command line.
        options: As attributes.
        place: Where they have no meaning, in words.

    Raises:
        ConfigError: If one was given.
    """
    for option in options:
        if getattr(arguments, option, None) not in (None, []):
            raise ConfigError(f"--{option.replace('_', '-')} has no meaning for {place}; leave it out")


def read_study(path: Path | None, *, default: str) -> Study:
    """The study in a file, or the named one in `simulations/`; raises ConfigError."""
    if path is None:
        return parse_study((files("simulations") / default).read_text(encoding="utf-8"), origin=default)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--study {path}: cannot be read ({error}); name a study.yaml in UTF-8") from None
    return parse_study(text, origin=str(path))


def with_changes(
    study: Study, *, seed: int | None = None, rounds: int | None = None, fedprox_mu: float | None = None
) -> Study:
    """The study with what the command line says instead.

    Raises:
        ConfigError: If a value is out of range.
    """
    if seed is not None and not 0 <= seed < 2**31:
        raise ConfigError(f"--seed {seed}: expected a whole number from 0 to {2**31 - 1}")
    if rounds is not None and not 1 <= rounds <= 10_000:
        raise ConfigError(f"--rounds {rounds}: expected a whole number from 1 to 10000")
    if fedprox_mu is not None and not 0 <= fedprox_mu <= 100:
        raise ConfigError(f"--fedprox-mu {fedprox_mu}: expected a number from 0 to 100; 0 is FedAvg")
    values = study.model_dump(mode="json")
    if seed is not None:
        values["seed"] = seed
    if rounds is not None:
        values["rounds"] = rounds
    if fedprox_mu is not None:
        values["training"]["fedprox_mu"] = fedprox_mu
    return parse_study(yaml.safe_dump(values), origin="the study with the command's changes")


def study_yaml(study: Study) -> str:
    """The study as YAML, with every setting written out."""
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
