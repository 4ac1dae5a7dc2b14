"""Faults of sites, made on purpose, to see that a federation survives them and names the site."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from client.app import SITE_CONFIG_KEY
from common.errors import ConfigError

FaultKind = Literal["nan", "shape", "no-patients", "many-patients", "missing-key", "exception", "hang", "crash"]
HANG_S = 3600.0


@dataclass(frozen=True)
class Fault:
    """One site does one thing wrong whenever it is asked to train from a round on.

    Attributes:
        site: Name of the site.
        kind: "nan": its update holds NaN. "shape": an array has another shape. "no-patients" and "many-patients": it
            claims to have trained on none, or on a milliard. "missing-key": its reply lacks an entry. "exception": its
            program fails. "hang": it never answers. "crash": its process ends, where it has one of its own.
        first_round: Round from which on it does so.
    """

    site: str
    kind: FaultKind
    first_round: int = 1


def parse_fault(text: str) -> Fault:
    """Read `SITE:KIND` or `SITE:KIND:ROUND`.

    Raises:
        ConfigError: If the text has another form.
    """
    site, _, rest = text.partition(":")
    kind, _, first_round = rest.partition(":")
    if not site or kind not in get_args(FaultKind) or not (first_round or "1").isdecimal():
        raise ConfigError(
            f"--fault {text!r}: expected SITE:KIND or SITE:KIND:ROUND with KIND one of {', '.join(get_args(FaultKind))}"
        )
    return Fault(site, kind, int(first_round or 1))  # type: ignore[arg-type]


class FaultyClientApp(ClientApp):
    """A ClientApp that answers as another one does, but for the faults.

    Args:
        inner: What answers.
        faults: By the path of the site's configuration.
    """

    def __init__(self, inner: Callable[[Message, Context], Message], faults: dict[str, Fault]) -> None:
        super().__init__()
        self._inner = inner
        self._faults = faults

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        fault = self._faults.get(str(context.node_config.get(SITE_CONFIG_KEY)))
        if fault is None or message.metadata.message_type != "train" or _round_of(message) < fault.first_round:
            return self._inner(message, context)
        match fault.kind:
            case "exception":
                raise RuntimeError("a fault made on purpose")
            case "hang":
                time.sleep(HANG_S)
            case "crash":
                os._exit(1)
        reply = self._inner(message, context)
        _spoil(reply, fault.kind)
        return reply


def _round_of(message: Message) -> int:
    task = message.content["task"]
    assert isinstance(task, ConfigRecord)
    round = task["round"]
    assert isinstance(round, int)
    return round


def _spoil(reply: Message, kind: FaultKind) -> None:
    values, arrays = reply.content["reply"], reply.content["state"]
    assert isinstance(values, ConfigRecord)
    assert isinstance(arrays, ArrayRecord)
    name = sorted(arrays)[0]
    match kind:
        case "nan":
            arrays[name] = Array(np.full_like(arrays[name].numpy(), np.nan))
        case "shape":
            arrays[name] = Array(arrays[name].numpy()[:1])
        case "no-patients":
            values["num-patients"] = [0, 0]
        case "many-patients":
            values["num-patients"] = [10**9, 0]
        case "missing-key":
            del values["num-steps"]
