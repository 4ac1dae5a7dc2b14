"""A disk without room for the files that a site writes: every write to them fails in the kernel, as on a full disk."""

import os

import pytest

from client import private_files


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file of `client.private_files` find no room, until the patch is undone."""

    def on_a_full_disk(*, dir: object, prefix: str, suffix: str) -> tuple[int, str]:
        return os.open("/dev/full", os.O_WRONLY), f"{dir}/{prefix}nothing{suffix}"

    class Full:
        mkstemp = staticmethod(on_a_full_disk)

    monkeypatch.setattr(private_files, "tempfile", Full)
