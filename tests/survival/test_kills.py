"""SIGKILL of any process of a federation at a random moment: the run ends with the bytes of an undisturbed one.

Nobody does anything but start again what a person has started: `gliorn-server start` and `gliorn-client`.
Each kill has a seed; `GLIORN_SEEDS=20` tries more of them than the one of the slow tests.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from common.model_state import state_digest
from tests.deployment import Deployment, deployment
from tests.tiny_federation import Run, run_federation
from tests.tiny_hospitals import study_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SITES = ("a", "b", "c")
PATIENCE_S = 900
"""What a run may take, as long as it itself waits for a site; on a machine with other work it took five minutes."""

# All three sites are needed, so that a run waits for the one that was killed and its bytes must be the same.
STUDY = study_text(rounds=3, participation={"min_sites": 3, "round_timeout_s": PATIENCE_S, "join_timeout_s": 600})
SEEDS = range(int(os.environ.get("GLIORN_SEEDS", "1")))


@dataclass(frozen=True)
class Victim:
    """What is killed.

    Attributes:
        owner: "server", or "site" for a site drawn by the seed.
        words: Words of the command line, or the name, of the process below the owner; none for what the person
            started.
    """

    owner: str
    words: tuple[str, ...]


VICTIMS = {
    "ServerApp": Victim("server", ("flwr-serverapp",)),
    "SuperLink": Victim("server", ("flower-superlink",)),
    "SuperExec of the server": Victim("server", ("flower-superexec",)),
    "gateway": Victim("server", ("server.gateway",)),
    "start": Victim("server", ()),
    "SuperNode": Victim("site", ("client.supernode",)),
    "ClientApp": Victim("site", ("flwr-clientapp",)),
    "SuperExec of a site": Victim("site", ("client.superexec",)),
    "gliorn-client": Victim("site", ()),
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A federation that carries one run after the other."""
    with deployment(tmp_path_factory.mktemp("killed"), *SITES, study=STUDY) as made:
        made.start_server()
        made.join()
        yield made


@pytest.fixture(scope="module")
def undisturbed(federation: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run as it goes in one process that nobody disturbs."""
    return run_federation(tmp_path_factory.mktemp("alone") / "alone", STUDY, federation.sites)


@pytest.fixture(scope="module")
def seconds(federation: Deployment, undisturbed: Run) -> float:
    """How long a run takes with nobody disturbing it; its bytes are the same already."""
    started = time.monotonic()
    federation.begin_run("undisturbed")
    require_same(federation, "undisturbed", undisturbed)
    return time.monotonic() - started


def require_same(federation: Deployment, run: str, undisturbed: Run) -> None:
    record = federation.record(run, patience_s=PATIENCE_S)
    rounds = [json.loads(line) for line in federation.run_folder(run).rounds.read_text().splitlines()]
    assert record["outcome"] == "COMPLETE"
    assert [each["state_digest"] for each in rounds] == undisturbed.digests
    assert state_digest(federation.final_model(run)) == state_digest(undisturbed.model("final"))
    assert record["figures"] == undisturbed.record["figures"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", VICTIMS)
def test_kill_changes_nothing_of_the_result(
    name: str, seed: int, federation: Deployment, undisturbed: Run, seconds: float
) -> None:
    victim, generator = VICTIMS[name], random.Random(f"{name} {seed}")
    owner = generator.choice(SITES) if victim.owner == "site" else victim.owner
    run = f"{name.replace(' ', '-')}-{seed}"
    federation.begin_run(run)
    time.sleep(generator.uniform(0.0, 0.9 * seconds))

    killed = kill_when_it_is_there(federation, run, owner, victim.words)
    print(f"{name} of {owner}, seed {seed}: killed at {killed}")  # noqa: T201 - shown by -s and on failure
    if not victim.words and owner == "server":
        federation.start_server()
    elif not victim.words:
        federation.join(owner)

    require_same(federation, run, undisturbed)
    assert all("Traceback" not in federation.log(site) for site in SITES)


def kill_when_it_is_there(federation: Deployment, run: str, owner: str, words: tuple[str, ...]) -> str:
    """Kill a process as soon as it exists; returns the phase and round the run was in."""
    folder = federation.run_folder(run)
    federation.wait(
        lambda: federation.kill(owner, *words) or folder.record.exists(),
        "there is something to kill",
        patience_s=PATIENCE_S,
    )
    try:
        status = json.loads(folder.status.read_text())
    except OSError:
        return "its begin"
    return f"{status['phase']} {status['round']}, answered: {', '.join(status['answered']) or 'none'}"
