"""Audit records on their way into a real stream, and what is counted where they don't get there."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import nats
import pytest
from nats.aio.msg import Msg
from support.audit import stored
from support.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from protocol.audit import AuditRecord
from protocol.runtime import jetstream
from protocol.runtime.audit import GROUP, MAX_WAITING, AuditTrail
from protocol.runtime.nats import Connection, connect
from protocol.runtime.settings import Settings
from protocol.subjects import ALL_AUDIT
from registry.streams import configurations


@pytest.fixture
async def connection(private_nats: NatsServer) -> AsyncIterator[Connection]:
    async with connect(settings_for(Settings, private_nats.url), "test", "test") as connected:
        yield connected


async def make_stream(connection: Connection) -> None:
    config = configurations(1)[-1]
    await jetstream.request(connection, f"STREAM.CREATE.{config['name']}", msgspec.json.Decoder(), **config)


async def trail_of(connection: Connection) -> AuditTrail:
    trail = AuditTrail(connection)
    await trail.start()
    return trail


def record(number: int = 0, tenant: str = "default") -> AuditRecord:
    return AuditRecord(
        at="2026-01-01T00:00:00.000Z",
        tenant=tenant,
        request_id=str(number),
        outcome="success",
        duration_ms=1,
        by="test",
    )


async def settled(trail: AuditTrail, seconds: float = 5) -> dict[str, int]:
    await until(lambda: trail.counters()["auditWaiting"] == 0, seconds)
    return trail.counters()


async def test_records_are_stored_in_their_order_and_acknowledged_in_groups(
    connection: Connection, private_nats: NatsServer
) -> None:
    await make_stream(connection)
    trail = await trail_of(connection)
    for number in range(3 * GROUP + 1):
        trail.publish(record(number))
    assert await settled(trail) == {"auditStored": 3 * GROUP + 1, "auditFailed": 0, "auditWaiting": 0}
    found = await stored(private_nats.url)
    assert [one["requestId"] for _, one in found] == [str(number) for number in range(3 * GROUP + 1)]
    assert {subject for subject, _ in found} == {"agentbridge.default.audit._none.success"}


async def test_several_processes_count_their_own(connection: Connection) -> None:
    await make_stream(connection)
    trails = [await trail_of(connection) for _ in range(3)]
    for number in range(100):
        for trail in trails:
            trail.publish(record(number))
        await asyncio.sleep(0)
    for trail in trails:
        assert await settled(trail) == {"auditStored": 100, "auditFailed": 0, "auditWaiting": 0}


async def test_without_a_stream_all_is_counted_as_failed_and_logged_once(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    trail = await trail_of(connection)
    for number in range(20):
        trail.publish(record(number))
        trail.flush()
    assert await settled(trail) == {"auditStored": 0, "auditFailed": 20, "auditWaiting": 0}
    assert [message for message in caplog.messages if "audit records" in message] == [
        "1 audit records may not have been stored: the stream refused them, or is not there"
    ]


async def test_a_tap_that_says_nothing_is_no_stream(connection: Connection, private_nats: NatsServer) -> None:
    """To NATS a tap is interest: nothing at all comes back, and the record waits until it is given up."""
    tap = await nats.connect(private_nats.url)
    heard: list[Msg] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg)

    await tap.subscribe(ALL_AUDIT, cb=hear)
    await tap.flush()
    trail = await trail_of(connection)
    trail.publish(record())
    await until(lambda: heard)
    assert trail.counters() == {"auditStored": 0, "auditFailed": 0, "auditWaiting": 1}
    await tap.close()


async def test_while_nats_is_away_records_fail_and_afterwards_they_are_stored_again(
    connection: Connection, private_nats: NatsServer
) -> None:
    await make_stream(connection)
    trail = await trail_of(connection)
    trail.publish(record(1))
    await settled(trail)
    private_nats.stop()
    await until(lambda: not connection.connected)
    for _ in range(3):
        trail.publish(record(2))
    trail.flush()
    assert trail.counters() == {"auditStored": 1, "auditFailed": 3, "auditWaiting": 0}
    await private_nats.start()
    await until(lambda: connection.connected, 10)
    trail.publish(record(3))
    assert await settled(trail, 10) == {"auditStored": 2, "auditFailed": 3, "auditWaiting": 0}


async def test_a_record_that_cannot_be_written_is_counted(connection: Connection) -> None:
    trail = await trail_of(connection)
    trail.publish(msgspec.structs.replace(record(), agent="half a \ud800 pair"))
    assert trail.counters() == {"auditStored": 0, "auditFailed": 1, "auditWaiting": 0}


async def test_records_that_wait_are_bounded(connection: Connection) -> None:
    trail = await trail_of(connection)
    for number in range(MAX_WAITING + 5):
        trail.publish(record(number))
    assert trail.counters() == {"auditStored": 0, "auditFailed": 5, "auditWaiting": MAX_WAITING}
