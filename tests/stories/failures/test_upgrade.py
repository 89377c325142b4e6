"""From the layout of earlier versions, one store for all tenants: nothing is lost, and no command runs twice."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
from nats.aio.client import Client as NatsClient
from nats.js.errors import NotFoundError
from support.nats.audit import recorded
from support.nats.events import data_of, event_body, reading, store
from support.nats.nats_server import NatsServer
from support.played.app import App
from support.processes.bridge import running_bridge
from support.processes.registry import observer
from support.wait import until

from protocol import codec, subjects
from protocol.access import AGENT, Principal
from protocol.audit import AuditRecord
from protocol.errors import ClientLost
from protocol.idempotency import IdempotencyEntry, content_of, entry_key
from protocol.messages import CommandRequest, CommandResponse
from protocol.runtime.streams.jetstream import StreamInfo
from protocol.runtime.streams.positions import Position, epoch_of

EVENTS, AUDIT = subjects.RETIRED_EVENTS_STREAM, subjects.RETIRED_AUDIT_STREAM
KEYS = f"KV_{subjects.RETIRED_KEYS_BUCKET}"
OLD: dict[str, dict[str, Any]] = {
    EVENTS: {"subjects": [subjects.ALL_EVENTS, subjects.ALL_CLIENT_CHANGES], "max_bytes": 64 * 1024 * 1024},
    AUDIT: {"subjects": [subjects.ALL_AUDIT], "max_bytes": 64 * 1024 * 1024},
    KEYS: {"subjects": [f"$KV.{subjects.RETIRED_KEYS_BUCKET}.>"], "max_msgs_per_subject": 1, "allow_msg_ttl": True},
}
OLD_OUTCOME = CommandResponse(request_id="r1", status="success", result=msgspec.Raw(b'{"old":1}'), duration_ms=1)
_infos = msgspec.json.Decoder(StreamInfo)


async def make_old_layout(client: NatsClient) -> None:
    """Make what earlier registries made, as far as it matters here."""
    for name, config in OLD.items():
        body = codec.encode({"name": name, "storage": "file", "allow_direct": True, **config})
        await client.request(f"$JS.API.STREAM.CREATE.{name}", body, timeout=5)


async def position(client: NatsClient, sequence: int) -> str:
    """Return what a reader of the old stream has remembered."""
    info = codec.decode(_infos, (await client.request(f"$JS.API.STREAM.INFO.{EVENTS}", timeout=5)).data)
    return str(Position(epoch_of(info.created), sequence))


async def tell_old(client: NatsClient, number: int, tenant: str = "default") -> None:
    await store(client, subjects.event(tenant, "c1", "e"), event_body("e", number))


async def record_old(client: NatsClient, request_id: str) -> None:
    record = AuditRecord(
        at="2026-01-01T00:00:00.000Z",
        tenant="default",
        agent="a",
        request_id=request_id,
        outcome="success",
        duration_ms=1,
        by="gateway",
    )
    await store(client, record.subject, codec.encode(record))


async def test_reader_goes_on_from_an_old_position_into_the_tenants_own_stream(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with observer(private_nats.url) as watching:
        client = watching.nats
        await make_old_layout(client)
        for number in range(600):
            await tell_old(client, number, "default" if number % 2 else "acme")
        since = await position(client, 100)
        async with running_bridge(tmp_path, private_nats.url) as bridge, bridge.app() as app:
            await app.send({"type": "event", "event": "e", "data": 600})
            await app.send({"type": "event", "event": "e", "data": 601, "id": "last"})
            await app.received(type="ack", id="last")
            async with reading(bridge.http, since, event="e", clients="false") as stream:
                said = await stream.take(252, 20)
            assert {each.event for each in said} == {"event"}
            assert data_of(said) == [*range(101, 600, 2), 600, 601]
            async with reading(bridge.http, said[-1].id, event="e", clients="false") as stream:
                await app.send({"type": "event", "event": "e", "data": 602})
                assert data_of(await stream.take(1)) == [602]


async def test_audit_of_before_is_on_the_pages_after_the_new_records(tmp_path: Path, private_nats: NatsServer) -> None:
    async with observer(private_nats.url) as watching:
        await make_old_layout(watching.nats)
        for number in range(5):
            await record_old(watching.nats, f"old-{number}")
        async with running_bridge(tmp_path, private_nats.url) as bridge, bridge.app({"f": echo}) as app:
            await bridge.listed(app.client_id)
            await bridge.call(app.client_id, "f", requestId="new")
            await recorded(private_nats.url, 1)
            found = await pages(bridge.admin(), "/api/audit?limit=2")
            assert [record["requestId"] for record in found] == [
                "new",
                *(f"old-{number}" for number in range(4, -1, -1)),
            ]


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


async def pages(http: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    """Read page after page, as the links lead."""
    found: list[dict[str, Any]] = []
    while path:
        answer = await http.get(path)
        found += answer.json()
        path = answer.links.get("next", {}).get("url", "")
    return found


async def test_key_that_was_used_before_runs_no_command_again(tmp_path: Path, private_nats: NatsServer) -> None:
    async with observer(private_nats.url) as watching:
        await make_old_layout(watching.nats)
        async with running_bridge(tmp_path, private_nats.url) as bridge, bridge.app({"f": echo}) as app:
            await bridge.listed(app.client_id)
            await keep_old(watching.nats, app, "done", OLD_OUTCOME)
            await keep_old(watching.nats, app, "running", None)
            done = (await bridge.call(app.client_id, "f", idempotencyKey="done")).json()
            assert (done["success"], done["result"]) == (True, {"old": 1})
            lost = await bridge.call(app.client_id, "f", idempotencyKey="running")
            assert lost.json()["code"] == ClientLost.code.value
            assert not await app.commands()
            fresh = await bridge.call(app.client_id, "f", idempotencyKey="fresh")
            assert fresh.json()["success"]
            assert len(app.all_received(type="command")) == 1


async def keep_old(client: NatsClient, app: App, key: str, outcome: CommandResponse | None) -> None:
    """Store an entry as an earlier gateway did, which is gone by now."""
    command = CommandRequest(target="f", action="call", parameters=msgspec.Raw(b"{}"))
    entry = IdempotencyEntry(
        body=content_of(command),
        reservation="reservation-1",
        gateway_id="gw-old",
        client_id=app.client_id,
        user="user-1",
        request_id="r1",
        at="2026-01-01T00:00:00.000Z",
    )
    if outcome is not None:
        entry = entry.end(outcome, 10_000)
    principal = Principal("agent-1", AGENT, "default", float("inf"))
    subject = f"$KV.{subjects.RETIRED_KEYS_BUCKET}.{entry_key(principal, key)}"
    await store(client, subject, codec.encode(entry))


async def test_old_streams_stay_until_they_are_empty_and_reserve_little(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with observer(private_nats.url) as watching:
        jetstream = watching.nats.jetstream()
        await make_old_layout(watching.nats)
        await tell_old(watching.nats, 1)
        async with running_bridge(tmp_path, private_nats.url, agent_apis=0, gateways=0) as bridge:
            config = (await jetstream.stream_info(EVENTS)).config
            assert config.subjects == [f"{subjects.RETIRED}.events"]
            assert (config.max_bytes or 0) < 2 * 1024 * 1024
            await jetstream.purge_stream(EVENTS)

            async def is_gone() -> bool:
                try:
                    await jetstream.stream_info(EVENTS)
                except NotFoundError:
                    return True
                return False

            await until(is_gone, 30)
            assert (await jetstream.stream_info(KEYS)).config.name == KEYS
            assert "Traceback" not in bridge.log
