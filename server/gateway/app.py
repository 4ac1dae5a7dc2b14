"""The gateway as an ASGI application: what becomes of a request.

A SuperNode of Flower 1.41 takes answers as follows (`supercore/retry/http_retry.py`, `fleet_http_connection.py`): 502,
503, 504 and a lost connection are tried again; 401 ends it, so that its supervisor asks by hello for the reason; 403
drops the message it was about; anything else leaves it running and deaf. Nothing else is therefore answered here.
"""

import asyncio
import base64
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import httpx
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.errors import ConfigError, ProtocolError
from common.hello import HELLO_PATH, HelloRefusal
from common.site_signature import PUBLIC_KEY_HEADER
from server import flower_private
from server.federation_folder import AdmittedSite
from server.gateway.access_log import IN_WORDS, AccessLog
from server.gateway.admission import SIGNATURE_HEADERS, Admission, FloodError, RefusedError
from server.gateway.attendance import Attendance
from server.gateway.certificate import GatewayCertificate
from server.gateway.deliveries import Deliveries
from server.gateway.hello import Reception
from server.gateway.limits import (
    FLEET,
    MAX_BODY,
    MAX_CALLS_PER_SITE,
    MAX_CONNECTIONS,
    MAX_HEADER,
    BodyTooLargeError,
    BodyTooSlowError,
    Memory,
    NoMemoryError,
    Places,
    TokenBuckets,
    Uploads,
    read_body,
)

log = logging.getLogger("server.gateway")

ACTIVATE, DEACTIVATE, HEARTBEAT = FLEET + "activate-node", FLEET + "deactivate-node", FLEET + "send-node-heartbeat"
PULL_MESSAGES, PUSH_MESSAGES = FLEET + "pull-messages", FLEET + "push-messages"
PULL_OBJECT, PUSH_OBJECT, CONFIRM = FLEET + "pull-object", FLEET + "push-object", FLEET + "confirm-message-received"

RETRY_AFTER_S = 5
_FORWARDED = (*SIGNATURE_HEADERS, *flower_private.VERSION_HEADERS)
_PATHS = {path.encode("ascii"): path for path in MAX_BODY}
_DRAINED, _DRAIN_TIMEOUT_S = 64 * 2**10, 10.0

_AFTER_DELIVERY = {PULL_OBJECT, CONFIRM, PUSH_MESSAGES, FLEET + "get-run", FLEET + "get-fab"}
"""Calls that show that the site has received the message it was handed."""

_UPLOADS = {PUSH_MESSAGES, PUSH_OBJECT}

_PASSED_ON = {ACTIVATE: {200, 400, 401, 403, 412}, HEARTBEAT: {200, 401}}
_PASSED_ON_ELSE = {200, 401, 403}
"""Statuses of the SuperLink that a site gets to see: any other than 200 to activate-node ends a SuperNode."""


@dataclass(frozen=True)
class Clocks:
    """The time, as the gateway sees it.

    Attributes:
        now: The wall clock, with time zone.
        elapsed_s: Seconds that only grow.
    """

    now: Callable[[], datetime]
    elapsed_s: Callable[[], float]


class Gateway:
    """Answers requests: those of admitted sites from the SuperLink, all others itself.

    Args:
        admission: Decides whose a request is.
        attendance: Remembers what was seen of each site.
        deliveries: Remembers what each site was handed.
        reception: Answers hellos.
        calls: How many calls each site may make.
        hellos: How many hellos each site may say: each takes the event loop's time.
        access_log: Hears of refusals.
        certificate: Looked at every second; None where somebody else ends TLS, as in tests.
        superlink: Talks to the SuperLink; closed at the end.
        clocks: The time.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        attendance: Attendance,
        deliveries: Deliveries,
        reception: Reception,
        calls: TokenBuckets,
        hellos: TokenBuckets,
        access_log: AccessLog,
        certificate: GatewayCertificate | None,
        superlink: httpx.AsyncClient,
        clocks: Clocks,
    ) -> None:
        self._admission, self._attendance, self._deliveries = admission, attendance, deliveries
        self._reception, self._calls, self._hellos, self._log = reception, calls, hellos, access_log
        self._certificate, self._superlink, self._clocks = certificate, superlink, clocks
        self._places = Places(MAX_CONNECTIONS, MAX_CALLS_PER_SITE)
        self._memory = Memory()
        self._uploads = Uploads()
        self._superlink_answers = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or go along with the server's begin and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            response = _later()
            try:
                response = await self._answer(scope, receive)
            except asyncio.CancelledError:  # the gateway is told to end
                response = _closing(response)
            finally:  # also after a mistake of ours, which uvicorn would answer with 500
                await response(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watching = asyncio.create_task(self._watch())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        self._attendance.write()
        await self._superlink.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._certificate is not None:
                self._certificate.refresh()
            self._attendance.look_around()
            await asyncio.sleep(1.0)
            if self._certificate is not None:
                self._certificate.refresh()
            try:
                self._attendance.write()
            except OSError as error:
                log.warning("cannot write the sightings: %s", error.strerror)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        path = _call(scope)
        if path is None:
            return _not_found()
        address = "unknown" if scope["client"] is None else str(scope["client"][0])
        try:
            site = self._admission.site_of(scope["headers"], address=address, now=self._clocks.now())
        except FloodError:
            self._log.flooded()
            return _not_found()
        except RefusedError as refusal:
            self._log.refused(
                IN_WORDS[refusal.fault], address=address, site=refusal.site, fingerprint=refusal.fingerprint
            )
            await _drain(scope, receive)
            return self._refusal(path, refusal)
        except ConfigError as error:
            log.error("nobody is let in: %s", error)
            return _later()
        if (excess := self._excess(path, site)) is not None:
            self._log.refused(excess, address=address, site=site.name)
            await _drain(scope, receive)
            return _later()
        try:
            return await self._answer_site(path, site, scope, receive, address=address)
        finally:
            self._places.give_back(site.name)

    def _excess(self, path: str, site: AdmittedSite) -> str | None:
        """What of this call is too much; None, and a place taken, if nothing is."""
        if path == HELLO_PATH and not self._hellos.take(site.name):
            return "too many hellos"
        if not self._calls.take(site.name) or not self._places.take(site.name):
            return "too many calls at one time"
        return None

    async def _answer_site(
        self, path: str, site: AdmittedSite, scope: Scope, receive: Receive, *, address: str
    ) -> Response:
        begin = self._clocks.elapsed_s()
        with self._memory.lease() as take:
            try:
                body = await read_body(receive, most=MAX_BODY[path], take=take)
            except BodyTooLargeError as error:
                self._log.refused(
                    f"{_name(path)} brought {error}; is FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE set there?",
                    address=address,
                    site=site.name,
                )
                return _dropped()
            except BodyTooSlowError:
                return _closing(_later())
            except NoMemoryError:
                self._log.refused("too many uploads at one time", address=address, site=site.name)
                return _later()
            took_s = self._clocks.elapsed_s() - begin
            if path == HELLO_PATH:
                response = self._hello(body, site, address=address)
            else:
                self._attendance.heard(site.name, address=address)
                response = await self._fleet(path, body, site, Headers(scope=scope), address=address)
            self._attendance.transferred(
                site.name, received_bytes=len(body), received_in_s=took_s, sent_bytes=len(response.body)
            )
            return response

    def _hello(self, body: bytes, site: AdmittedSite, *, address: str) -> Response:
        try:
            hello = self._reception.read(body)
            reply = self._reception.reply(site=site.name, now=self._clocks.now())
        except RefusedError as refusal:
            self._log.refused(IN_WORDS[refusal.fault], address=address, site=site.name)
            self._attendance.met(site.name, address=address)
            return self._refusal(HELLO_PATH, refusal)
        except (OSError, UnicodeDecodeError) as error:
            log.error("cannot answer a hello: the authorities' file is unreadable (%s)", type(error).__name__)
            self._attendance.met(site.name, address=address)
            return _later()
        self._attendance.greeted(site.name, address=address, version=hello.version, authorities=hello.authorities)
        return Response(reply.model_dump_json(), media_type="application/json")

    async def _fleet(self, path: str, body: bytes, site: AdmittedSite, headers: Headers, *, address: str) -> Response:
        try:
            self._require_own(path, body, site, headers)
        except ProtocolError as error:
            self._log.refused(f"{_name(path)}: {error}", address=address, site=site.name)
            return _dropped()
        if path == PULL_MESSAGES and (lost := self._deliveries.not_taken(site)) is not None:
            log.info("%s is handed a message again, whose first delivery was cut off", site.name)
            return Response(lost, media_type=flower_private.MEDIA_TYPE)
        if path in _AFTER_DELIVERY:
            self._deliveries.taken(site)
        num_bytes = len(body) if path in _UPLOADS else 0
        if not self._uploads.take(site.name, num_bytes):
            self._log.refused(f"{_name(path)}: more than one reply may have", address=address, site=site.name)
            return _dropped()
        answer = await self._ask_superlink(path, body, headers)
        if answer is None or answer.status_code != httpx.codes.OK:
            self._uploads.give_back(site.name, num_bytes)
        if answer is None:
            return _later()
        if answer.status_code != httpx.codes.OK:
            self._log.refused(
                f"{_name(path)}: the SuperLink says {answer.status_code}", address=address, site=site.name
            )
        elif path == DEACTIVATE:
            self._attendance.left(site.name)
        elif path == PULL_MESSAGES:
            try:
                if self._deliveries.add(site, answer.content):
                    self._uploads.begin(site.name)
            except ProtocolError as error:
                log.error("the SuperLink's answer to %s: %s; is it Flower 1.41?", _name(path), error)
                return _later()
        return _passed_on(path, answer)

    def _require_own(self, path: str, body: bytes, site: AdmittedSite, headers: Headers) -> None:
        """Refuse what a site must not do and Flower 1.41 lets any node do; it checks that the node is the key's."""
        if path == ACTIVATE and flower_private.activating_key(body) != _key_of(headers):
            raise ProtocolError("another key than the one that signed")
        if path == PUSH_MESSAGES:
            flower_private.require_own_reply(body)
        if path == PUSH_OBJECT:
            flower_private.require_session(body)
        if path == PULL_OBJECT and not self._deliveries.include_object(site, flower_private.pulled_object(body)):
            raise ProtocolError("an object that the site was not handed")
        if path == CONFIRM and not self._deliveries.include_message(site, flower_private.confirmed_message(body)):
            raise ProtocolError("a message that the site was not handed")

    async def _ask_superlink(self, path: str, body: bytes, headers: Headers) -> httpx.Response | None:
        """The SuperLink's answer; None if there is none now."""
        forwarded = {name: headers[name] for name in _FORWARDED if name in headers}
        forwarded |= {"content-type": flower_private.MEDIA_TYPE, "accept": flower_private.MEDIA_TYPE}
        try:
            answer = await self._superlink.post(path, content=body, headers=forwarded)
        except httpx.TransportError as error:
            if self._superlink_answers:
                log.error("the SuperLink does not answer (%s); sites try again by themselves", type(error).__name__)
            self._superlink_answers = False
            return None
        if not self._superlink_answers:
            log.info("the SuperLink answers again")
        self._superlink_answers = True
        return answer

    def _refusal(self, path: str, refusal: RefusedError) -> Response:
        if path != HELLO_PATH:
            return _closing(Response(b"", 401))
        text = HelloRefusal(fault=refusal.fault, time=self._clocks.now().isoformat()).model_dump_json()
        return _closing(Response(text, 401, media_type="application/json"))


def _call(scope: Scope) -> str | None:
    """The call that a request makes; None if it is anything else. The path counts as it was sent, undecoded."""
    if scope["method"] != "POST" or scope["http_version"] not in ("1.0", "1.1"):
        return None
    headers = scope["headers"]
    if scope["query_string"] or any(name == b"upgrade" for name, _ in headers):
        return None
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER:  # h11 minds it where they come in pieces
        return None
    return _PATHS.get(scope["raw_path"])


def _name(path: str) -> str:
    return path.removeprefix(FLEET)


def _key_of(headers: Headers) -> bytes:
    return base64.b64decode(headers[PUBLIC_KEY_HEADER])


def _not_found() -> Response:
    return _closing(Response(b"", 404))


def _later() -> Response:
    """Tried again by the site."""
    return Response(b"", 503, headers={"retry-after": str(RETRY_AFTER_S)})


def _dropped() -> Response:
    """Not tried again: the site drops the message that the call was about, and goes on."""
    return Response(b"{}", 403, media_type="application/json")


def _closing(response: Response) -> Response:
    response.headers["connection"] = "close"
    return response


def _passed_on(path: str, answer: httpx.Response) -> Response:
    """The SuperLink's answer, or 503 in place of one that would leave a SuperNode running and deaf."""
    if answer.status_code not in _PASSED_ON.get(path, _PASSED_ON_ELSE):
        return _later()
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))


async def _drain(scope: Scope, receive: Receive) -> None:
    """Read a short body of a request that is refused, so that its sender is not cut off before it hears the answer."""
    length = Headers(scope=scope).get("content-length", "")
    if length.isdecimal() and int(length) <= _DRAINED:
        with suppress(BodyTooLargeError, BodyTooSlowError):
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                await read_body(receive, most=_DRAINED, take=lambda _: True)
