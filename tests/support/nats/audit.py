"""The audit stream as a test reads it."""

import json
from typing import Any

import nats
import nats.js.errors
from nats.js.api import DeliverPolicy

from support.nats.stores import AUDIT_STREAM
from support.wait import until

Record = dict[str, Any]


async def stored(nats_url: str, stream: str = AUDIT_STREAM) -> list[tuple[str, Record]]:
    """Return every record of a tenant with its subject, oldest first."""
    client = await nats.connect(nats_url)
    try:
        js = client.jetstream()
        count = (await js.stream_info(stream)).state.messages
        follower = await js.subscribe(">", stream=stream, ordered_consumer=True, deliver_policy=DeliverPolicy.ALL)
        messages = [await follower.next_msg(5) for _ in range(count)]
        return [(message.subject, json.loads(message.data)) for message in messages]
    except nats.js.errors.NotFoundError:
        return []
    finally:
        await client.close()


async def recorded(nats_url: str, number: int, seconds: float = 10, stream: str = AUDIT_STREAM) -> list[Record]:
    """Wait until there are so many records, and return all there are."""

    async def enough() -> list[Record]:
        found = [record for _, record in await stored(nats_url, stream)]
        return found if len(found) >= number else []

    return await until(enough, seconds)


async def statistics(nats_url: str, service: str) -> dict[str, int]:
    """Return what the one process of a service counts."""
    client = await nats.connect(nats_url)
    try:
        reply = await client.request(f"$SRV.STATS.{service}", b"", timeout=5)
        told = json.loads(reply.data)
        counters: dict[str, int] = dict(told.get("data") or {})
        for endpoint in told["endpoints"] or []:
            counters |= endpoint.get("data") or {}
        return counters
    finally:
        await client.close()
