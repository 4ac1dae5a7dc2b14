"""The benchmark command: a table, files without paths, and a benchmark that fails alone."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.benchmark import command
from simulations.benchmark.registry import MODULES, load
from simulations.benchmark.result import Measurement, Options
from simulations.benchmark.run import run_suite, without_paths
from simulations.benchmark.table import markdown, value_text
from simulations.cli import main

FAKE = """
import os
from simulations.benchmark.result import Benchmark, BenchmarkResult, Measurement

def measure(options):
    {body}
    return BenchmarkResult("fake", (
        Measurement("half of | it", 0.5, "s", target="< 1 s", reached=True),
        Measurement("all of it", 1234.5, "ms", target="< 1 s", reached=False, note="slow"),
    ), {{"quick": options.quick, "repeats": options.repeats}})

BENCHMARK = Benchmark("fake", "Nothing", measure)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Three benchmarks: one raises, one dies, one works. Returns the module of each."""
    bodies = {"raises": "open('/srv/site/folder/secret.yaml')", "dies": "os._exit(9)", "works": "pass"}
    for name, body in bodies.items():
        (tmp_path / f"fake_benchmark_{name}.py").write_text(FAKE.format(body=body), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {name: f"fake_benchmark_{name}" for name in bodies}
    for name in bodies:
        sys.modules.pop(f"fake_benchmark_{name}", None)


def test_a_benchmark_that_fails_says_why_and_the_others_go_on(
    fakes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = dict(fakes)
    monkeypatch.setattr(command, "MODULES", modules)
    monkeypatch.setattr("simulations.benchmark.registry.MODULES", modules)

    code = main(["benchmark", "--quick", "--repeats", "2", "--out", str(tmp_path / "out"), "--json"])

    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    raises, dies, works = written["benchmarks"]
    assert code == 1
    assert json.loads(capsys.readouterr().out) == written
    assert "FileNotFoundError" in raises["failure"]
    assert "secret.yaml" in raises["failure"]
    assert "/srv" not in table + json.dumps(written)
    assert "ended with code 9" in dies["failure"]
    assert works["failure"] is None
    assert works["settings"] == {"quick": True, "repeats": 2}
    assert r"| half of \| it | 0.5 | s | < 1 s | yes |  |" in table
    assert "| all of it | 1234 | ms | < 1 s | NO | slow |" in table


def test_the_cheapest_benchmark_works_and_says_what_machine_it_ran_on(tmp_path: Path) -> None:
    suite = run_suite({"aggregation": MODULES["aggregation"]}, quick=True, repeats=1)

    assert suite.failed == ()
    result = suite.outcomes[0].result
    assert result is not None
    assert any(measurement.target is not None for measurement in result.measurements)
    assert suite.machine.cores >= 1
    assert suite.machine.versions["torch"]
    assert "small sizes" in markdown(suite)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_benchmark_that_is_listed_is_there_under_its_name(name: str) -> None:
    assert load(MODULES[name]).name == name


def test_an_unknown_name_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "agregation"]) == 2

    assert "there is no agregation; name some of step, data, prepare, aggregation" in capsys.readouterr().err


def test_a_target_comes_with_whether_it_was_reached() -> None:
    with pytest.raises(ValueError, match="target and reached come together"):
        Measurement("speed", 1.0, "s", target="< 2 s")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.0, "3"), (0.01234, "0.0123"), (99.96, "100"), (1234.5, "1234"), (0.00001, "1.0e-05")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert value_text(value) == text


def test_paths_are_cut_to_their_last_part() -> None:
    assert (
        without_paths("[Errno 2] not there: '/a/b/site.yaml', 1/2 done") == "[Errno 2] not there: 'site.yaml', 1/2 done"
    )


def test_options_are_full_size_by_default(tmp_path: Path) -> None:
    assert (Options(tmp_path).quick, Options(tmp_path).repeats) == (False, 3)
