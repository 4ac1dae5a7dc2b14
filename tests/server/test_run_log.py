"""A run's log holds what the coordinator's side says, and never fills the disk."""

import logging
from pathlib import Path

import pytest

from server import app
from server.app import _logged_to


def test_run_s_log_is_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LOG_BYTES", 200)

    with _logged_to(tmp_path / "run.log"):
        for number in range(50):
            logging.getLogger("server.rounds").info("round %d is done", number)

    assert {path.name for path in tmp_path.iterdir()} == {"run.log", "run.log.1", "run.log.2"}
    assert all(path.stat().st_size <= 200 for path in tmp_path.iterdir())
    assert "round 49 is done" in (tmp_path / "run.log").read_text()
