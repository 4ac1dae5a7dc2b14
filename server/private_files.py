"""Files and folders for their owner alone, whatever the umask."""

import os
from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Make a folder (0700), or close an existing one to everybody else."""
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)


def write_private(path: Path, payload: bytes) -> None:
    """Write a file (0600) so that a reader, or a restart after a crash, sees the old one or the whole new one."""
    write_all_private({path: payload})


def write_all_private(payloads: dict[Path, bytes]) -> None:
    """Write several files that belong together, each like `write_private`, and put them in place in that order.

    All of them are on the disk before the first is put in place, so that little can come in between.
    """
    partial = {path: path.with_name(path.name + ".partial") for path in payloads}
    for path, payload in payloads.items():
        descriptor = os.open(partial[path], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(payload)
            file.flush()
            os.fsync(descriptor)
    for path, temporary in partial.items():
        temporary.replace(path)
    for folder in {path.parent for path in payloads}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
