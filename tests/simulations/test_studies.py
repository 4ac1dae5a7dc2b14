"""The study of a command, and options that mean nothing to it."""

from argparse import Namespace
from pathlib import Path

import pytest

from common.errors import ConfigError
from simulations.cli import main
from simulations.studies import read_study, study_of_command, study_yaml, with_changes

DEFAULT = "demo_study.yaml"


def options(**values: object) -> Namespace:
    return Namespace(
        **{"study": None, "site": None, "seed": None, "sites": None, "patients": None, "separation": None, "data": None}
        | values
    )


def test_a_command_without_a_study_takes_its_own_with_the_changes_it_names() -> None:
    study = study_of_command(options(seed=7, rounds=3, fedprox_mu=0.5), default=DEFAULT)
    assert (study.seed, study.rounds, study.training.fedprox_mu) == (7, 3, 0.5)
    assert with_changes(study, seed=0, rounds=10, fedprox_mu=0.0) == read_study(None, default=DEFAULT)


def test_a_study_written_out_is_read_as_the_same(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    study = with_changes(read_study(None, default=DEFAULT), rounds=2)
    path.write_text(study_yaml(study), encoding="utf-8")
    assert study_of_command(options(study=path), default=DEFAULT) == study


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"site": [Path("a.yaml")], "patients": 5}, "--patients is for phantom hospitals", id="both kinds"),
        pytest.param({"seed": -1}, "--seed -1: expected a whole number from 0", id="seed"),
        pytest.param({"rounds": 0}, "--rounds 0: expected a whole number from 1", id="rounds"),
        pytest.param({"fedprox_mu": -0.1}, "--fedprox-mu -0.1: expected a number from 0", id="mu"),
        pytest.param({"study": Path("absent.yaml")}, "--study absent.yaml: cannot be read", id="absent"),
    ],
)
def test_a_wrong_option_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study_of_command(options(**values), default=DEFAULT)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--fedprox-mu 0.1 compare --dry-run", "--fedprox-mu has no meaning for a comparison"),
        ("--resume runs/x folds --dry-run", "--resume has no meaning for a comparison"),
        ("--rounds 3 statistics", "--rounds has no meaning for statistics"),
        ("--fault hospital-a:nan paper --dry-run", "--fault has no meaning for the paper's table"),
    ],
)
def test_an_option_before_a_command_without_use_for_it_is_refused(
    command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err
