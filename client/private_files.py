"""Files and folders that only their owner can read, and that are never seen half-written."""

import errno
import logging
import os
import tempfile
from pathlib import Path

from common.errors import ConfigError, DiskFullError

log = logging.getLogger(__name__)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and what is missing above it, each for its owner alone whatever the umask.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        missing = [above for above in folder.parents if not above.exists()]
        for each in (*reversed(missing), folder):  # mkdir's own `parents` would take the mode for the last one alone
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _kind_of(error)(
            f"{folder}: cannot be made ({error.strerror or error}); grant write access or name another folder"
        ) from None


def write_atomically(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file, readable by its owner alone, that is never seen half-written, not even after a power cut.

    Args:
        path: The file.
        data: All its bytes.
        replace: Whether an existing file gives way; else it stays and nothing is written.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(name, path)
            else:
                try:
                    os.link(name, path)
                except FileExistsError:
                    log.debug("another process wrote the file first")
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise _kind_of(error)(
            f"{path.parent}: cannot be written ({error.strerror or error}); free space or grant write access"
        ) from None


def _kind_of(error: OSError) -> type[ConfigError]:
    return DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
