"""What figures hold for: the machine, without its name."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("gliorn", "torch", "numpy", "flwr", "monai")


@dataclass(frozen=True)
class Machine:
    """What a reader has to know of the machine.

    Attributes:
        cores: That this process may use.
        processor: As the system calls it.
        memory_gib: Of the machine.
        gpu: Name of the first CUDA device; None without one.
        system: Kernel and architecture.
        versions: Of Python and of the packages that count.
    """

    cores: int
    processor: str
    memory_gib: float
    gpu: str | None
    system: str
    versions: dict[str, str]


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        processor=_processor(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=_gpu(),
        system=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    )


def load_average() -> float:
    """Programs that ran or waited for a processor, over the last minute."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _gpu() -> str | None:
    if not Path("/proc/driver/nvidia").exists():
        return None
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
