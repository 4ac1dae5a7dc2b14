"""The names of Flower 1.41 that a site uses and that are not part of Flower's public interface.

Flower may change them in any release, so they stand in this one file. Each function checks what it takes for granted
before it changes anything, and refuses to work with a Flower that is made otherwise.
"""

import ssl
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Error, Message

LONGEST_REASON = 200
"""Longest text about an error that leaves a site."""

HEARTBEAT = "SendNodeHeartbeat"
PULL_MESSAGES = "PullMessages"
PUSH_MESSAGES = "PushMessages"
PULL_OBJECT = "PullObject"
PUSH_OBJECT = "PushObject"
CONFIRM_RECEIVED = "ConfirmMessageReceived"
"""The call that is made once the whole of a message is here."""

ACTIVATE_NODE = "ActivateNode"

_FIRST_PAUSE_S = 0.1
"""Before a SuperNode asks again for a part of a message that is still on its way to the coordinator's SuperLink; it is
doubled each time up to 10 s. Flower's own is a second, longer than the part takes."""

_NOT_VALID_NOW = (9, 10)
"""OpenSSL's numbers for a certificate that is not valid yet and for one that has expired."""


class CallWatch(Protocol):
    """Is told of every call that the SuperNode makes to the coordinator; the names are those of Flower's calls."""

    def before(self, call: str, num_bytes: int) -> None:
        """A call with so many bytes is about to be made; may wait, or end the process."""

    def answered(self, call: str, status: int, body: bytes) -> None:
        """The coordinator answered."""

    def failed(self, call: str, error: httpx.TransportError) -> None:
        """The call did not come through."""


def require_private_names() -> None:
    """Check that Flower is made as this file takes it for granted.

    Raises:
        ImportError: If it is not; says what is missing.
    """
    from flwr.proto.fleet_pb2 import ActivateNodeResponse, DeactivateNodeRequest, PullMessagesResponse
    from flwr.supercore.corestate import in_memory_corestate
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supercore.superexec import run_superexec
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
    from flwr.supernode import start_client_internal
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
    from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory
    from flwr.supernode.runtime import run_clientapp

    sender = HeartbeatSender(lambda: True)
    fields = in_memory_corestate.TokenRecord.__dataclass_fields__
    needed: list[tuple[object, tuple[str, ...]]] = [
        (NodeAuthHttpInterceptor, ("intercept",)),
        (FleetHttpClient, ("from_server_address", "DeactivateNode")),
        (NodeStateFactory, ("state",)),
        (InMemoryNodeState, ("get_messages_legacy", "_on_task_tokens_expired", "_cleanup_expired_task_tokens_locked")),
        (sender, ("_thread", "_stop_event", "start")),
        (start_client_internal, ("time", "pull_objects", "_pull_and_store_message", "_push_messages")),
        (run_superexec, ("time",)),
        (SubprocessExecutor, ("launch", "reconcile")),
        (run_clientapp, ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn", "Error")),
        (ActivateNodeResponse(), ("node_id",)),
        (PullMessagesResponse(), ("messages_list",)),
        (DeactivateNodeRequest(), ("node_id",)),
    ]
    missing = [f"{thing}.{name}" for thing, names in needed for name in names if not hasattr(thing, name)]
    missing += [f"TokenRecord.{name}" for name in ("token", "active_until") if name not in fields]
    if missing:
        _refuse(missing)


def _refuse(missing: Sequence[str]) -> NoReturn:
    raise ImportError(
        f"the installed Flower lacks {', '.join(missing)}, which gliorn relies on; install the version that gliorn "
        "names (flwr>=1.41,<1.42)"
    )


# --- the SuperNode ----------------------------------------------------------------------------------------------------


def run_supernode(
    arguments: Sequence[str],
    watch: CallWatch,
    on_state: Callable[["ClientAppTasks"], None],
    pause: Callable[[float], None],
) -> None:
    """Run Flower's SuperNode in this process, which should be its own.

    Args:
        arguments: Those of `flower-supernode`.
        watch: Told of every call to the coordinator.
        on_state: Given the tasks of ClientApps as soon as the SuperNode keeps any.
        pause: Waits before the SuperNode looks again, given the seconds that Flower would wait: 3 for a message of the
            coordinator, .5 for the answer of a ClientApp.

    Returns when the SuperNode's main loop has ended by itself, after which Flower leaves the process alive and deaf.

    Raises:
        SystemExit: When it was asked to end, or could not begin.
    """
    require_private_names()
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
    from flwr.supernode.nodestate.nodestate_factory import NodeStateFactory

    intercept = NodeAuthHttpInterceptor.intercept
    make_state = NodeStateFactory.state

    def watched(self: NodeAuthHttpInterceptor, context: Any, call_next: Any) -> httpx.Response:
        call = str(context.rpc_method).rpartition("/")[2]
        watch.before(call, len(context.request.content))
        try:
            response = intercept(self, context, call_next)
        except httpx.TransportError as error:
            watch.failed(call, error)
            if passes_by_itself(error):
                raise httpx.ConnectError("the connection was cut, or is not there for now") from error
            raise
        watch.answered(call, response.status_code, response.content)
        return response

    def state(self: NodeStateFactory) -> Any:
        made = self.state_instance is None
        instance = make_state(self)
        if made:
            on_state(ClientAppTasks(instance))
        return instance

    vars(start_client_internal)["time"] = _Time(pause)
    vars(start_client_internal)["pull_objects"] = partial(pull_objects, initial_backoff=_FIRST_PAUSE_S)
    NodeAuthHttpInterceptor.intercept = watched  # type: ignore[method-assign]
    NodeStateFactory.state = state  # type: ignore[method-assign]
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


def passes_by_itself(error: httpx.TransportError) -> bool:
    """Whether to try again after an error that Flower takes for the end.

    Flower (1.41, `supercore/retry/http_retry.py`) gives up the answer that it was sending, or stops listening, where
    the error's text names "SSL" or "certificate". So does that of a connection that was cut within TLS, that of a
    handshake that nobody answered, and that of a server's certificate that has expired, which its owner renews. A
    proxy's refusal it does not try again either.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_code in _NOT_VALID_NOW
        cause = cause.__cause__ or cause.__context__
    return not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)


class HeartbeatWatch:
    """Knows whether the thread that tells the coordinator "I am here" has died, as it does after one odd answer."""

    def __init__(self) -> None:
        """Watch the senders of this process from here on."""
        from flwr.supercore.heartbeat import HeartbeatSender

        self._senders: list[HeartbeatSender] = []
        start = HeartbeatSender.start

        def watched(sender: HeartbeatSender) -> None:
            self._senders.append(sender)
            start(sender)

        HeartbeatSender.start = watched  # type: ignore[method-assign,assignment]

    @property
    def is_dead(self) -> bool:
        """Whether a heartbeat has stopped that nobody asked to stop."""
        return any(
            sender._thread.ident is not None and not sender._thread.is_alive() and not sender._stop_event.is_set()
            for sender in self._senders
        )


class ClientAppTasks:
    """The tasks of ClientApps that a SuperNode has handed out."""

    def __init__(self, state: Any) -> None:
        """Look into the state of a SuperNode."""
        self._state = state

    def running(self) -> dict[int, bool]:
        """The tasks that a process has taken, and whether it has begun with each."""
        from flwr.common.constant import Status

        with self._state.lock_task_store:
            return {
                task_id: self._state.task_store[task_id].status.status == Status.RUNNING
                for task_id in self._state.task_token_store
                if task_id in self._state.task_store
            }

    def give_up(self, task_id: int) -> None:
        """Let a task's claim run out now: one that has begun is answered as crashed, another is handed out again.

        Flower does the same by itself, but only once it has missed a minute of the ClientApp's heartbeats.
        """
        with self._state.lock_task_store:
            record = self._state.task_token_store.get(task_id)
            if record is not None:
                record.active_until = datetime.fromtimestamp(0, UTC)


def activated_node(body: bytes) -> int:
    """The node's number in the coordinator's answer to `ActivateNode`."""
    from flwr.proto.fleet_pb2 import ActivateNodeResponse

    return int(ActivateNodeResponse.FromString(body).node_id)


def holds_message(body: bytes) -> bool:
    """Whether the coordinator's answer to `PullMessages` brings work."""
    from flwr.proto.fleet_pb2 import PullMessagesResponse

    return len(PullMessagesResponse.FromString(body).messages_list) > 0


def error_code(body: bytes) -> int | None:
    """Flower's number of the error in an answer, such as 2004; None where it tells none."""
    from flwr.supercore.error import FlowerError

    error = FlowerError.from_json(body.decode(errors="replace"))
    return None if error is None else int(error.code)


def deactivate_node(address: str, ca_certificate: Path, key: ec.EllipticCurvePrivateKey, node_id: int) -> None:
    """Tell the coordinator that a node is gone; otherwise it refuses the next one of this site for a minute.

    Raises:
        httpx.HTTPError: If it does not come through, or the coordinator refuses.
    """
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    with FleetHttpClient.from_server_address(address, False, str(ca_certificate), interceptors) as client:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))


# --- the SuperExec ----------------------------------------------------------------------------------------------------


class _Time:
    """Stands in a module of Flower's for Python's `time`, of which it uses `sleep` alone."""

    def __init__(self, pause: Callable[[float], None]) -> None:
        self.sleep = pause


class TaskStarter(Protocol):
    """Starts the apps of tasks in Flower's place."""

    def start(self, arguments: Sequence[str]) -> bool:
        """Start an app with the arguments of Flower's program for it; False leaves it to Flower."""

    def tend(self) -> None:
        """Called whenever the SuperExec looks for tasks."""


def run_superexec(
    arguments: Sequence[str],
    starter: TaskStarter,
    pause: Callable[[float], None],
    *,
    program: str = "flwr-clientapp",
) -> None:
    """Run Flower's SuperExec, which starts an app for every task, in this process.

    Args:
        arguments: Those of `flower-superexec`.
        starter: Starts the apps.
        pause: Waits before the SuperExec looks for a task again, given the seconds that Flower would wait.
        program: Flower's program for the apps that the starter starts; others are started by Flower, by bare names.
    """
    require_private_names()
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
    from flwr.supercore.superexec import run_superexec as module
    from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor

    launch = SubprocessExecutor.launch

    def launched(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
        if TASK_TYPE_TO_COMMAND[spec.task_type] == program and not spec.runtime_dependency_install:
            given = ["--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
            given += ["--insecure"] if spec.insecure else ["--root-certificates", str(spec.root_certificates_path)]
            if starter.start(given):
                return LaunchResult.accepted()
        return launch(self, spec)

    def reconcile(self: SubprocessExecutor) -> None:
        starter.tend()

    SubprocessExecutor.launch = launched  # type: ignore[method-assign]
    SubprocessExecutor.reconcile = reconcile  # type: ignore[method-assign]
    vars(module)["time"] = _Time(pause)
    sys.argv = ["flower-superexec", *arguments]
    flower_superexec()


# --- the ClientApp ----------------------------------------------------------------------------------------------------


class ToldError(Exception):
    """Its text is the whole of what the coordinator is told."""


def run_clientapp(
    arguments: Sequence[str],
    *,
    check: Callable[[bytes], None],
    load: Callable[[], Callable[[Message, Context], Message]],
) -> None:
    """Run one task as `flwr-clientapp` does, with the installed ClientApp and without unpacking the app bundle.

    Of an exception the coordinator is told the text if it is an `ToldError`, and otherwise only its type and place.

    Args:
        arguments: Those of `flwr-clientapp`.
        check: Given the bundle; raises if it is not to be obeyed.
        load: Gives the ClientApp that answers.
    """
    require_private_names()
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp as module

    def only_check(content: bytes, *rest: Any, **options: Any) -> None:
        check(content)

    def refuse_installation(*rest: Any, **options: Any) -> NoReturn:
        raise ToldError("this site installs nothing at run time")

    def give_loader(*rest: Any, **options: Any) -> Callable[..., Callable[..., Message]]:
        return lambda *names: _without_run_settings(load())

    changed: dict[str, object] = {
        "install_from_fab": only_check,
        "install_app_dependencies": refuse_installation,
        "get_load_client_app_fn": give_loader,
        "Error": _told_error,
    }
    for name, replacement in changed.items():
        setattr(module, name, replacement)
    sys.argv = ["flwr-clientapp", *arguments]
    flwr_clientapp()


def _without_run_settings(app: Callable[[Message, Context], Message]) -> Callable[..., Message]:
    """The app, but it never sees what the coordinator set for the run: a site acts on its own settings."""

    def answer(message: Message, context: Context) -> Message:
        context.run_config = {}
        return app(message, context)

    return answer


def _told_error(code: int, reason: str | None = None) -> Error:
    """Flower's error with a reason that may leave the site, in place of the exception's own text."""
    return Error(code, told_text(sys.exc_info()[1]))


def told_text(error: BaseException | None) -> str:
    """What the coordinator is told of an exception: type and place in the code, never its text."""
    if error is None:
        return "unknown"
    if isinstance(error, ToldError):
        return str(error)[:LONGEST_REASON]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"[:LONGEST_REASON]
