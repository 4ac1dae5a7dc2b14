"""What holds the rooms apart, and what a new version of a dependency may break."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions, version
from pathlib import Path

import flwr.app
import pytest
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common import flower_private

ROOT = Path(__file__).parent.parent
ROOMS = ("common", "client", "server", "simulations")
OUTSIDE_WORLD = {
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "fileinput", "sqlite3"),
    *("socket", "ssl", "http", "urllib", "httpx", "requests", "grpc", "asyncio", "subprocess"),
    *("argparse", "click", "typer"),
}


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the package"
            yield node.module or "", node.lineno


def sources(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


def test_common_touches_no_disk_no_network_and_no_command_line() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources("common")
        for name, line in imports_of(path)
        if name.split(".")[0] in OUTSIDE_WORLD
    ]
    faults += [
        f"{path.relative_to(ROOT)}:{node.lineno}: open()"
        for path in sources("common")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "input", "print")
    ]

    assert faults == []


ALLOWED = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "simulations": set(ROOMS),
}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_only_those_below_them(room: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources(room)
        for name, line in imports_of(path)
        if name.split(".")[0] in {*ROOMS, "tests"} - ALLOWED[room]
    ]

    assert faults == []


def test_only_one_file_knows_the_keys_of_flower_s_records() -> None:
    users = {
        str(path.relative_to(ROOT))
        for room in ("common", "client", "server")
        for path in sources(room)
        if {"ConfigRecord", "MetricRecord", "ArrayRecord"}
        & {node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    }

    assert users == {"common/messages.py", "common/record_values.py"}


def test_nobody_else_reads_the_values_of_a_record() -> None:
    names = {
        str(path.relative_to(ROOT)): {alias.name for alias in node.names}
        for room in ("common", "client", "server")
        for path in sources(room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "common.record_values"
    }

    assert "Values" in names.pop("common/messages.py")
    assert set().union(*names.values()) == {"content_bytes", "sizes_of_records"}


FLOWER_S_PUBLIC_INTERFACE = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}


def test_only_one_file_of_the_two_sides_uses_flower_s_private_names() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for room in ("common", "client", "server")
        for path in sources(room)
        if path.name != "flower_private.py"
        for name, line in imports_of(path)
        if name.split(".")[0] == "flwr" and name not in FLOWER_S_PUBLIC_INTERFACE
    ]

    assert faults == []


def test_private_names_of_flower_are_still_what_we_take_them_for() -> None:
    assert version("flwr").startswith("1.41.")
    assert all(hasattr(flower_private, name) for name in flower_private.__all__)
    flower_private.take_server_identity(run_id=4, node_id=5)
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (4, 5, 4)

    message = flwr.app.Message(flwr.app.RecordDict({"x": flwr.app.ConfigRecord({"n": 1})}), 7, "train", ttl=9.0)
    flower_private.assign_message_id(message, "number 8")
    copy = flower_private.copy_of_message(message)
    copy.content.config_records["x"]["n"] = 2

    metadata = message.metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id, metadata.message_id) == (4, 5, 7, "number 8")
    assert copy.metadata == metadata
    assert message.content.config_records["x"]["n"] == 1
    assert flwr.app.Message(flwr.app.RecordDict(), reply_to=message).metadata.reply_to_message_id == "number 8"


def test_nodes_runs_and_contexts_of_flower_have_the_fields_we_use() -> None:
    context = flower_private.new_context(run_id=1, node_id=2, node_config={"a": "b"}, run_config={"c": "d"})

    assert (context.run_id, context.node_id, context.node_config, context.run_config) == (1, 2, {"a": "b"}, {"c": "d"})
    assert (NodeInfo(node_id=3, name="a").node_id, NodeInfo(node_id=3, name="a").name) == (3, "a")
    assert Run.create_empty(run_id=6).run_id == 6


def test_no_dependency_brings_a_package_of_one_of_our_names() -> None:
    taken = {
        f"{distribution.name}: {file}"
        for distribution in distributions()
        if distribution.name != "gliorn"
        for file in distribution.files or ()
        if file.parts[0] in {*ROOMS, *(f"{room}.py" for room in ROOMS)}
    }

    assert taken == set()


def test_no_package_file_shadows_the_rooms_from_under_the_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


SKIPPING = {
    "in the test": "import pytest\ndef test_it():\n    pytest.skip('not here')\n",
    "by a mark": "import pytest\n@pytest.mark.skip\ndef test_it():\n    pass\n",
    "of the whole file": "import pytest\npytest.importorskip('no_such_package')\ndef test_it():\n    pass\n",
    "as an expected failure": "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False\n",
}


def test_skipped_test_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    for number, text in enumerate(SKIPPING.values()):
        (tmp_path / f"test_{number}.py").write_text(text)

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    for number in range(len(SKIPPING)):
        assert f"test_{number}.py" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert "passed" not in done.stdout.splitlines()[-1]
