"""Whatever a user gets wrong in a study, a site configuration or a table ends with exit 2 and one clear message."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.cli import main
from tests.tiny_hospitals import study_text, write_tiny_hospital

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    write_tiny_hospital(folder, "a", splits=(("train", 2, 2), ("validation", 1, 1), ("test", 1, 1)))
    return folder / "a"


@pytest.fixture
def inputs(hospital: Path, tmp_path: Path) -> Path:
    """A sound study.yaml and a sound hospital, to be broken."""
    shutil.copytree(hospital, tmp_path / "a")
    (tmp_path / "study.yaml").write_text(study_text(rounds=1), encoding="utf-8")
    return tmp_path


def replace(file: str, old: str, new: str) -> Change:
    """Change a file's text everywhere it stands."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text, f"{file} does not hold {old!r}"
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")

    return change


def append(file: str, text: str) -> Change:
    def change(folder: Path) -> None:
        with (folder / file).open("a", encoding="utf-8") as opened:
            opened.write(text)

    return change


def cell(row: int, column: str, value: str) -> Change:
    """Change one field of the table; row 1 is the first exam."""

    def change(folder: Path) -> None:
        path = folder / "a" / "table.tsv"
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        rows[row][rows[0].index(column)] = value
        path.write_text("".join("\t".join(fields) + "\n" for fields in rows), encoding="utf-8")

    return change


def remove(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def cut_off(file: str) -> Change:
    """Lose the second half of a file, as a broken copy does."""

    def change(folder: Path) -> None:
        payload = (folder / file).read_bytes()
        (folder / file).write_bytes(payload[: len(payload) // 2])

    return change


def write(file: str, payload: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(payload)

    return change


BROKEN = {
    # the study
    "study with a misspelt setting": (replace("study.yaml", "learning_rate", "learning_rat"), "did you mean"),
    "study without rounds": (replace("study.yaml", "rounds: 1\n", ""), "'rounds' is missing"),
    "study with rounds as text": (replace("study.yaml", "rounds: 1", "rounds: many"), "found 'many'"),
    "study with a negative rate": (
        replace("study.yaml", "learning_rate: 0.001", "learning_rate: -1"),
        "greater than 0",
    ),
    "study with both lengths": (
        replace("study.yaml", "local_epochs: 1", "local_epochs: 1\n  local_steps: 3"),
        "exactly one of local_epochs and local_steps",
    ),
    "study with an unknown sequence": (append("study.yaml", "sequences: [t1, flair]\n"), "'t1', 't2' or 't1ce'"),
    "study with a key given twice": (append("study.yaml", "rounds: 3\n"), "given twice"),
    "study with a tab": (append("study.yaml", "\tname: x\n"), "not readable as YAML"),
    "study that is empty": (write("study.yaml", b""), "found nothing"),
    "study that is a list": (write("study.yaml", b"- a\n- b\n"), "found list"),
    "study that is no text": (write("study.yaml", b"\xff\xfe\x00\x01"), "cannot be read"),
    "study with a crop of one number": (replace("study.yaml", "  - 16\n  - 16\n  - 16\n", "  - 16\n"), "size_voxels"),
    "study that wants more sites": (
        replace("study.yaml", "min_sites: 1", "min_sites: 5"),
        "1 sites are given to train",
    ),
    "study with groups that do not fit": (replace("study.yaml", "num_groups: 4", "num_groups: 5"), "groups"),
    "study in finer bins than the site shows": (
        replace("study.yaml", "min_pooled_sites: 1", "min_pooled_sites: 1\n  num_bins: 512"),
        "at most 256",
    ),
    # the site
    "site without a name": (replace("a/site.yaml", "name: a\n", ""), "'name' is missing"),
    "site with an unknown device": (replace("a/site.yaml", "device: cpu", "device: gpu"), "device"),
    "site with a table that is absent": (replace("a/site.yaml", "table.tsv", "absent.tsv"), "absent.tsv"),
    "site with a table of another kind": (replace("a/site.yaml", "table.tsv", "table.xls"), ".csv"),
    "site with one class in its label map": (replace("a/site.yaml", "  necrosis: 1\n", ""), "map"),
    "site with a label of 2": (replace("a/site.yaml", "necrosis: 1", "necrosis: 2"), "label_map"),
    # the table
    "table without a label column": (replace("a/table.tsv", "label", "diagnosis"), "label"),
    "table with an unmapped label": (cell(1, "label", "edema"), "edema"),
    "table with an exam twice": (cell(2, "patient_id", "0001"), "0001"),
    "table with an unknown split": (cell(1, "split", "holdout"), "holdout"),
    "table with half the splits": (cell(1, "split", ""), "split"),
    "table with a file that is absent": (remove("a/0001_t1.nii.gz"), "0001_t1.nii.gz"),
    "table with a lesion at no number": (cell(1, "lesion_x", "left"), "left"),
    "table with a missing sequence": (cell(1, "t2", ""), "lacks t2"),
    "table that is empty": (write("a/table.tsv", b""), "table.tsv"),
    # the images
    "image that is cut off": (cut_off("a/0001_t1.nii.gz"), "0001"),
    "image that is no image": (write("a/0001_t1.nii.gz", b"hello"), "0001"),
    "image of no bytes": (write("a/0001_t1.nii.gz", b""), "0001"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_ends_with_exit_2_and_one_clear_message(
    inputs: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, telling = BROKEN[name]
    change(inputs)

    status = main(["--study", f"{inputs}/study.yaml", "--site", f"{inputs}/a/site.yaml", "--out", f"{inputs}/run"])

    error = capsys.readouterr().err
    assert status == 2, error
    assert error.startswith("gliorn-simulate: ")
    assert error.count("gliorn-simulate: ") == 1
    assert telling in error
    assert "Traceback" not in error
    assert not (inputs / "run").exists(), "nothing is begun on faulty input"


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        pytest.param(["--rounds", "0"], "--rounds 0", id="no rounds"),
        pytest.param(["--fedprox-mu", "-1"], "--fedprox-mu -1", id="negative mu"),
        pytest.param(["--seed", "-1"], "--seed -1", id="negative seed"),
        pytest.param(["--workers", "0"], "--workers 0", id="no workers"),
        pytest.param(["--sites", "A,B,Z"], "'Z'", id="unknown hospital"),
        pytest.param(["--sites", "A,A,B"], "each once", id="hospital twice"),
        pytest.param(["--patients", "0"], "--patients 0", id="no patients"),
        pytest.param(["--separation", "-2"], "separation", id="negative separation"),
        pytest.param(["--fault", "a:explode"], "SITE:KIND", id="unknown fault"),
        pytest.param(["--study", "absent.yaml"], "absent.yaml", id="absent study"),
        pytest.param(["--site", "absent.yaml"], "absent.yaml", id="absent site"),
        pytest.param(["--resume", "absent"], "study.yaml", id="absent run"),
        pytest.param(["--resume", "absent", "--rounds", "3"], "--rounds", id="a resumed run with other rounds"),
        pytest.param(["--resume", "absent", "--sites", "A,B,C"], "--sites", id="a resumed run with other sites"),
        pytest.param(["--sites", "A,B"], "the study needs 3", id="too few hospitals"),
        pytest.param(["--out", "my run"], "letters, digits", id="a run's name with a space"),
        pytest.param(["--out", "/dev/null/run"], "nothing can be written", id="a folder nobody can write to"),
        pytest.param(["--site", "a.yaml", "--patients", "9"], "--patients", id="own sites with phantom options"),
        pytest.param(["hospitals", "--out", "x", "--sites", "Q"], "'Q'", id="unknown hospital to write"),
    ],
)
def test_a_wrong_argument_ends_with_exit_2_and_one_clear_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    telling: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    status = main(arguments)

    error = capsys.readouterr().err
    assert status == 2, error
    assert telling in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
