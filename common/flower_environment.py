"""Environment variables under which Flower's programs run here: no telemetry, no update check, nothing installed."""

from collections.abc import Mapping

LOOPBACK = "127.0.0.1"
"""Where the programs of one machine reach each other."""


def flower_environment(base: Mapping[str, str], *, home: str, programs: str) -> dict[str, str]:
    """The environment for one of Flower's programs.

    Args:
        base: The environment to begin from.
        home: Folder that the program may keep its own files in; each program gets one of its own.
        programs: Folder of the installed programs; Flower's start one another by bare name.
    """
    direct = ",".join(filter(None, [base.get("NO_PROXY") or base.get("no_proxy"), LOOPBACK]))
    return dict(base) | {
        "FLWR_HOME": home,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{programs}:{base.get('PATH', '')}",
        # Flower's programs of one machine speak with each other over HTTP, which no proxy can pass on.
        "NO_PROXY": direct,
        "no_proxy": direct,
    }
