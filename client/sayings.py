"""The lines that a person at the site reads: one for each answer that left, and why the site is not connected."""

import signal
from datetime import datetime

from client.events import EXIT_DEAF, EXIT_HEARTBEAT, Event
from client.journal import Entry
from common.errors import StateMissingError

_ADVICE = {
    "config": "`gliorn-client check --site …` shows the details",
    "data": "`gliorn-client check --site …` shows the details",
    "disclosure": "this site's own rules forbid it; `gliorn-client check --site …` shows the details",
    "consent": "this site has not agreed to the study; read it and run `gliorn-client accept --site …`",
    "timeout": "it took longer than the coordinator waits; tell the coordinator, or compute on a faster device",
    "training": "training did not end in a usable model; tell the coordinator",
    "protocol": "the coordinator's message is not understood here; compare the versions of gliorn",
    "internal": "a fault of this program; flower.log beside the site's key shows where",
}
_VERBS = {
    "describe": "describe itself",
    "train": "train",
    "evaluate": "evaluate",
    "compare": "compare two runs",
    "statistics": "show statistics of its cohort",
    "bundle": "run the app bundle",
}


def size_in_words(num_bytes: int) -> str:
    """A number of bytes as people write it."""
    if num_bytes >= 10**6:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e3:.0f} kB" if num_bytes >= 1000 else f"{num_bytes} bytes"


def answer_in_words(entry: Entry, *, sent: str) -> str:
    """The line for an answer.

    Args:
        entry: The answer, as the journal has it.
        sent: What became of it, such as "sent 5.2 MB".
    """
    match entry.kind:
        case "bundle":
            return (
                "refused an app bundle that is not the one installed here, and ran nothing of it: installed "
                f"{entry.facts.get('installed')}, offered {entry.facts.get('offered')}; install the version of gliorn "
                "and Flower that the coordinator runs"
            )
        case _ if entry.failure == StateMissingError.code:
            return f"{_place(entry)}asked the coordinator for the whole global model, which was not kept here"
        case _ if entry.failure is not None:
            advice = _ADVICE.get(entry.failure, "flower.log beside the site's key shows more")
            if entry.facts.get("disk") == "full":
                advice = (
                    "the disk that holds the folder `cache` of site.yaml is full; the next task works once it has room"
                )
            return f"{_place(entry)}could not {_VERBS[entry.kind]} ({entry.failure}): {advice}"
        case "train":
            facts = entry.facts
            done = (
                f"trained {_count(facts.get('steps'), 'step')} on {_count(facts.get('patients'), 'patient')}, "
                f"mean loss {float(facts.get('mean_loss', float('nan'))):.3g}"
            )
        case "evaluate":
            done = f"evaluated on {entry.facts.get('split', '')} patients"
        case "compare":
            done = f"compared runs {entry.facts.get('first', '')} and {entry.facts.get('second', '')} on test patients"
        case "statistics":
            shown = "withheld all" if entry.facts.get("withheld") else "showed"
            done = f"{shown} statistics of its cohort"
        case _:
            done = f"told what this site brings: {_count(entry.facts.get('patients'), 'training patient')}"
    return f"{_place(entry)}{done}, {entry.seconds:.0f} s; {sent}"


def _place(entry: Entry) -> str:
    if entry.round is not None:
        return f"round {entry.round} of {entry.rounds}: " if entry.rounds else f"round {entry.round}: "
    return f"study {entry.study}: " if entry.study else ""


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def end_in_words(status: int, refused: Event | None) -> str:
    """Why the SuperNode ended.

    Args:
        status: Its exit status; the number of a signal is negative.
        refused: The coordinator's last answer that it could not go on with, if there was one.
    """
    if refused is not None and refused.status == 401:
        return "the coordinator did not accept this site's key"
    if refused is not None and refused.code == 2004:
        return (
            "the coordinator does not let this site connect yet: it has only just admitted the key, or still takes an "
            "earlier connection of this site for alive"
        )
    answer = f" after the answer {refused.status} to {refused.reason}" if refused is not None else ""
    if status == EXIT_DEAF:
        return f"Flower's SuperNode stopped listening{answer}"
    if status == EXIT_HEARTBEAT:
        return f"Flower's SuperNode no longer told the coordinator that it is here{answer}"
    return f"Flower's SuperNode {status_in_words(status)}{answer}"


def status_in_words(status: int) -> str:
    """An exit status as it reads in a sentence about a program."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    return f"was killed by {name}"


def moment_in_words(at: datetime) -> str:
    """A moment of the next days in local time."""
    return f"{at:%a %d %b %H:%M}"
