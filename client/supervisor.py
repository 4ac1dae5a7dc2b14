"""Keeps a site connected: starts Flower's programs, says why they ended, and starts them again, for ever."""

import logging
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

from client.events import Event
from client.flower_programs import Commands, FlowerPrograms
from client.greeting import Greeting
from client.journal import Entry, JournalReader, require_writable
from client.sayings import answer_in_words, end_in_words, moment_in_words, size_in_words, status_in_words
from client.working_hours import WorkingHours
from common.errors import ConfigError, StateMissingError

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """How patient a supervisor is; seconds.

    Attributes:
        first: Pause before the first new start; each further one is twice as long.
        most: Longest pause after a program ended.
        most_unanswered: Longest pause while the coordinator is not there or does not know the site: it may be back, or
            admit the key, any time.
        settled: A connection that lasted so long makes the next pause the first one again.
        hello: Time between two hellos.
        quiet: A lost connection is told of only if it lasts so long.
        leave: Time that the SuperNode has to take leave of the coordinator.
        look: Longest time between two looks at everything.
    """

    first: float = 5.0
    most: float = 300.0
    most_unanswered: float = 60.0
    settled: float = 60.0
    hello: float = 600.0
    quiet: float = 10.0
    leave: float = 8.0
    look: float = 0.25


@dataclass(frozen=True)
class Once:
    """Take part in one round and leave.

    Attributes:
        patience_s: Seconds after which to leave if no round came.
    """

    patience_s: float


class Backoff:
    """Pauses that double, within a fifth up or down so that sites do not come back all at once."""

    def __init__(self, generator: random.Random, *, first: float, most: float) -> None:
        """Begin with the first pause."""
        self._generator, self._first, self._most = generator, first, most
        self._next = first

    def pause(self, *, most: float | None = None) -> float:
        """The next pause in seconds, at most `most` or a fifth more."""
        pause = min(self._next, most or self._most)
        self._next = min(self._next * 2, self._most)
        return pause * self._generator.uniform(0.8, 1.2)

    def reset(self) -> None:
        """Begin again with the first pause."""
        self._next = self._first


class Background(Generic[T]):
    """One job at a time beside the main thread, for what waits on the network."""

    def __init__(self, failed: Callable[[Exception], T]) -> None:
        """Do nothing yet.

        Args:
            failed: Makes the result of a job that raised.
        """
        self._failed = failed
        self._results: list[T] = []
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether a job runs right now."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_busy(self) -> bool:
        """Whether a job runs, or its result was not taken yet."""
        return self._thread is not None

    def start(self, job: Callable[[], T]) -> None:
        """Begin a job; it does not keep the process alive."""
        assert self._thread is None, "one job at a time"
        self._thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()

    def _run(self, job: Callable[[], T]) -> None:
        try:
            result = job()
        except Exception as error:  # the border of a thread: what is raised would be lost beyond it
            log.debug("a job in the background failed", exc_info=True)
            result = self._failed(error)
        self._results.append(result)

    def take(self) -> T | None:
        """The result of a job that has ended, once."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        return self._results.pop()


class _Phase(Enum):
    CLOSED = auto()
    """Outside the working hours."""
    GREETING = auto()
    """Saying hello before a start."""
    WAITING = auto()
    """Pausing before the next hello."""
    RUNNING = auto()
    LEAVING = auto()
    """The SuperNode was asked to end once it is idle."""


@dataclass
class _Connection:
    """What is known of the SuperNode that runs."""

    since: float | None = None
    lost_at: float | None = None
    lost_reason: str = ""
    told_reason: str = ""
    refused: Event | None = None
    unsent: list[Entry] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """What a supervisor needs of a site.

    Attributes:
        name: The site's name.
        commands: What to start.
        journal: Where the ClientApp writes what left.
        log: Where the programs' output goes.
        greet: Says hello; may take long.
        free_node: Tells the coordinator that the node of an earlier process is gone; may take long.
        remember_node: Keeps the coordinator's number for this site; None forgets it.
        hours: When the site takes part; None is always.
    """

    name: str
    commands: Commands
    journal: Path
    log: Path
    greet: Callable[[], Greeting]
    free_node: Callable[[], None]
    remember_node: Callable[[int | None], None]
    hours: WorkingHours | None = None


class Supervisor:
    """Keeps one site connected until it is asked to leave."""

    def __init__(
        self,
        site: Site,
        *,
        say: Callable[[str], None],
        generator: random.Random,
        now: Callable[[], datetime],
        pace: Pace | None = None,
        once: Once | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            site: What to keep connected.
            say: Takes the lines that a person reads.
            generator: Spreads the pauses.
            now: The site's clock, with time zone.
            pace: How patient to be.
            once: Leave after one round; None stays.
        """
        self._site, self._say, self._now = site, say, now
        self._pace, self._once = pace or Pace(), once
        self._programs = FlowerPrograms(site.commands, site.log)
        self._journal = JournalReader(site.journal)
        self._hello: Background[Greeting] = Background(_failed_greeting)
        self._backoff = Backoff(generator, first=self._pace.first, most=self._pace.most)
        self._superexec_backoff = Backoff(generator, first=self._pace.first / 10, most=self._pace.most)
        self._superexec_at: float | None = None
        self._superexec_since = 0.0
        self._phase = _Phase.WAITING
        self._again_at = 0.0
        self._next_hello = 0.0
        self._connection = _Connection()
        self._federation = ""
        self._last_refusal = ""
        self._notes: set[str] = set()
        self._borne: set[str] = set()
        self._busy = False
        self._signals = 0
        self._done = False
        self._fault: str | None = None
        self._started = time.monotonic()

    def run(self) -> None:
        """Keep the site connected; returns once it has left. Works in a process's main thread.

        Raises:
            ConfigError: If it was to take part once and could not.
        """
        with self._signals_caught() as woken:
            self._site.commands.prepare()
            self._started = time.monotonic()
            try:
                while not self._done and self._signals == 0:
                    self._look()
                    self._rest(woken)
            finally:
                self._end()
        if self._fault is not None:
            raise ConfigError(self._fault)
        self._say("left the federation")

    # --- one look at everything ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._read_events()
        self._read_journal()
        if self._done:
            return
        self._look_at_hours()
        match self._phase:
            case _Phase.WAITING:
                self._hello.take()  # of a hello that was under way when the programs ended
                if time.monotonic() >= self._again_at and not self._hello.is_busy:
                    self._phase = _Phase.GREETING
                    self._hello.start(self._free_and_greet)
            case _Phase.GREETING:
                greeting = self._hello.take()
                if greeting is not None:
                    self._act_on(greeting)
            case _Phase.RUNNING | _Phase.LEAVING:
                self._look_at_programs()
            case _Phase.CLOSED:
                pass
        self._look_at_patience()
        self._bear("the log of Flower's programs cannot be written", self._programs.bound_log)

    def _free_and_greet(self) -> Greeting:
        self._site.free_node()
        return self._site.greet()

    def _act_on(self, greeting: Greeting) -> None:
        self._tell_notes(greeting)
        if greeting.refusal is not None:
            if self._once is not None and not greeting.passing:
                self._finish(greeting.refusal)
                return
            pause = self._wait(most=self._pace.most_unanswered)
            if greeting.refusal != self._last_refusal:
                self._say(f"not connected: {greeting.refusal}; trying again, next in {pause:.0f} s")
            self._last_refusal = greeting.refusal
            return
        self._last_refusal = ""
        self._federation = greeting.federation
        self._connection = _Connection()
        try:
            self._programs.start()
        except OSError as error:
            self._programs.kill_all()
            self._programs.close_events()
            pause = self._wait()
            self._say(f"not connected: Flower's programs cannot be started ({error}); trying again in {pause:.0f} s")
            return
        self._superexec_since = time.monotonic()
        self._next_hello = time.monotonic() + self._pace.hello
        self._phase = _Phase.RUNNING

    def _tell_notes(self, greeting: Greeting) -> None:
        for note in greeting.notes:
            if note not in self._notes:
                self._say(f"warning: {note}")
        self._notes = set(greeting.notes)

    def _look_at_programs(self) -> None:
        status = self._programs.ended_supernode()
        if status is not None:
            self._supernode_ended(status)
            return
        self._look_at_superexec()
        self._look_at_connection()
        if self._phase is _Phase.RUNNING:
            self._look_at_hello()

    def _supernode_ended(self, status: int) -> None:
        self._read_events()
        self._read_journal()
        self._programs.kill_all()  # a ClientApp that still computes, and the SuperExec of the port that is gone
        self._programs.close_events()
        self._superexec_at = None
        connection, self._connection = self._connection, _Connection()
        for entry in connection.unsent:
            self._say(answer_in_words(entry, sent="but the connection ended before the answer was sent"))
        if status == 0 and connection.refused is None:
            self._remember(None)  # it took leave of the coordinator
        if self._done:
            return
        if self._phase is _Phase.LEAVING:
            self._phase, self._again_at = _Phase.WAITING, time.monotonic()
            return
        if connection.since is not None and time.monotonic() - connection.since >= self._pace.settled:
            self._backoff.reset()
        pause = self._wait()
        self._say(f"not connected: {end_in_words(status, connection.refused)}; starting again in {pause:.0f} s")

    def _wait(self, *, most: float | None = None) -> float:
        pause = self._backoff.pause(most=most)
        self._phase, self._again_at = _Phase.WAITING, time.monotonic() + pause
        return pause

    def _look_at_superexec(self) -> None:
        """Start a SuperExec that ended again; the SuperNode keeps its connection meanwhile."""
        status = self._programs.ended_superexec()
        if status is not None:
            if time.monotonic() - self._superexec_since >= self._pace.settled:
                self._superexec_backoff.reset()
            pause = self._superexec_backoff.pause()
            self._superexec_at = time.monotonic() + pause
            self._say(f"Flower's SuperExec {status_in_words(status)}; starting it again in {pause:.1f} s")
        if self._superexec_at is not None and time.monotonic() >= self._superexec_at:
            self._superexec_at, self._superexec_since = None, time.monotonic()
            try:
                self._programs.start_superexec()
            except OSError as error:
                pause = self._superexec_backoff.pause()
                self._superexec_at = time.monotonic() + pause
                self._say(f"Flower's SuperExec cannot be started ({error}); trying again in {pause:.1f} s")

    def _look_at_connection(self) -> None:
        connection = self._connection
        if connection.lost_at is None or connection.told_reason == connection.lost_reason:
            return
        if time.monotonic() - connection.lost_at >= self._pace.quiet:
            connection.told_reason = connection.lost_reason
            self._say(
                f"the connection to the coordinator is lost ({connection.lost_reason}); trying again all the time"
            )

    def _look_at_hello(self) -> None:
        if not self._hello.is_busy:
            if time.monotonic() >= self._next_hello:
                self._next_hello = time.monotonic() + self._pace.hello
                self._hello.start(self._site.greet)
            return
        greeting = self._hello.take()
        if greeting is None:
            return
        self._tell_notes(greeting)
        if greeting.refusal is not None and not greeting.passing and greeting.refusal != self._last_refusal:
            self._say(f"warning: {greeting.refusal}")
        self._last_refusal = greeting.refusal or ""
        if greeting.authorities_changed:
            self._say("the coordinator's certificate authorities have changed; connecting anew with them once idle")
            self._leave_when_idle()

    def _leave_when_idle(self) -> None:
        if self._phase is not _Phase.RUNNING:
            return
        self._phase = _Phase.LEAVING
        if self._connection.since is None:
            self._programs.ask_to_leave()
        else:
            self._programs.ask_to_leave_when_idle()

    def _look_at_hours(self) -> None:
        hours = self._site.hours
        if hours is None:
            return
        now = self._now()
        is_open = hours.is_open(now)
        if self._phase is _Phase.CLOSED:
            if is_open:
                self._say("the working hours begin")
                self._phase, self._again_at = _Phase.WAITING, time.monotonic()
        elif not is_open:
            if self._phase is _Phase.RUNNING:
                self._say("the working hours end; leaving once the task in work is finished")
                self._leave_when_idle()
            elif self._phase is _Phase.WAITING:
                self._close(hours, now)

    def _close(self, hours: WorkingHours, now: datetime) -> None:
        self._phase = _Phase.CLOSED
        back = hours.next_change(now)
        when = "" if back is None else f"; back on {moment_in_words(back)}"
        self._say(f"outside the working hours{when}")
        if self._once is not None:
            self._finish()

    def _look_at_patience(self) -> None:
        if self._once is None or self._done or self._phase is _Phase.LEAVING:
            return
        if time.monotonic() - self._started < self._once.patience_s:
            return
        waited = f"within {self._once.patience_s:.0f} s"
        if self._phase is not _Phase.RUNNING:
            self._finish(f"no connection {waited}: {self._last_refusal or 'the coordinator did not answer'}")
        elif self._connection.since is None:
            self._finish(f"no connection {waited}: {self._connection.lost_reason or 'no answer'}")
        elif not self._busy:
            self._say(f"no round was asked of this site {waited}")
            self._finish()

    def _finish(self, fault: str | None = None) -> None:
        self._done, self._fault = True, fault

    # --- what the programs tell ---------------------------------------------------------------------------------------

    def _read_events(self) -> None:
        for event in self._programs.new_events():
            self._heed(event)

    def _heed(self, event: Event) -> None:
        connection = self._connection
        match event.name:
            case "connected":
                connection.since = time.monotonic()
                self._busy = False
                self._remember(event.node)
                name = f" {self._federation}" if self._federation else ""
                self._say(f"connected to the federation{name} as {self._site.name}")
            case "lost":
                if connection.lost_at is None:
                    connection.lost_at = time.monotonic()
                connection.lost_reason = event.reason
            case "regained":
                if connection.told_reason and connection.lost_at is not None:
                    self._say(f"connected again after {time.monotonic() - connection.lost_at:.0f} s")
                connection.lost_at, connection.told_reason = None, ""
            case "refused":
                connection.refused = event
            case "busy":
                self._busy = True
                connection.refused = None
            case "idle":
                self._busy = False
            case "sent":
                self._answer_sent(event)
            case "crashed":
                self._say(
                    "the process that computed for the coordinator ended suddenly, perhaps for lack of memory; the "
                    "coordinator was told and may ask again"
                )
            case "ended":
                pass

    def _read_journal(self) -> None:
        entries: list[Entry] = []
        self._bear("the journal cannot be read", lambda: entries.extend(self._journal.new_entries()))
        for entry in entries:
            if entry.failure is None:
                self._connection.unsent.append(entry)
                if self._once is not None and entry.kind == "train":
                    self._programs.ask_to_leave_when_idle()  # before the next round's task comes, which would be lost
            else:
                self._say(answer_in_words(entry, sent=""))
                is_asked_again = entry.failure == StateMissingError.code
                if self._once is not None and entry.kind in ("train", "bundle") and not is_asked_again:
                    self._finish(f"this site could not take part: {answer_in_words(entry, sent='')}")

    def _answer_sent(self, event: Event) -> None:
        self._read_journal()
        entries, self._connection.unsent = self._connection.unsent, []
        if not entries:  # an answer that needs no line, or one that found no room for it
            self._bear(
                "the journal cannot be written, and nothing but codes of errors leaves this site until it can",
                lambda: require_writable(self._site.journal),
            )
        size = size_in_words(event.num_bytes)
        sent = f"sent {size}" if event.complete else f"the coordinator did not take the answer ({size})"
        for entry in entries:
            self._say(answer_in_words(entry, sent=sent))
            if self._once is not None and entry.kind == "train" and event.complete:
                self._finish()

    # --- what may fail without harm -----------------------------------------------------------------------------------

    def _remember(self, node: int | None) -> None:
        self._bear("the coordinator's number for this site cannot be kept", lambda: self._site.remember_node(node))

    def _bear(self, trouble: str, act: Callable[[], None]) -> None:
        """Do what the connection does not hang on; a disk that refuses it is told of once until it works again."""
        try:
            act()
        except (ConfigError, OSError) as error:
            if trouble not in self._borne:
                self._say(f"warning: {trouble}: {error}; going on without it")
            self._borne.add(trouble)
        else:
            self._borne.discard(trouble)

    # --- rest and end -------------------------------------------------------------------------------------------------

    def _rest(self, woken: int) -> None:
        descriptors = [woken]
        events = self._programs.events_descriptor()
        if events is not None and self._programs.supernode_running:
            descriptors.append(events)
        ready, _, _ = select.select(descriptors, [], [], self._pace.look)
        if woken in ready:
            os.read(woken, 4096)
        elif ready:
            time.sleep(min(0.02, self._pace.look))  # a burst of events is read in one look

    def _end(self) -> None:
        """Take leave of the coordinator and end all programs; a second signal ends them at once."""
        left = not self._programs.supernode_running
        if not left:
            self._programs.ask_to_leave()
            end = time.monotonic() + self._pace.leave
            while time.monotonic() < end and self._signals < 2:
                self._read_events()
                if (status := self._programs.ended_supernode()) is not None:
                    left = status == 0
                    break
                time.sleep(0.05)
        self._programs.kill_all()
        self._programs.close_events()
        if left:
            self._remember(None)
        elif self._signals < 2:
            leave: Background[None] = Background(lambda error: None)
            leave.start(self._site.free_node)
            end = time.monotonic() + self._pace.leave
            while leave.is_running and time.monotonic() < end and self._signals < 2:
                time.sleep(0.05)

    @contextmanager
    def _signals_caught(self) -> Iterator[int]:
        """Count SIGTERM and SIGINT; the descriptor can be read once one came."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)

        def count(signum: int, frame: FrameType | None) -> None:
            self._signals += 1

        numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, count) for number in numbers}
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)


def _failed_greeting(error: Exception) -> Greeting:
    """A hello that failed as none should; the next may not."""
    return Greeting(f"the hello failed unexpectedly ({type(error).__name__}: {error})", passing=True)
