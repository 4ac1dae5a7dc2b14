"""Runs Flower's SuperNode as a child that reports on its connection and cannot stay alive without hearing anything.

Flower's SuperNode (1.41) stops listening after one unexpected answer, but its process lives on. Here such a process
ends with an exit status of its own. It also tells its supervisor, through a pipe, how the connection stands, keeps the
site's limit on bandwidth, and notices a ClientApp that died over its task within a second instead of a minute.

Run as `python -m client.supernode OPTION… -- ARGUMENT…`, with the arguments of `flower-supernode`. SIGUSR1 asks it to
finish the task in work and then to leave.
"""

import argparse
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from client.bandwidth import BandwidthLimit
from client.events import EXIT_DEAF, EXIT_HEARTBEAT, Event, EventWriter
from client.flower_private import (
    ACTIVATE_NODE,
    CONFIRM_RECEIVED,
    HEARTBEAT,
    PULL_MESSAGES,
    PULL_OBJECT,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    ClientAppTasks,
    HeartbeatWatch,
    activated_node,
    error_code,
    holds_message,
    run_supernode,
)
from client.pauses import Bell, GrowingPause
from client.processes import ProcessLock, end_with_parent

LOOK_S = 1.0
_TASK_LOOK_S = 0.5
_FOR_A_MESSAGE_S = 1.0
"""Flower's pauses above are between two looks for a message, those below between two for a ClientApp's answer."""
_SHARE_FOR_MESSAGE, _LEAST_FOR_MESSAGE_S = 0.1, 0.25
"""The coordinator answers every look for a message, of all sites."""
_SHARE_FOR_ANSWER, _LEAST_FOR_ANSWER_S = 0.02, 0.02
_PASSING = (502, 503, 504)
"""Answers after which Flower tries again by itself."""


class Watch:
    """Follows the SuperNode's calls, and tells the supervisor what they mean."""

    def __init__(self, events: EventWriter, limit: BandwidthLimit | None, bell: Bell | None = None) -> None:
        """Begin without a connection; the bell is rung for each message that is here with all its parts."""
        self._events, self._limit, self._bell = events, limit, bell
        self._lock = threading.Lock()
        self._lost_for: set[str] = set()
        self._busy = False
        self._sent_bytes, self._sending, self._complete = 0, False, True
        self.leave_when_idle = False
        self._for_message = GrowingPause(share=_SHARE_FOR_MESSAGE, least=_LEAST_FOR_MESSAGE_S)
        self._for_answer = GrowingPause(share=_SHARE_FOR_ANSWER, least=_LEAST_FOR_ANSWER_S)

    def pause(self, seconds: float) -> None:
        """Wait before the SuperNode looks again, given what Flower would wait."""
        (self._for_message if seconds > _FOR_A_MESSAGE_S else self._for_answer).rest(seconds)

    def before(self, call: str, num_bytes: int) -> None:
        """See `CallWatch`. The SuperNode asks for messages only when it has nothing left to do."""
        if call == PULL_MESSAGES:
            self._now_idle()
            if self.leave_when_idle:
                signal.raise_signal(signal.SIGTERM)  # Flower leaves: says so to the coordinator and exits
        if call == CONFIRM_RECEIVED and self._bell is not None:
            self._bell.ring()
        if call in (PUSH_MESSAGES, PUSH_OBJECT):
            with self._lock:
                self._sending = True
                self._sent_bytes += num_bytes
        if self._limit is not None and call != HEARTBEAT:
            self._limit.wait_for(num_bytes)

    def answered(self, call: str, status: int, body: bytes) -> None:
        """See `CallWatch`."""
        if self._limit is not None and call != HEARTBEAT:
            self._limit.account(len(body))
        if status in _PASSING:
            self._now_lost(f"status {status}")
            return
        self._now_regained()
        if call in (PUSH_MESSAGES, PUSH_OBJECT):
            self._complete = self._complete and status < 400
        if status >= 400:
            if call == PULL_OBJECT and status == 403:
                # The run ended while its message was on its way. Flower 1.41 has started a ClientApp for the message by
                # then, and would wait for ever for its answer (`flwr/supernode/start_client_internal.py`).
                signal.raise_signal(signal.SIGTERM)
            elif status != 403:  # a run that has ended; Flower goes on
                self._events.write(Event("refused", reason=call, status=status, code=error_code(body)))
        elif call == ACTIVATE_NODE:
            self._events.write(Event("connected", node=activated_node(body)))
        elif call == PULL_MESSAGES and holds_message(body):
            self._busy = True
            self._for_answer.restart()
            self._events.write(Event("busy"))

    def failed(self, call: str, error: httpx.TransportError) -> None:
        """See `CallWatch`."""
        self._now_lost(reason_of(error))

    def _now_idle(self) -> None:
        with self._lock:
            sent, num_bytes, complete = self._sending, self._sent_bytes, self._complete
            self._sending, self._sent_bytes, self._complete = False, 0, True
        if sent:
            self._for_message.restart()
            self._events.write(Event("sent", num_bytes=num_bytes, complete=complete))
        if self._busy:
            self._busy = False
            self._events.write(Event("idle"))

    def _now_lost(self, reason: str) -> None:
        """Tell it once for each reason of an outage: what cuts the connection may not be what keeps it away."""
        with self._lock:
            is_new = reason not in self._lost_for
            self._lost_for.add(reason)
        if is_new:
            self._events.write(Event("lost", reason=reason))

    def _now_regained(self) -> None:
        with self._lock:
            was_lost = bool(self._lost_for)
            self._lost_for.clear()
        if was_lost:
            self._events.write(Event("regained"))


def reason_of(error: BaseException) -> str:
    """Why a call did not come through, in a word or two: refused, timeout, certificate, proxy, dns or broken."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case httpx.ProxyError():
                return "proxy"
            case httpx.TimeoutException() | TimeoutError():
                return "timeout"
            case ssl.SSLCertVerificationError():
                return f"certificate: {cause.verify_message}"
            case socket.gaierror():
                return "dns"
            case ConnectionRefusedError():
                return "refused"
        cause = cause.__cause__ or cause.__context__
    return "broken"


def follow_tasks(
    tasks: ClientAppTasks, lock: ProcessLock, events: EventWriter, *, look_s: float = _TASK_LOOK_S
) -> None:
    """Give up tasks whose ClientApp has died; never returns.

    A ClientApp holds the lock while it lives, and the SuperNode has one at a time. So a task that was begun while
    nobody holds the lock, twice in a row, has no ClientApp any more.
    """
    seen: set[int] = set()
    suspects: set[int] = set()
    while True:
        time.sleep(look_s)
        running = tasks.running()
        if lock.is_held():
            seen |= running.keys()
            suspects.clear()
            continue
        alone = {task for task, begun in running.items() if begun or task in seen}
        for task in alone & suspects:
            tasks.give_up(task)
            events.write(Event("crashed"))
        suspects = alone - suspects
        seen &= running.keys()


def _follow_heartbeat(heartbeat: HeartbeatWatch, end: Callable[[int, str], None]) -> None:
    while True:
        time.sleep(LOOK_S)
        if heartbeat.is_dead:
            end(EXIT_HEARTBEAT, "the heartbeat stopped")


def main(arguments: Sequence[str]) -> None:
    """Run the SuperNode until it ends, and exit with a status that says how."""
    options = _parser().parse_args(arguments)
    end_with_parent(options.parent)
    events = EventWriter(options.events)
    limit = None if options.max_mbit is None else BandwidthLimit(options.max_mbit)
    bell = None if options.task_bell is None else Bell(options.task_bell)
    watch = Watch(events, limit, bell)

    def leave_when_idle(signum: int, frame: object) -> None:
        watch.leave_when_idle = True

    signal.signal(signal.SIGUSR1, leave_when_idle)

    def end(status: int, reason: str) -> None:
        events.write(Event("ended", reason=reason))
        print(f"SuperNode: {reason}; exit status {status}", file=sys.stderr, flush=True)  # noqa: T201 - Flower's log
        os._exit(status)  # Flower's HTTP thread would keep the process alive

    def on_state(tasks: ClientAppTasks) -> None:
        if options.task_lock is not None:
            lock = ProcessLock(options.task_lock)
            threading.Thread(target=follow_tasks, args=(tasks, lock, events), daemon=True).start()

    threading.Thread(target=_follow_heartbeat, args=(HeartbeatWatch(), end), daemon=True).start()
    run_supernode(options.arguments, watch, on_state, watch.pause)
    end(EXIT_DEAF, "its main loop ended")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m client.supernode", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process with which this one ends")
    parser.add_argument("--events", type=int, required=True, help="file descriptor for events")
    parser.add_argument("--task-lock", type=Path, help="file that a living ClientApp locks")
    parser.add_argument("--task-bell", type=Path, help="file by which the SuperExec is told of a task")
    parser.add_argument("--max-mbit", type=float, help="megabits per second, sent and received together")
    parser.add_argument("arguments", nargs="*", help="arguments of flower-supernode, after --")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
