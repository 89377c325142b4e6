"""Audit records on their way into a real stream: kept until they are there, sent again until then, and counted."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.msg import Msg
from support.nats.audit import stored
from support.nats.nats_server import NatsServer
from support.nats.stores import AUDIT_STREAM, make_store
from support.settings import settings_for
from support.wait import until

from protocol.audit import AuditRecord
from protocol.errors import Unavailable
from protocol.runtime.commands.audit_log import AT_ONCE, MAX_WAITING_BYTES, AuditLog
from protocol.runtime.commands.unstored_records import OVERHEAD_BYTES, SILENCE_SECONDS
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.settings import Settings
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.stores import audit_of
from protocol.runtime.streams.tenant_stores import TenantStores
from protocol.subjects import ALL_AUDIT, REGISTRY_STORES
from registry.stores import configurations


@pytest.fixture
async def connection(private_nats: NatsServer) -> AsyncIterator[Connection]:
    async with connect(settings_for(Settings, private_nats.url), "test", "test") as connected:
        yield connected


async def make_stream(connection: Connection, **changes: object) -> None:
    await make_store(connection.client, audit_of("default"), **changes)


async def trail_of(connection: Connection, max_bytes: int = MAX_WAITING_BYTES) -> AuditLog:
    stores = TenantStores(connection)
    await stores.start()
    trail = AuditLog(connection, stores, max_bytes)
    await trail.start()
    return trail


def record(
    number: int = 0, tenant: str = "default", agent: str = "ann", outcome: str = "success", **more: object
) -> AuditRecord:
    told = AuditRecord(
        at="2026-01-01T00:00:00.000Z",
        tenant=tenant,
        agent=agent,
        request_id=str(number),
        outcome=outcome,
        duration_ms=1,
        by="test",
    )
    return msgspec.structs.replace(told, **more) if more else told


async def settled(trail: AuditLog, seconds: float = 10) -> dict[str, int]:
    await until(lambda: trail.counters()["auditWaiting"] == 0, seconds)
    return trail.counters()


def counted(stored: int = 0, failed: int = 0, waiting: int = 0, summed: int = 0) -> dict[str, int]:
    return {"auditStored": stored, "auditFailed": failed, "auditWaiting": waiting, "auditSummed": summed}


async def request_ids(nats_url: str) -> list[str]:
    return [one["requestId"] for _, one in await stored(nats_url)]


async def test_records_are_stored_in_their_order(connection: Connection, private_nats: NatsServer) -> None:
    await make_stream(connection)
    trail = await trail_of(connection)
    for number in range(100):
        trail.publish(record(number))
    assert await settled(trail) == counted(stored=100)
    found = await stored(private_nats.url)
    assert [one["requestId"] for _, one in found] == [str(number) for number in range(100)]
    assert {subject for subject, _ in found} == {"agentbridge.default.audit._none.success"}


async def test_several_processes_count_their_own(connection: Connection) -> None:
    await make_stream(connection)
    trails = [await trail_of(connection) for _ in range(3)]
    for number in range(100):
        for trail in trails:
            trail.publish(record(number))
        await asyncio.sleep(0)
    for trail in trails:
        assert await settled(trail) == counted(stored=100)


async def test_a_message_that_a_record_stands_before_comes_after_it_in_the_same_write(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail, pieces = await trail_of(connection), list[bytes]()
    transport: Any = connection.client._transport
    monkeypatch.setattr(transport, "writelines", pieces.extend)
    for number in range(40):
        trail.publish(record(number), connection.framed("answers", str(number).encode()))
    await until(lambda: sum(b"PUB answers" in piece for piece in pieces) == 40)
    for number, piece in enumerate(piece for piece in pieces if b"PUB answers" in piece):
        assert piece.startswith(b"HPUB agentbridge.default.audit.")
        told, answer = piece.split(b"PUB answers ")
        assert b'"requestId":"%d"' % number in told
        assert answer.split(b"\r\n")[1] == str(number).encode()


async def test_records_wait_for_a_stream_that_is_not_there_yet(connection: Connection) -> None:
    trail = await trail_of(connection)
    for number in range(20):
        trail.publish(record(number))
    await asyncio.sleep(0)
    await connection.flush()
    assert trail.counters() == counted(waiting=20)
    await make_stream(connection)
    assert await settled(trail) == counted(stored=20)


async def test_a_registry_is_asked_once_for_a_store_and_all_is_sent_again_when_it_is_made(
    connection: Connection, private_nats: NatsServer
) -> None:
    """A tap keeps NATS from saying that there is no stream: only the registry's answer tells that there is one now."""
    asked: list[bytes] = []

    async def answer(msg: Msg) -> None:
        asked.append(msg.data)
        await make_stream(connection)
        await connection.publish(msg.reply, b"{}")

    async def ignore(msg: Msg) -> None:
        pass

    await connection.subscribe(ALL_AUDIT, ignore)
    await connection.subscribe(REGISTRY_STORES, answer)
    await connection.flush()
    trail = await trail_of(connection)
    for number in range(50):
        trail.publish(record(number))
    assert await settled(trail, SILENCE_SECONDS - 1) == counted(stored=50)
    assert len(asked) == 1
    assert sorted(await request_ids(private_nats.url), key=int) == [str(number) for number in range(50)]


async def test_a_tap_that_says_nothing_is_no_stream(connection: Connection, private_nats: NatsServer) -> None:
    """To NATS a tap is interest: nothing at all comes back, and the record is sent again after five seconds."""
    tap = await nats.connect(private_nats.url)
    heard: list[Msg] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg)

    await tap.subscribe(ALL_AUDIT, cb=hear)
    await tap.flush()
    trail = await trail_of(connection)
    trail.publish(record())
    await until(lambda: heard)
    assert trail.counters() == counted(waiting=1)
    await tap.close()
    await make_stream(connection)
    assert await settled(trail, 15) == counted(stored=1)


async def test_a_stray_answer_is_no_acknowledgement_and_the_streams_own_counts_when_it_comes(
    connection: Connection, private_nats: NatsServer
) -> None:
    """A stream of somebody else's, or a service, answers first: the record is stored all the same, and once."""
    stray = await nats.connect(private_nats.url)
    heard: list[Msg] = []

    async def answer(msg: Msg) -> None:
        heard.append(msg)
        for answer in (b"", b"{", b'{"stream":"foreign","seq":7}', b'{"error":{"code":400}}'):
            await stray.publish(msg.reply, answer)

    await stray.subscribe(ALL_AUDIT, cb=answer)
    await stray.flush()
    trail = await trail_of(connection)
    trail.publish(record())
    await until(lambda: len(heard) > 1)
    assert trail.counters() == counted(waiting=1)
    await make_stream(connection)
    assert await settled(trail) == counted(stored=1)
    await stray.close()
    assert await request_ids(private_nats.url) == ["0"]


async def test_while_nats_is_away_records_wait_and_then_all_are_stored_once_in_their_order(
    connection: Connection, private_nats: NatsServer
) -> None:
    await make_stream(connection)
    trail = await trail_of(connection)
    trail.publish(record(1))
    await settled(trail)
    private_nats.kill()
    await until(lambda: not connection.connected)
    for number in range(2, 2000):
        trail.publish(record(number))
    with pytest.raises(Unavailable):
        trail.publish(record(2000), b"PUB answers 0\r\n\r\n")
    assert trail.counters() == counted(stored=1, waiting=1999)
    await private_nats.start()
    assert await settled(trail, 20) == counted(stored=2000)
    assert await request_ids(private_nats.url) == [str(number) for number in range(1, 2001)]


async def test_what_was_written_when_the_connection_broke_is_stored_once(
    connection: Connection, private_nats: NatsServer
) -> None:
    """Some of it NATS has stored without a word, some it has never read: both are sent again."""
    await make_stream(connection)
    trail, number = await trail_of(connection), 0
    sent_again: list[bool] = []
    for _ in range(3):
        private_nats.freeze()
        for _ in range(500):
            trail.publish(record(number))
            number += 1
        await asyncio.sleep(0)  # the end of the turn, which writes
        await until(lambda: not connection.connected)
        before = connection.posted_bytes
        if not sent_again:
            connection.on_reconnect(lambda before=before: sent_again.append(connection.posted_bytes > before))  # type: ignore[misc]
        private_nats.thaw()
        await until(lambda: connection.connected, 10)
        for _ in range(500):
            trail.publish(record(number))
            number += 1
        await asyncio.sleep(0)
        private_nats.kill()
        await until(lambda: not connection.connected)
        await private_nats.start()
        await until(lambda: connection.connected, 10)
    assert sent_again[0], "at once, not when silence has lasted for seconds"
    assert await settled(trail, 20) == counted(stored=number)
    assert sorted(await request_ids(private_nats.url), key=int) == [str(each) for each in range(number)]


async def test_a_stream_that_refuses_gets_all_when_it_takes_messages_again(
    connection: Connection, private_nats: NatsServer
) -> None:
    await make_stream(connection, max_msgs=1, discard="new")
    trail = await trail_of(connection)
    for number in range(50):
        trail.publish(record(number))
    await until(lambda: connection.stores.sentences())
    assert trail.counters() == counted(stored=1, waiting=49)
    config = configurations.store(audit_of("default"), 1)
    await jetstream.request(
        connection, f"STREAM.UPDATE.{AUDIT_STREAM}", msgspec.json.Decoder(), **{**config, "discard": "new"}
    )
    assert await settled(trail) == counted(stored=50)
    assert sorted(await request_ids(private_nats.url), key=int) == [str(number) for number in range(50)]


async def test_a_record_that_can_never_be_stored_is_lost_alone(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await make_stream(connection, max_msg_size=500)
    trail = await trail_of(connection)
    trail.publish(record(1, target="x" * 500))
    trail.publish(record(2, agent="half a \ud800 pair"))
    trail.publish(record(3, target="x" * connection.max_payload))
    trail.publish(record(4))
    assert await settled(trail) == counted(stored=1, failed=3)
    await trail.close()
    told = [message for message in caplog.messages if "audit records are lost" in message]
    assert told == [
        "1 audit records are lost, 1 since this process began; the last because: they are not valid Unicode",
        "2 audit records are lost, 3 since this process began; the last because: they are larger than the stream takes",
    ]


async def test_a_tenant_without_room_loses_its_own_records_and_the_count_is_exact(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    trail = await trail_of(connection, 100 * (OVERHEAD_BYTES + 256))
    for number in range(1000):
        trail.publish(record(number, "loud"))
    for number in range(10):
        trail.publish(record(number, "quiet"))
    counters = trail.counters()
    assert counters["auditWaiting"] + counters["auditFailed"] == 1010
    assert counters["auditFailed"] > 900
    for tenant in ("loud", "quiet"):
        await make_store(connection.client, audit_of(tenant))
    after = await settled(trail)
    assert after == counted(stored=counters["auditWaiting"], failed=counters["auditFailed"])
    await trail.close()
    told = [message for message in caplog.messages if "audit records are lost" in message]
    assert sum(int(message.split()[0]) for message in told) == counters["auditFailed"]
    assert f"{counters['auditFailed']} since this process began" in told[-1]


async def test_a_loud_tenant_costs_a_quiet_one_nothing(connection: Connection, private_nats: NatsServer) -> None:
    trail = await trail_of(connection, 100 * (OVERHEAD_BYTES + 256))
    for number in range(30):
        trail.publish(record(number, "quiet"))
        for each in range(30):
            trail.publish(record(1000 * number + each, "loud", agent=f"agent-{each}"))
    for tenant in ("loud", "quiet"):
        await make_store(connection.client, audit_of(tenant))
    await settled(trail)
    kept = [one["requestId"] for _, one in await stored(private_nats.url, audit_of("quiet").stream)]
    assert sorted(kept, key=int) == [str(number) for number in range(30)]


async def test_refusals_above_twenty_a_second_are_summed_up(connection: Connection, private_nats: NatsServer) -> None:
    await make_stream(connection)
    trail = await trail_of(connection)
    for number in range(5000):
        trail.refused(record(number, outcome="permission_denied", client_id="c1"))
    for number in range(100):
        trail.refused(record(number, outcome="unavailable", client_id="c1"))
    await settled(trail)
    found = [one for _, one in await stored(private_nats.url)]
    refused = [one for one in found if one["outcome"] == "permission_denied"]
    assert sum(one.get("count", 1) for one in refused) == 5000
    assert len(refused) < 2000, "a slow machine takes seconds"
    assert sum(one["outcome"] == "unavailable" for one in found) == 100
    assert trail.counters() == counted(stored=5100, summed=5000 - sum("count" not in one for one in refused))
    summed = next(one for one in refused if "count" in one)
    assert summed["clientId"] == "c1"
    assert "requestId" not in summed


async def test_what_is_left_at_the_end_is_sent_and_what_cannot_be_is_counted(
    connection: Connection, private_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    await make_stream(connection)
    trail = await trail_of(connection)
    for number in range(30):
        trail.refused(record(number, outcome="rate_limited"))
    trail.publish(record(30))
    await trail.close()
    assert trail.counters()["auditStored"] == 31

    last = await trail_of(connection)
    private_nats.stop()
    await until(lambda: not connection.connected)
    for number in range(31, 34):
        last.publish(record(number))
    await last.close()
    assert last.counters()["auditFailed"] == 3
    assert "3 audit records are lost, 3 since this process began" in caplog.text


async def test_after_an_outage_a_log_is_behind_until_all_that_waited_has_been_sent(
    connection: Connection, private_nats: NatsServer
) -> None:
    await make_stream(connection)
    trail, seen = await trail_of(connection), list[bool]()
    private_nats.stop()
    await until(lambda: not connection.connected)
    for number in range(3 * AT_ONCE):
        trail.publish(record(number))
    assert not trail.is_behind, "nobody can be told anything now"
    connection.on_reconnect(lambda: seen.append(trail.is_behind))
    await private_nats.start()
    await until(lambda: seen, 10)
    assert seen == [True]
    await until(lambda: not trail.is_behind)
    assert await settled(trail) == counted(stored=3 * AT_ONCE)
