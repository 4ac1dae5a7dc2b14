"""What sites let leave is looked at before a comparison or a cross-validation trains anything."""

from pathlib import Path

import pytest
import yaml

from client.config import SiteConfig, read_site_config
from common.errors import ConfigError
from common.study import parse_study
from server.method_studies import study_of_fold
from simulations.cli import main
from simulations.compare.allowed import finest_allowed, withheld_folds, withheld_tests
from simulations.compare.pooled_site import write_pooled_site
from simulations.side_by_side import PlannedRun
from tests.tiny_hospitals import study_text, write_tiny_hospital

STUDY = parse_study(study_text(evaluation={"num_bins": 256, "min_pooled_sites": 2}), origin="study")


def hospital(folder: Path, name: str, *, min_cell: int = 1, max_bins: int = 256, necrosis: int = 6) -> Path:
    rules = {"min_patients": 1, "min_cell": min_cell, "max_bins": max_bins}
    path = write_tiny_hospital(folder, name, splits=(("train", 8, necrosis),), disclosure=rules)
    table = path.parent / "table.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    table.write_text("\n".join("\t".join(row[:2] + row[3:]) for row in rows) + "\n")  # the study draws the splits
    return path


def configs(*paths: Path) -> dict[str, SiteConfig]:
    found = [read_site_config(path) for path in paths]
    return {config.name: config for config in found}


def folds(num_folds: int, paths: tuple[Path, ...]) -> list[PlannedRun]:
    return [PlannedRun(Path(f"fold-{k}"), study_of_fold(STUDY, num_folds, k, 0), paths) for k in range(num_folds)]


def test_pooled_site_shows_no_more_than_the_strictest_site(tmp_path: Path) -> None:
    sites = configs(hospital(tmp_path, "a", min_cell=3, max_bins=64), hospital(tmp_path, "b", min_cell=5, max_bins=128))

    path = write_pooled_site(tmp_path / "pooled", sites, STUDY)

    rules = read_site_config(path).disclosure
    assert (rules.min_cell, rules.max_bins) == (5, 64)


def test_own_study_takes_the_bins_that_every_site_shows(tmp_path: Path) -> None:
    sites = configs(hospital(tmp_path, "a", max_bins=64), hospital(tmp_path, "b", max_bins=32))

    assert finest_allowed(STUDY, sites, is_own=True).evaluation.num_bins == 32
    assert finest_allowed(STUDY, configs(tmp_path / "a" / "site.yaml"), is_own=True).evaluation.num_bins == 64


def test_given_study_that_counts_too_finely_is_refused_before_anything_is_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [hospital(tmp_path, "a", max_bins=64), hospital(tmp_path, "b")]
    values = yaml.safe_load(study_text(evaluation={"num_bins": 256}, training={"local_epochs": None, "local_steps": 1}))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    words = ["compare", "--study", str(tmp_path / "study.yaml"), "--arms", "local", "--out", str(tmp_path / "out")]

    status = main([*words, *(word for path in paths for word in ("--site", str(path)))])

    assert status == 2
    assert "256 bins, these sites show fewer (disclosure.max_bins): a 64; write num_bins: 64" in capsys.readouterr().err
    assert not (tmp_path / "a" / "cache" / "exams").exists()
    assert not (tmp_path / "out").exists()


def test_folds_that_every_site_shows_need_no_word(tmp_path: Path) -> None:
    paths = (hospital(tmp_path, "a"), hospital(tmp_path, "b"))

    assert withheld_folds(folds(3, paths), configs(*paths)) == []


def test_site_that_will_withhold_its_test_is_named_with_the_count_that_decides(tmp_path: Path) -> None:
    shown, hidden = hospital(tmp_path, "a"), hospital(tmp_path, "b", min_cell=3)
    agreed = parse_study(study_text(split={"validation": 0.2, "test": 0.2}), origin="study")

    (line,) = withheld_tests(agreed, configs(shown, hidden))

    assert line == "b will withhold the counts of its test: only 1 necrosis, disclosure.min_cell 3"
    assert withheld_tests(agreed, configs(shown)) == []


def test_site_that_withholds_every_fold_is_named_where_the_others_suffice(tmp_path: Path) -> None:
    paths = (hospital(tmp_path, "a"), hospital(tmp_path, "b"), hospital(tmp_path, "c", min_cell=3))

    (line,) = withheld_folds(folds(3, paths), configs(*paths))

    assert line.startswith("c will withhold the test counts of 3 of 3 folds: only 2 ")
    assert line.endswith("disclosure.min_cell 3")


@pytest.mark.parametrize(
    ("min_cell", "necrosis", "message"),
    [
        pytest.param(3, 6, "1 sites show theirs, evaluation.min_pooled_sites is 2", id="too few sites"),
        pytest.param(2, 5, r"folds whose counts are of different sites cannot be added up \(b\)", id="some folds"),
    ],
)
def test_cross_validation_that_can_have_no_figures_is_refused_before_it_trains(
    min_cell: int, necrosis: int, message: str, tmp_path: Path
) -> None:
    paths = (hospital(tmp_path, "a"), hospital(tmp_path, "b", min_cell=min_cell, necrosis=necrosis))

    with pytest.raises(ConfigError, match=message):
        withheld_folds(folds(3, paths), configs(*paths))
