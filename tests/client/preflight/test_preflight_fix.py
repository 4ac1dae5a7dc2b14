"""`gliorn-client fix` writes a copy without the faults it can mend, and touches nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from client import cli
from client.config import read_site_config
from client.preflight.fix import fixed_bytes
from client.preflight.image import ImageFile
from client.preflight.run import run_preflight
from client.preprocessing.volume import read_volume
from simulations.phantom.federation import write_hospitals
from simulations.phantom.injection import FAULTS, inject
from simulations.phantom.spec import PhantomOptions

MENDED = ["descrip", "aux_file", "db_name", "intent_name", "header extension", "gzip FNAME", "name in path"]
MENDED += ["personal sidecar", "trailing 1"]
LEFT = ["gz with a bad CRC", "NaN block", "affine zero", "0-byte file"]

Contents = dict[str, bytes]


@pytest.fixture(scope="module")
def hospital_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients whose arrays run to the left, the back and up."""
    options = PhantomOptions(seed=4, spacing_mm=6.0)
    (site,) = write_hospitals(tmp_path_factory.mktemp("phantoms"), ["B"], options, num_patients={"B": 5})
    return site.parent


def contents(folder: Path) -> Contents:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def fix(folder: Path, out: Path) -> int:
    return cli.main(["fix", "--site", str(folder / "site.yaml"), "--out", str(out), "--workers", "1"])


def findings(folder: Path) -> set[str]:
    return {finding.check for finding in run_preflight(read_site_config(folder / "site.yaml"), None).findings}


@pytest.mark.parametrize("name", MENDED)
def test_what_is_safe_is_mended_in_a_copy(name: str, hospital_b: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "hospital", tmp_path / "fixed"
    inject(name, hospital_b, folder)
    before = contents(folder)

    status = fix(folder, out)

    assert status == 0
    assert contents(folder) == before, "the originals are only read"
    assert FAULTS[name].check in findings(folder)
    assert findings(out) <= {"class-small", "sequence-incomplete", "sequence-missing"}
    assert json.loads((out / "fixes.json").read_text())["left"] == {}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_safe_is_left_out_and_listed(
    name: str, hospital_b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "hospital", tmp_path / "fixed"
    inject(name, hospital_b, folder)

    status = fix(folder, out)

    left = json.loads((out / "fixes.json").read_text())["left"]
    assert status == 0
    assert list(left.values()) == [[FAULTS[name].check]]
    assert f"left out: {next(iter(left))}" in capsys.readouterr().out
    assert len((out / "table.tsv").read_text().splitlines()) == 1 + 4


def test_a_name_is_gone_from_every_path_and_from_the_table(hospital_b: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "hospital", tmp_path / "fixed"
    shutil.copytree(hospital_b, folder)
    table = folder / "table.tsv"
    table.write_text(table.read_text().replace("sub-B001", "Mustermann"))
    (folder / "sub-B001").rename(folder / "Mustermann")
    for path in (folder / "Mustermann" / "anat").iterdir():
        path.rename(path.with_name(path.name.replace("sub-B001", "Mustermann")))

    fix(folder, out)

    shown = "".join(path.as_posix() for path in (out / "exams").rglob("*")) + (out / "table.tsv").read_text()
    assert "Mustermann" not in shown
    assert json.loads((out / "fixes.json").read_text())["renamed"] == {"Mustermann": "case-0001"}


def test_every_voxel_stays_where_it_is_in_the_world() -> None:
    affine = np.array([[0.0, 0, -2, 40], [-3.0, 0.1, 0, 50], [0.1, 4.0, 0, -60], [0, 0, 0, 1]])
    affine[:3, :3], _ = np.linalg.qr(affine[:3, :3])
    affine[:3, :3] *= [3.0, 4.0, 2.0]
    values = np.random.default_rng(0).integers(-5, 900, (7, 8, 9)).astype(">i2")
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_slope_inter(2.0, 1.0)
    image.header["descrip"] = b"acquired at noon"
    data = bytes(image.to_bytes())

    content, done = fixed_bytes(ImageFile(lambda: data))

    old, new = read_volume(data, name="old"), read_volume(content, name="new")
    indices = np.argwhere(np.ones(old.shape, dtype=bool))
    moved = np.rint(new.to_indices(old.to_world(indices))).astype(int)
    np.testing.assert_array_equal(new.values[tuple(moved.T)], old.values[tuple(indices.T)])
    np.testing.assert_allclose(new.to_world(moved), old.to_world(indices), atol=1e-3)
    assert "".join(nibabel.aff2axcodes(new.affine)) == "RAS"
    assert b"noon" not in ImageFile(lambda: content).plain.tobytes()
    assert any("made RAS" in each for each in done)
    assert fixed_bytes(ImageFile(lambda: data))[0] == content


def test_the_new_site_keeps_its_settings_and_its_cache(hospital_b: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "hospital", tmp_path / "fixed"
    shutil.copytree(hospital_b, folder)
    table = folder / "table.tsv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header}\tnote", *(f"{row}\tfine" for row in rows)]) + "\n")

    fix(folder, out)

    old, new = read_site_config(folder / "site.yaml"), read_site_config(out / "site.yaml")
    assert new.data.table == out / "table.tsv"
    assert new.model_copy(update={"data": old.data}) == old
    assert set(yaml.safe_load((out / "site.yaml").read_text())) == set(
        yaml.safe_load((folder / "site.yaml").read_text())
    )


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a folder that holds something": (lambda folder: folder.parent, "is there already"),
    "the table's own folder": (lambda folder: folder / "fixed", "lies in the folder of the table"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_written_where_it_could_do_harm(
    name: str, hospital_b: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hospital"
    shutil.copytree(hospital_b, folder)
    before = contents(tmp_path)
    place, telling = REFUSED[name]

    status = fix(folder, place(folder))

    assert status == 2
    assert telling in capsys.readouterr().err
    assert contents(tmp_path) == before
