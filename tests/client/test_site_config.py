"""site.yaml: what is accepted, and that every fault is told with its line."""

from pathlib import Path

import pytest

from client.config import parse_site_config, read_site_config
from common.errors import ConfigError

GOOD = """name: hospital-a
data:
  table: table.tsv
label_map: {necrosis: 1, recurrence: 0}
cache: cache
"""


def test_defaults_are_the_documented_ones() -> None:
    config = parse_site_config(GOOD, origin="site.yaml")

    assert (config.device, config.torch_threads, config.server) == ("auto", None, None)
    assert config.disclosure.model_dump() == {
        "min_patients": 10,
        "min_cell": 5,
        "max_bins": 32,
        "statistics": False,
        "duplicates": False,
    }


def test_the_commented_example_can_be_read() -> None:
    text = (Path(__file__).parents[2] / "site_configs" / "example.yaml").read_text()

    config = parse_site_config(text, origin="example.yaml")

    assert config.label_map == {"necrosis": 1, "recurrence": 0}
    assert config.server is not None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            "name: hospital-a", "name: Hospital A", r"line 1: name: found 'Hospital A'.*lower-case", id="name"
        ),
        pytest.param("table: table.tsv", "table: table.ods", r"line 3: .*'table.ods', expected.*\.csv", id="format"),
        pytest.param("table: table.tsv", "tabel: table.tsv", r"line 3: .*did you mean 'table'", id="typo"),
        pytest.param(
            "table: table.tsv", "bids: b\n  table: t.tsv", r"line 2: data: table and bids are given", id="two sources"
        ),
        pytest.param(
            "table: table.tsv",
            "bids: b\n  sheet: x",
            r"sheet belongs to table, the source is bids",
            id="other's setting",
        ),
        pytest.param("table: table.tsv", "dicom: d", r"dicom needs converted", id="dicom alone"),
        pytest.param(
            "cache: cache",
            "cache: c\neligibility: [{colum: x, column: y, exclude: [z], reason: r}]",
            r"line 6: unknown setting 'eligibility.0.colum'; did you mean 'column'",
            id="rule",
        ),
        pytest.param("recurrence: 0", "recurrence: 2", r"line 4: label_map.recurrence: found 2", id="label 2"),
        pytest.param("recurrence: 0", "recurrence: true", r"label_map.recurrence: found True", id="label true"),
        pytest.param("recurrence: 0", "other: 1", r"no word is mapped to 0", id="one class"),
        pytest.param("recurrence: 0", "no: 0", r"holds the word 'false', which YAML", id="unquoted no"),
        pytest.param("recurrence: 0", "' recurrence': 0", r"without spaces", id="padded word"),
        pytest.param("cache: cache", "", r"setting 'cache' is missing", id="no cache"),
        pytest.param("cache: cache", "cache: cache\ndevice: gpu", r"line 6: device: found 'gpu'.*cuda:N", id="device"),
        pytest.param("cache: cache", "cache: c\ntorch_threads: 0", r"line 6: torch_threads: found 0", id="threads"),
        pytest.param(
            "cache: cache", "cache: c\ndisclosure: {min_cells: 3}", r"line 6: .*did you mean 'min_cell'", id="cell"
        ),
        pytest.param("cache: cache", "cache: c\ndisclosure: {max_bins: 4}", r"max_bins: found 4", id="bins"),
        pytest.param(
            "cache: cache", "cache: c\nserver: {address: example.org}", r"line 6: .*expected host:port", id="no port"
        ),
        pytest.param(
            "cache: cache", "cache: c\nserver: {address: 'a:99999'}", r"a port from 1 to 65535", id="large port"
        ),
    ],
)
def test_a_fault_is_told_with_its_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new)

    with pytest.raises(ConfigError, match=message):
        parse_site_config(text, origin="site.yaml")


def test_all_faults_are_told_at_once() -> None:
    text = GOOD.replace("hospital-a", "A").replace("recurrence: 0", "recurrence: 5") + "colour: red\n"

    with pytest.raises(ConfigError, match="3 faults"):
        parse_site_config(text, origin="site.yaml")


def test_relative_paths_begin_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(GOOD)
    (tmp_path / "table.tsv").write_text("")

    config = read_site_config(tmp_path / "site.yaml")

    assert (config.data.table, config.cache) == (tmp_path / "table.tsv", tmp_path / "cache")


def test_files_that_are_not_there_are_told_together(tmp_path: Path) -> None:
    server = "server: {address: 'h:9092', ca_certificate: ca.pem, private_key: key.pem}\n"
    (tmp_path / "site.yaml").write_text(GOOD + server)
    (tmp_path / "cache").write_text("a file")

    with pytest.raises(ConfigError) as error:
        read_site_config(tmp_path / "site.yaml")

    text = str(error.value)
    assert "4 faults" in text
    for name in ("data.table", "server.ca_certificate", "server.private_key", "cache is a file"):
        assert name in text


def test_paths_that_the_file_system_refuses_are_told_together(tmp_path: Path) -> None:
    long = "x" * 300
    server = f"server: {{address: 'h:9092', ca_certificate: ~nobody-here/ca.pem, private_key: {long}.key}}\n"
    text = GOOD.replace("table.tsv", f"{long}.tsv").replace("cache: cache", f"cache: {long}/cache")
    (tmp_path / "site.yaml").write_text(text + server)

    with pytest.raises(ConfigError) as error:
        read_site_config(tmp_path / "site.yaml")

    told = str(error.value)
    assert "4 faults" in told
    assert told.count("cannot be looked at (File name too long)") == 3
    assert "server.ca_certificate: ~nobody-here/ca.pem begins at a home folder that this machine does not know" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read.*copy site_configs/example.yaml"), (b"name: caf\xe9\n", "not UTF-8")],
    ids=["absent", "latin-1"],
)
def test_a_file_that_cannot_be_read_is_a_plain_message(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "site.yaml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        read_site_config(path)
