"""The paper's table on phantoms: which cells, whose patients, at what cost, and what several seeds become."""

from pathlib import Path

import pytest
import yaml

from client.cohort import load_cohort
from client.config import read_site_config
from common.errors import ConfigError
from common.metrics.estimate import Estimate, not_estimable, without_interval
from common.study import parse_study
from simulations.paper.budget import Budget, StepTime, Work, parts_of_arm, time_step, work_of
from simulations.paper.cells import Cell, cells_of, study_of
from simulations.paper.hospitals import patients_by_hospital, published_parts, write_sites
from simulations.paper.published import MODEL_NAMES, PaperModel, published_row
from simulations.paper.table import MEASURES, CellFigures, TableRow, json_rows, mean_over_seeds, terminal_table
from simulations.phantom.federation import plan_hospitals, write_hospitals
from simulations.phantom.spec import HOSPITALS, PhantomOptions, draw_labels

ROOT = Path(__file__).parent.parent.parent
BASE = parse_study((ROOT / "simulations" / "paper_study.yaml").read_text(encoding="utf-8"), origin="paper_study.yaml")
COARSE = PhantomOptions(spacing_mm=8.0)


def test_hospital_p_has_the_paper_s_patients() -> None:
    labels = draw_labels(HOSPITALS["P"], HOSPITALS["P"].num_patients, PhantomOptions())

    assert (len(labels), sum(labels)) == (234, 42)


def test_hospital_p_leaves_the_other_hospitals_as_they_were() -> None:
    digests = [plan_hospitals(Path("nowhere"), [name], PhantomOptions())[0].digest[:6] for name in "ABCDEF"]

    assert digests == ["14ec55", "5eea44", "8637c1", "b20867", "2bc3d6", "10692d"]


def test_the_published_numbers_of_patients_are_tested() -> None:
    parts = [published_parts(number, label, BASE.split.validation) for label, number in enumerate((192, 42))]

    assert parts == [(105, 38, 49), (25, 8, 9)]


@pytest.mark.parametrize("num_patients", [20, 60, 120, 400])
def test_every_part_has_both_classes_with_fewer_or_more_patients(num_patients: int) -> None:
    counts = patients_by_hospital(["one"], num_patients)

    (parts,) = parts_of_arm("one", BASE, counts, PhantomOptions())

    assert sum(parts) == num_patients
    labels = draw_labels(HOSPITALS["P"], num_patients, PhantomOptions())
    for label in (0, 1):
        assert min(published_parts(labels.count(label), label, BASE.split.validation)) >= 1


def test_five_hospitals_shrink_in_proportion() -> None:
    assert patients_by_hospital(["five"], None) == {"A": 120, "B": 60, "C": 45, "D": 30, "E": 24}
    assert patients_by_hospital(["one", "five"], 117) == {"P": 117, "A": 60, "B": 30, "C": 23, "D": 16, "E": 16}


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--patients 19: expected 20 or more"):
        patients_by_hospital(["one"], 19)


def test_the_one_hospital_s_tables_name_the_published_split_which_a_seed_draws_anew(tmp_path: Path) -> None:
    (phantom,) = write_hospitals(tmp_path / "phantoms", ["P"], COARSE, num_patients={"P": 24})
    splits = []
    for seed in (0, 1, 0):
        (site,) = write_sites(
            tmp_path / f"seed-{seed}", {"P": phantom}, "one", validation_share=BASE.split.validation, seed=seed
        )

        cohort = load_cohort(read_site_config(site), study_of(Cell("one", "resnet10", "all", seed), BASE))

        splits.append(dict(cohort.split_of))
        assert cohort.split_source == "table"
        assert [cohort.class_counts(split) for split in ("train", "validation", "test")] == [(11, 2), (4, 1), (5, 1)]
    assert splits[0] == splits[2]
    assert splits[0] != splits[1]


def test_five_hospitals_keep_the_patients_who_have_all_sequences(tmp_path: Path) -> None:
    counts = dict.fromkeys("ABCDE", 16)
    paths = write_hospitals(tmp_path / "phantoms", list(counts), COARSE, num_patients=counts)
    phantoms = dict(zip(counts, paths, strict=True))

    sites = write_sites(tmp_path / "five", phantoms, "five", validation_share=0.2, seed=0)

    configs = [read_site_config(site) for site in sites]
    by_sequences = [
        [load_cohort(config, study_of(Cell("five", "resnet10", sequences, 0), BASE)).split_of for config in configs]
        for sequences in ("t1", "all")
    ]
    assert by_sequences[0] == by_sequences[1]
    kept = [len(split_of) for split_of in by_sequences[0]]
    assert kept[0] == 16
    assert sum(kept) < 80
    assert [config.cache.parent for config in configs] == [path.parent for path in paths]


def test_tables_that_are_not_of_these_phantoms_are_refused(tmp_path: Path) -> None:
    (phantom,) = write_hospitals(tmp_path / "phantoms", ["P"], COARSE, num_patients={"P": 20})
    write_sites(tmp_path / "one", {"P": phantom}, "one", validation_share=0.2, seed=0)

    with pytest.raises(ConfigError, match=r"table.tsv: is not the table of these phantoms"):
        write_sites(tmp_path / "one", {"P": phantom}, "one", validation_share=0.2, seed=1)


def test_cells_come_seed_by_seed_and_have_names_of_their_own() -> None:
    cells = cells_of(arms=["one", "five"], models=["resnet10"], sequences=["t1", "all"], seeds=range(2))

    assert len({cell.name for cell in cells}) == 8
    assert [cell.seed for cell in cells] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_cell_s_study_is_the_base_with_its_own_settings() -> None:
    study = study_of(Cell("five", "resnet10", "t1ce", 3), BASE, rounds=4, width=0.25)

    changed = study.model_dump(mode="json")
    base = BASE.model_dump(mode="json")
    assert {name for name in base if base[name] != changed[name]} == {
        *("name", "seed", "rounds", "sequences", "model", "participation", "evaluation"),
    }
    assert (study.sequences, study.rounds, study.seed, study.model.width) == (("t1ce",), 4, 3, 0.25)
    assert (study.participation.min_sites, study.evaluation.min_pooled_sites) == (5, 3)
    assert study.evaluation.operating_point.rule == "sensitivity"


def test_a_cell_has_fewer_groups_where_they_do_not_divide_its_channels() -> None:
    study = study_of(Cell("one", "resnet10", "t1", 0), BASE, width=0.1875)  # 12, 24, 48 and 96 channels

    assert (BASE.model.num_groups, study.model.num_groups) == (8, 4)


@pytest.mark.parametrize("width", [1.0, 0.25, 0.125])
@pytest.mark.parametrize("model", MODEL_NAMES)
def test_every_model_of_the_paper_has_a_study_at_the_usual_widths(model: PaperModel, width: float) -> None:
    study = study_of(Cell("five", model, "all", 0), BASE, width=width)

    assert (study.model.name, study.model.width, study.sequences) == (model, width, ("t1", "t2", "t1ce"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"rounds": 0}, "rounds"), ({"width": 0.0}, "width"), ({"width": 9.0}, "width")],
    ids=["no rounds", "no width", "too wide"],
)
def test_what_cannot_be_a_study_is_refused_by_its_cell(changes: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"cell one-resnet10-t1-seed-0(.|\n)*{told}"):
        study_of(Cell("one", "resnet10", "t1", 0), BASE, **changes)  # type: ignore[arg-type]


def test_budget_counts_the_batches_that_a_run_makes() -> None:
    study = study_of(Cell("one", "resnet10", "t1", 0), BASE, rounds=3)  # batches of 8, one epoch a round

    work = work_of(study, [(17, 8, 9), (8, 1, 1)])

    assert work.num_steps == 3 * (3 + 1)
    assert work.num_evaluated == (3 + 2) * (1 + 1) + (2 + 1)
    assert work.seconds(StepTime(training_s=2.0, evaluation_s=0.5)) == 12 * 2.0 + 13 * 0.5


def test_budget_counts_fixed_steps_where_the_study_has_them() -> None:
    values = BASE.model_dump(mode="json")
    values["training"] |= {"local_epochs": None, "local_steps": 10}
    base = parse_study(yaml.safe_dump(values), origin="steps")

    work = work_of(study_of(Cell("one", "resnet10", "t1", 0), base, rounds=2), [(100, 8, 8)])

    assert work == Work(num_steps=20, num_evaluated=4 + 1)


def test_budget_says_cells_patients_and_time_in_a_line() -> None:
    budget = Budget(48, 3, {"one": 234, "five": 279}, num_steps=9000, minutes=150.0, workers=2)

    line = budget.line()

    for part in ("48 cells, 3 of them finished", "234 patients at one hospital", "279 patients at five", "2.5 hours"):
        assert part in line


def test_a_step_takes_time() -> None:
    step = time_step(study_of(Cell("one", "resnet10", "t1", 0), BASE, width=0.125))

    assert 0 < step.evaluation_s < step.training_s


def cell_with(value: float, half_width: float) -> CellFigures:
    figure = Estimate(value, value - half_width, value + half_width, 58)
    return CellFigures((49, 9), dict.fromkeys(MEASURES, figure))


def test_seeds_are_averaged_and_repetition_narrows_nothing() -> None:
    mean = mean_over_seeds([cell_with(0.6, 0.2), cell_with(0.8, 0.1)])

    figure = mean.figures["auc"]
    assert mean.num_seeds == 2
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.7, 0.55, 0.85))


def test_a_seed_without_an_interval_or_a_figure_takes_it_from_the_mean() -> None:
    perfect = CellFigures((49, 9), dict.fromkeys(MEASURES, without_interval(1.0, "no overlap", 58)))
    nothing = CellFigures((49, 9), dict.fromkeys(MEASURES, not_estimable("no threshold", 58)))

    with_perfect = mean_over_seeds([cell_with(0.6, 0.2), perfect]).figures["auc"]
    with_nothing = mean_over_seeds([cell_with(0.6, 0.2), nothing]).figures["auc"]

    assert (with_perfect.value, with_perfect.low) == (0.8, None)
    assert with_perfect.reason == "with 1 of 2 seeds: no overlap"
    assert with_nothing == not_estimable("with 1 of 2 seeds: no threshold", 58)


def test_a_cell_without_a_result_is_said_to_have_none() -> None:
    row = TableRow("resnet10", "t1", published_row("resnet10", "t1"), {"one": cell_with(0.7, 0.1), "five": None})

    table = terminal_table([row])
    (values,) = json_rows([row])

    assert list(table.columns[2].cells) == ["9 + 49", "9 + 49", ""]
    assert list(table.columns[3].cells) == ["0.72 [0.49, 0.87]", "0.70 [0.60, 0.80]", "no result"]
    assert values["phantoms"]["five"] is None
    assert values["published"]["counts"] == {"true_positive": 4, "true_negative": 48}
