"""Keeping a site connected, with small programs in the place of Flower's; processes, pipes and signals are real."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import flower_programs
from client.flower_programs import FlowerPrograms
from client.greeting import Greeting
from client.join import remember_node
from client.journal import Entry, append
from client.kit import Kit
from client.processes import ProcessLock, descendants
from client.supervisor import Backoff, Once, Pace, Site, Supervisor
from client.working_hours import parse_working_hours
from common.errors import ConfigError
from tests.full_disk import fill_the_disk

QUICK = Pace(first=0.05, most=0.2, most_unanswered=0.1, settled=60, hello=600, quiet=0.2, leave=5, look=0.02)
PRELUDE = """
import json, os, signal, subprocess, sys, time
from client.processes import end_with_parent
end_with_parent(int(sys.argv[1]))
def tell(name, **rest):
    os.write(int(sys.argv[2]), json.dumps(dict(name=name, **rest)).encode() + b"\\n")
def until_killed():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True: time.sleep(0.05)
"""
CONNECTS = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); tell('connected', node=7); until_killed()"
WORKS = "until_killed()"
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN); tell('connected', node=7)
while True: time.sleep(1)"""
TRAINED = Entry(
    time="2026-11-23T12:00:00+00:00",
    kind="train",
    study="tiny",
    run="one",
    round=1,
    rounds=2,
    seconds=3.0,
    facts={"steps": 4, "patients": 8, "mean_loss": 0.5},
)


@dataclass
class Programs:
    """Commands of two Python texts."""

    folder: Path
    node_text: str = CONNECTS
    exec_text: str = WORKS
    prepared: int = 0

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ

    def prepare(self) -> None:
        self.prepared += 1

    def supernode(self, *, port: int, events: int) -> Sequence[str]:
        return [sys.executable, "-c", PRELUDE + self.node_text, str(os.getpid()), str(events), str(port)]

    def superexec(self, *, port: int) -> Sequence[str]:
        return [sys.executable, "-c", PRELUDE + self.exec_text, str(os.getpid()), "-1", str(port)]


@dataclass
class Trial:
    """A supervised site of a test, and what a person there reads."""

    folder: Path
    programs: Programs
    greetings: list[Greeting] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    nodes: list[int | None] = field(default_factory=list)
    freed: int = 0
    remember_node: Callable[[int | None], None] | None = None
    greet: Callable[[], Greeting] | None = None
    hours: Sequence[str] | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    until: Callable[["Trial"], bool] = lambda trial: False
    supervisor: Supervisor | None = None

    def run(self, *, pace: Pace = QUICK, once: Once | None = None) -> "Trial":
        """Supervise until `until` holds, then send SIGTERM to this process."""
        site = Site(
            name="a",
            commands=self.programs,
            journal=self.folder / "journal.jsonl",
            log=self.folder / "flower.log",
            greet=self.greet or self._greet,
            free_node=self._free,
            remember_node=self.remember_node or self.nodes.append,
            hours=None if self.hours is None else parse_working_hours(self.hours, zone=UTC),
        )
        self.supervisor = Supervisor(
            site, say=self.lines.append, generator=random.Random(3), now=self.now, pace=pace, once=once
        )
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done,))
        watch.start()
        try:
            self.supervisor.run()
        finally:
            done.set()
            watch.join()
        return self

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(0.02):
            if self.until(self):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _greet(self) -> Greeting:
        return self.greetings.pop(0) if self.greetings else Greeting(federation="glioma")

    def _free(self) -> None:
        self.freed += 1

    def says(self, text: str, times: int = 1) -> bool:
        """Whether so many lines hold a text."""
        return sum(text in line for line in self.lines) >= times

    @property
    def children(self) -> dict[str, int]:
        """Processes that run now."""
        assert self.supervisor is not None
        return self.supervisor._programs.processes


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    yield Trial(tmp_path, Programs(tmp_path))
    assert not is_running(tmp_path)


def is_running(folder: Path) -> bool:
    """Whether a process of a test's programs is left: they run in its folder."""
    return any(_folder_of(process) == folder for process in descendants(os.getpid()))


def _folder_of(process: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{process}/cwd"))
    except OSError:
        return None


def test_site_connects_and_leaves_when_it_is_asked_to(trial: Trial) -> None:
    trial.until = lambda t: t.says("connected to the federation glioma as a")

    trial.run()

    assert trial.lines[-1] == "left the federation"
    assert trial.nodes == [7, None]
    assert trial.programs.prepared == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("sys.exit(0)", "SuperNode ended with status 0", id="an end without a fault"),
        pytest.param("sys.exit(3)", "SuperNode ended with status 3", id="a fault"),
        pytest.param("os.kill(os.getpid(), 9)", "SuperNode was killed by SIGKILL", id="a kill"),
        pytest.param("sys.exit(75)", "SuperNode stopped listening", id="deaf"),
        pytest.param("sys.exit(76)", "no longer told the coordinator that it is here", id="no heartbeat"),
        pytest.param("tell('refused', status=401); sys.exit(0)", "did not accept this site's key", id="401"),
        pytest.param(
            "tell('refused', reason='ActivateNode', status=400, code=2004); sys.exit(1)", "yet: it has only", id="2004"
        ),
        pytest.param(
            "tell('refused', reason='PullMessages', status=418); sys.exit(75)", "after the answer 418", id="odd answer"
        ),
    ],
)
def test_site_starts_again_for_ever_and_says_why_it_ended(trial: Trial, text: str, reason: str) -> None:
    trial.programs.node_text = text
    trial.until = lambda t: t.says(reason, times=3)

    trial.run()

    assert trial.freed >= 3  # before each start, so that the coordinator does not take the dead one for alive


def test_everything_below_a_superexec_ends_with_its_supernode(trial: Trial, tmp_path: Path) -> None:
    trial.programs.node_text = f"""
while not os.path.exists({str(tmp_path / "app")!r}): time.sleep(0.02)
tell('connected', node=7); sys.exit(75)"""
    trial.programs.exec_text = f"""
child = subprocess.Popen(['sleep', '60'], start_new_session=True)
open({str(tmp_path / "app")!r}, 'w').write(str(child.pid))
until_killed()"""
    trial.until = lambda t: t.says("stopped listening")

    trial.run()

    assert not _is_alive(int((tmp_path / "app").read_text()))


def test_superexec_that_ends_is_started_again_beside_the_same_supernode(trial: Trial, tmp_path: Path) -> None:
    first: dict[str, int] = {}

    def kill_once(t: Trial) -> bool:
        if not first and t.says("connected") and "superexec" in t.children:
            first.update(t.children)
            os.kill(first["superexec"], signal.SIGKILL)
        return bool(first) and t.children.get("superexec", first["superexec"]) != first["superexec"]

    second: dict[str, int] = {}
    trial.until = lambda t: kill_once(t) and bool(second.update(t.children) or True)

    trial.run()

    assert trial.says("SuperExec was killed by SIGKILL; starting it again")
    assert second["supernode"] == first["supernode"]


def test_site_that_is_not_admitted_says_so_once_and_joins_as_soon_as_it_is(trial: Trial) -> None:
    trial.greetings = [Greeting("the key is not admitted")] * 3
    trial.until = lambda t: t.says("connected")

    trial.run()

    assert sum("the key is not admitted" in line for line in trial.lines) == 1
    assert trial.lines[0].startswith("not connected: the key is not admitted; trying again")


def test_notes_of_the_coordinator_are_told_once(trial: Trial) -> None:
    trial.greetings = [Greeting(notes=("other version",), federation="glioma")] * 50
    trial.until = lambda t: t.says("connected") and len(t.greetings) < 46

    trial.run(pace=replace(QUICK, hello=0.05))

    assert sum("other version" in line for line in trial.lines) == 1


def test_new_authorities_make_the_site_connect_anew_once_it_is_idle(trial: Trial) -> None:
    trial.programs.node_text = """
def leave(*_): tell('idle'); sys.exit(0)
signal.signal(signal.SIGUSR1, leave)
tell('connected', node=7); tell('busy'); until_killed()"""
    offered: list[Greeting] = []

    def offer_once_connected(t: Trial) -> bool:
        if not offered and t.says("connected to"):
            offered.append(Greeting(authorities_changed=True, federation="glioma"))
            t.greetings += offered
        return t.says("connected to", times=2)

    trial.until = offer_once_connected

    trial.run(pace=replace(QUICK, hello=0.05))

    assert trial.says("authorities have changed; connecting anew")
    assert not trial.says("not connected")


def test_lost_connection_is_told_if_it_lasts(trial: Trial) -> None:
    trial.programs.node_text = """
tell('connected', node=7)
tell('lost', reason='broken'); tell('regained')
tell('lost', reason='refused'); time.sleep(0.6); tell('regained'); until_killed()"""
    trial.until = lambda t: t.says("connected again")

    trial.run()

    assert trial.says("lost (refused)")
    assert not trial.says("broken")


def test_reason_that_keeps_the_connection_away_is_told_after_the_one_that_cut_it(trial: Trial) -> None:
    trial.programs.node_text = """
tell('connected', node=7)
tell('lost', reason='broken'); time.sleep(0.6); tell('lost', reason='certificate: certificate has expired')
time.sleep(0.6); tell('regained'); until_killed()"""
    trial.until = lambda t: t.says("connected again")

    trial.run()

    assert trial.says("lost (broken)")
    assert trial.says("lost (certificate: certificate has expired)")


def test_each_answer_gets_a_line_once_it_was_sent(trial: Trial, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    trial.programs.node_text = f"""
tell('connected', node=7); tell('busy')
open({str(journal)!r}, 'a').write({TRAINED.to_line()!r})
time.sleep(0.1); tell('sent', num_bytes=5200000); tell('idle'); until_killed()"""
    trial.until = lambda t: t.says("round 1")

    trial.run()

    assert "round 1 of 2: trained 4 steps on 8 patients, mean loss 0.5, 3 s; sent 5.2 MB" in trial.lines


def test_answer_that_was_lost_on_the_way_is_told_as_such(trial: Trial, tmp_path: Path) -> None:
    trial.programs.node_text = f"""
tell('connected', node=7); open({str(tmp_path / "journal.jsonl")!r}, 'a').write({TRAINED.to_line()!r})
sys.exit(75)"""
    trial.until = lambda t: t.says("before the answer was sent")

    trial.run()


def test_failure_is_told_with_advice(trial: Trial, tmp_path: Path) -> None:
    append(tmp_path / "journal.jsonl", TRAINED)  # of an earlier day
    failed = replace(TRAINED, failure="data", facts={}).to_line()
    trial.programs.node_text = f"""
tell('connected', node=7); open({str(tmp_path / "journal.jsonl")!r}, 'a').write({failed!r}); until_killed()"""
    trial.until = lambda t: t.says("could not train (data)")

    trial.run()

    assert trial.says("gliorn-client check")
    assert not trial.says("mean loss")


def test_full_disk_is_told_of_once_and_ends_no_connection(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = Kit("h:1", tmp_path / "ca.crt", tmp_path / "site.key", None, None)
    kit.flower_home.mkdir()
    trial.remember_node = lambda node: remember_node(kit, node)
    fill_the_disk(monkeypatch)
    (tmp_path / "flower.log").write_bytes(bytes(flower_programs.LOG_BYTES))
    trial.programs.node_text = "tell('connected', node=7); time.sleep(0.2); sys.exit(75)"
    trial.until = lambda t: t.says("connected to the federation glioma as a", times=3)

    trial.run()

    told = [line for line in trial.lines if line.startswith("warning")]
    assert [line.split(":")[1].strip() for line in told] == [
        "the log of Flower's programs cannot be written",
        "the coordinator's number for this site cannot be kept",
    ]
    assert all("No space left on device" in line for line in told)
    assert (tmp_path / "flower.log").stat().st_size < flower_programs.LOG_BYTES
    assert trial.lines[-1] == "left the federation"


def test_answer_without_a_line_in_the_journal_says_that_the_disk_is_full(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / ".journal.jsonl.trial").symlink_to("/dev/full")
    trial.programs.node_text = """
tell('connected', node=7); tell('busy'); tell('sent', num_bytes=100); tell('idle'); until_killed()"""
    trial.until = lambda t: t.says("the journal cannot be written, and nothing but codes of errors leaves")

    trial.run()

    assert trial.says("No space left on device; going on")
    assert not trial.says("not connected")


def test_programs_that_cannot_be_started_are_tried_again(trial: Trial, tmp_path: Path) -> None:
    ours = trial.programs.folder
    trial.programs.folder = tmp_path / "not yet"  # where they run

    def made(t: Trial) -> bool:
        if t.says("Flower's programs cannot be started"):
            t.programs.folder = ours
        return t.says("connected to")

    trial.until = made

    trial.run()

    assert trial.says("No such file or directory")


def test_log_that_cannot_be_opened_keeps_no_program_from_running(trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "flower.log").mkdir()
    trial.until = lambda t: t.says("connected to")

    trial.run()

    assert trial.says("warning: the log of Flower's programs cannot be written", times=1)


def test_hello_that_fails_as_none_should_is_told_and_tried_again(trial: Trial) -> None:
    failed: list[int] = []

    def greet() -> Greeting:
        if not failed:
            failed.append(1)
            raise ValueError("nobody thought of this")
        return Greeting(federation="glioma")

    trial.greet = greet
    trial.until = lambda t: t.says("connected to")

    trial.run()

    assert trial.says("not connected: the hello failed unexpectedly (ValueError: nobody thought of this); trying again")


def test_once_leaves_after_one_training_answer(trial: Trial, tmp_path: Path) -> None:
    trial.programs.node_text = f"""
asked = []; signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
tell('connected', node=7); open({str(tmp_path / "journal.jsonl")!r}, 'a').write({TRAINED.to_line()!r})
while not asked: time.sleep(0.01)
tell('sent', num_bytes=1000); sys.exit(0)"""  # as the SuperNode does, before it asks for another task

    trial.run(once=Once(patience_s=60))

    assert trial.lines[-2].endswith("; sent 1 kB")
    assert trial.lines[-1] == "left the federation"


def test_once_leaves_without_a_fault_if_nothing_was_asked(trial: Trial) -> None:
    trial.run(once=Once(patience_s=1.0))

    assert trial.says("no round was asked of this site within 1 s")


def test_once_fails_if_the_site_is_refused(trial: Trial) -> None:
    trial.greetings = [Greeting("the key was revoked")] * 50

    with pytest.raises(ConfigError, match="the key was revoked"):
        trial.run(once=Once(patience_s=60))


def test_once_fails_if_the_coordinator_is_never_reached(trial: Trial) -> None:
    trial.greetings = [Greeting("cannot be reached", passing=True)] * 500

    with pytest.raises(ConfigError, match=r"no connection within 2 s: cannot be reached"):
        trial.run(once=Once(patience_s=2.0))


def test_site_stays_away_outside_its_hours_and_says_when_it_is_back(trial: Trial) -> None:
    opens = datetime(2026, 11, 23, 19, 0, tzinfo=UTC)
    began = time.monotonic()
    trial.hours = ["mon 19:00-20:00"]
    trial.now = lambda: opens + timedelta(seconds=time.monotonic() - began - 1.0)
    trial.until = lambda t: t.says("connected")

    trial.run()

    assert trial.lines[0] == "outside the working hours; back on Mon 23 Nov 19:00"
    assert trial.lines[1] == "the working hours begin"


def test_task_in_work_is_finished_before_the_site_leaves_for_the_day(trial: Trial) -> None:
    closes = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
    began = time.monotonic()
    trial.hours = ["mon 19:00-20:00"]
    trial.now = lambda: closes + timedelta(seconds=time.monotonic() - began - 1.5)
    trial.programs.node_text = """
def leave(*_): time.sleep(0.5); tell('sent', num_bytes=3); tell('idle'); sys.exit(0)
signal.signal(signal.SIGUSR1, leave)
tell('connected', node=7); tell('busy'); until_killed()"""
    trial.until = lambda t: t.says("back on")

    trial.run()

    assert trial.lines[1:3] == [
        "the working hours end; leaving once the task in work is finished",
        "outside the working hours; back on Mon 30 Nov 19:00",
    ]
    assert trial.nodes == [7, None, None]


def test_program_that_does_not_end_is_killed_and_its_node_freed(trial: Trial) -> None:
    trial.programs.node_text = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); tell('connected', node=7)\nwhile True: time.sleep(1)"
    )
    trial.until = lambda t: t.says("connected")

    trial.run(pace=replace(QUICK, leave=0.3))

    assert trial.freed == 2
    assert trial.nodes == [7]


def test_second_signal_ends_everything_at_once(trial: Trial) -> None:
    trial.programs.node_text = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); tell('connected', node=7)\nwhile True: time.sleep(1)"
    )

    def twice(t: Trial) -> bool:
        if t.says("connected"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            return True
        return False

    trial.until = twice

    trial.run(pace=replace(QUICK, leave=30))

    assert trial.freed == 1


SUPERVISED = """
import random, sys
from datetime import UTC, datetime
from pathlib import Path
from client.greeting import Greeting
from client.supervisor import Site, Supervisor
from tests.client.test_supervisor import CONNECTS, WITH_A_CHILD, Programs
folder = Path({folder!r})
programs = Programs(folder, CONNECTS, WITH_A_CHILD)
site = Site("a", programs, folder / "journal", folder / "log", Greeting, lambda: None, lambda node: None)
say = lambda line: print(line, flush=True)
Supervisor(site, say=say, generator=random.Random(1), now=lambda: datetime.now(UTC)).run()
"""
WITH_A_CHILD = f"""
text = {PRELUDE!r} + 'until_killed()'
subprocess.Popen([sys.executable, '-c', text, str(os.getpid())], start_new_session=True)
until_killed()"""


def test_all_programs_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    text = SUPERVISED.format(folder=str(tmp_path))
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, cwd=root, text=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        end = time.monotonic() + 30
        while len(below := descendants(process.pid)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

    assert len(below) == 3
    end = time.monotonic() + 30
    while any(_is_alive(each) for each in below) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_is_alive(each) for each in below)


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@given(seed=st.integers(0, 1000), num=st.integers(1, 20))
def test_pauses_double_up_to_a_limit_and_differ_between_sites(seed: int, num: int) -> None:
    backoff = Backoff(random.Random(seed), first=5.0, most=300.0)

    pauses = [backoff.pause() for _ in range(num)]

    for number, pause in enumerate(pauses):
        expected = min(5.0 * 2**number, 300.0)
        assert 0.8 * expected <= pause <= 1.2 * expected
    backoff.reset()
    assert backoff.pause() <= 6.0


def test_log_of_the_programs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_programs, "LOG_BYTES", 1000)
    programs = FlowerPrograms(Programs(tmp_path), tmp_path / "flower.log")
    writer = (tmp_path / "flower.log").open("ab", buffering=0)
    for number in range(5):
        writer.write(str(number).encode() * 1200)
        programs.bound_log()
    writer.write(b"last")
    writer.close()

    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"flower.log": 4, "flower.log.1": 1200, "flower.log.2": 1200}
    assert (tmp_path / "flower.log.1").read_bytes()[:1] == b"4"


def test_lock_tells_whether_another_process_lives(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    text = f"""
from pathlib import Path
from client.processes import ProcessLock
lock = ProcessLock(Path({str(path)!r})); print(lock.take(), flush=True); input()"""
    process = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        taken = process.stdout.readline().strip()
        lock = ProcessLock(path)
        held, refused = lock.is_held(), not lock.take()
        process.kill()
        process.wait()

    assert (taken, held, refused, lock.is_held(), lock.take()) == ("True", True, True, False, True)
    lock.close()


def test_events_are_read_whole_however_they_arrive(tmp_path: Path) -> None:
    from client.events import Event, EventReader

    reading, writing = os.pipe()
    reader = EventReader(reading)
    line = json.dumps({"name": "connected", "node": 7}).encode() + b"\n"
    os.write(writing, line[:9])
    early = list(reader.new_events())
    os.write(writing, line[9:] + line)
    late = list(reader.new_events())
    os.close(writing)

    assert (early, late, list(reader.new_events())) == ([], [Event("connected", node=7)] * 2, [])
    reader.close()
