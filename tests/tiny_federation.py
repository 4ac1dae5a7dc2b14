"""Runs of a federation over tiny hospitals, by function calls, with sites that may be faulty."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import SITE_CONFIG_KEY
from client.app import app as client_app
from common.model_state import Array, decode_state
from server.federation import Federation
from server.run_folder import Participants, RunFolder, create_run_folder
from simulations.engines.in_process import InProcessGrid
from tests.tiny_hospitals import write_tiny_hospital

Answer = Callable[[], Message]
Act = Callable[[Message, Answer], Message]
"""What a faulty site does: given a message and a way to get the honest answer to it, gives an answer."""


class FaultyClientApp(ClientApp):
    """The real ClientApp, but one site does something else with some messages.

    Args:
        site: Name of the site.
        act: What it does.
        message_type: The messages it does it with.
        only_round: The round it does it in; None for every round.
    """

    def __init__(self, site: str, act: Act, *, message_type: str = "train", only_round: int | None = None) -> None:
        super().__init__()
        self._site = site
        self._act = act
        self._message_type = message_type
        self._group = None if only_round is None else str(only_round)

    def __call__(self, message: Message, context: Context) -> Message:
        def answer() -> Message:
            return client_app(message, context)

        site = Path(str(context.node_config[SITE_CONFIG_KEY])).parent.name
        if site != self._site or message.metadata.message_type != self._message_type:
            return answer()
        if self._group not in (None, message.metadata.group_id):
            return answer()
        return self._act(message, answer)


@dataclass(frozen=True)
class Run:
    """A run's folder and what stands in it."""

    folder: RunFolder

    @property
    def record(self) -> dict[str, Any]:
        """The record."""
        values: dict[str, Any] = json.loads(self.folder.record.read_text())
        return values

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of `rounds.jsonl`."""
        return [json.loads(line) for line in self.folder.rounds.read_text().splitlines()]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the state after each round."""
        return [record["state_digest"] for record in self.rounds]

    def model(self, name: Literal["best", "final"]) -> dict[str, Array]:
        """A model of the run."""
        return decode_state((self.folder.model / f"{name}.safetensors").read_bytes(), origin=name)


def write_hospitals(folder: Path, *names: str, **settings: Any) -> dict[str, Path]:
    """Write tiny hospitals; the settings are those of `write_tiny_hospital`."""
    return {name: write_tiny_hospital(folder, name, **settings) for name in names}


def begin_run(
    path: Path,
    study: str,
    sites: Mapping[str, Path],
    *,
    identity: Literal["registered", "claimed"] = "registered",
    expected: tuple[str, ...] | None = None,
) -> RunFolder:
    """Make the folder of a run; `expected` are the sites' names, where they are not those of the hospitals."""
    participants = Participants(expected or tuple(sorted(sites)), identity, "in-process")
    return create_run_folder(path, study_text=study, participants=participants)


def carry_on(folder: RunFolder, sites: Mapping[str, Path], *, app: ClientApp = client_app, workers: int = 2) -> Run:
    """Carry a run to its end from where its folder says it stands; sites go by the names they are registered with."""
    grid = InProcessGrid(app, {name: {SITE_CONFIG_KEY: str(path)} for name, path in sites.items()}, workers=workers)
    Federation(grid, folder, now=lambda: datetime.now(UTC)).run()
    return Run(folder)


def run_federation(
    path: Path, study: str, sites: Mapping[str, Path], *, app: ClientApp = client_app, workers: int = 2
) -> Run:
    """Begin a run and carry it to its end."""
    return carry_on(begin_run(path, study, sites), sites, app=app, workers=workers)
