"""Three tiny hospitals of equal make-up, written once. Tests that change a hospital write their own."""

from pathlib import Path

import pytest

from tests.tiny_federation import write_hospitals


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_hospitals(tmp_path_factory.mktemp("hospitals"), "a", "b", "c")
