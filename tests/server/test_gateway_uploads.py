"""How much a site may upload for a message that it was handed."""

import asyncio
import inspect
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest

from server.gateway.access_log import AccessLog
from server.gateway.admission import Admission, Register
from server.gateway.app import Clocks, Gateway
from server.gateway.attendance import Attendance
from server.gateway.deliveries import Deliveries
from server.gateway.hello import Reception
from server.gateway.limits import FLEET, TokenBuckets, Uploads
from tests.gateway_federation import SiteKey, make_federation, make_site_key, write_register


def test_site_may_upload_one_reply_for_each_message_it_is_handed() -> None:
    uploads = Uploads(most=10)
    assert uploads.take("a", 6)
    assert not uploads.take("a", 5)
    assert uploads.take("b", 10)
    assert uploads.take("a", 4)
    assert not uploads.take("a", 1)

    uploads.give_back("a", 4)
    assert uploads.take("a", 4)

    uploads.begin("a")
    assert uploads.take("a", 10)
    assert not uploads.take("b", 1)


def test_upload_of_more_than_a_reply_is_dropped_until_the_site_is_handed_another_message(tmp_path: Path) -> None:
    folder, _ = make_federation(tmp_path / "federation")
    keys = [make_site_key(tmp_path, name) for name in ("site-a", "site-b")]
    write_register(folder, keys)
    part = PushObjectRequest(session_id="s", object_content=bytes(600)).SerializeToString()
    message = Message(metadata=Metadata(message_id="m" * 64))
    handed = PullMessagesResponse(
        messages_list=[message], message_object_trees=[ObjectTree(object_id="m" * 64)]
    ).SerializeToString()
    statuses = iter([200, 500, 200, 200, 200, 200])
    superlink = httpx.AsyncClient(
        base_url="https://superlink",
        transport=httpx.MockTransport(
            lambda request: httpx.Response(
                next(statuses), content=handed if request.url.path.endswith("pull-messages") else b""
            )
        ),
    )

    access_log = AccessLog(time.monotonic)
    clocks = Clocks(now=lambda: datetime.now(UTC), elapsed_s=time.monotonic)
    rates: dict[str, Any] = {
        name: TokenBuckets(100.0, 100.0, clocks.elapsed_s)
        for name, parameter in inspect.signature(Gateway).parameters.items()
        if parameter.annotation is TokenBuckets
    }
    gateway = Gateway(
        admission=Admission(Register(folder), lambda _: True),
        attendance=Attendance(folder.sightings, access_log, clock=clocks.elapsed_s, now=clocks.now),
        deliveries=Deliveries(folder.gateway / "deliveries"),
        reception=Reception(folder, folder.read_config(), version="1", bundle_digest="ab" * 32),
        access_log=access_log,
        certificate=None,
        superlink=superlink,
        clocks=clocks,
        **rates,
    )
    gateway._uploads = Uploads(most=2 * len(part))

    async def call(key: SiteKey, name: str, body: bytes) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="https://gateway") as client:
            return (await client.post(FLEET + name, content=body, headers=key.headers())).status_code

    async def calls() -> list[int]:
        found = [await call(keys[0], "push-object", part) for _ in range(4)]
        found.append(await call(keys[1], "push-object", part))
        found.append(await call(keys[0], "pull-messages", b""))
        found.append(await call(keys[0], "push-object", part))
        return found

    assert asyncio.run(calls()) == [200, 503, 200, 403, 200, 200, 200]
