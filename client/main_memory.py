"""How much main memory there is for a process, on this machine and in its container."""

from pathlib import Path


def available_memory() -> int | None:
    """Bytes of main memory that a new process can have, on this machine or in its container; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
    known = [fields.get("MemAvailable"), *map(left_in_group, _groups())]
    return min((count for count in known if count is not None), default=None)


def _groups() -> list[Path]:
    """The folders of this process's control group (version 2) and of all above it, each of which may set a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        entries = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [root]
    own = next((entry.removeprefix("0::/") for entry in entries if entry.startswith("0::/")), "")
    inner = root / own
    return [inner, *(above for above in inner.parents if above.is_relative_to(root))]


def left_in_group(group: Path) -> int | None:
    """What a control group leaves, with the file cache that it would give up; None where it sets no limit."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        fields = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used + int(fields.get("inactive_file", 0)), 0)
