"""Followers of the audit stream: how many there may be, and where they know to resume."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from support.nats.events import Brittle, Stream, made_meanwhile
from support.nats.nats_server import NatsServer
from support.nats.stores import AUDIT_STREAM, make_store, stores_of
from support.played.agent_api import http_client, running_agent_api
from support.settings import admin_token, settings_for
from support.wait import until

from agent_api.events import audit_feed
from agent_api.events.audit_feed import AuditFeed, AuditItem, Missed
from agent_api.http import sse
from protocol import codec, subjects
from protocol.audit import AuditFilter, AuditRecord
from protocol.errors import Overloaded, Unavailable
from protocol.runtime.commands.audit_history import AuditHistory
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.settings import Settings
from protocol.runtime.streams import jetstream
from protocol.runtime.streams.consumer import OrderedConsumer
from protocol.runtime.streams.positions import Position, epoch_of
from protocol.runtime.streams.stores import audit_of


@pytest.fixture
async def connection(private_nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to where the stream is."""
    async with connect(settings_for(Settings, private_nats.url), "test", "test") as connected:
        for tenant in ("default", "acme", "third"):
            await make_store(connected.client, audit_of(tenant))
        yield connected


@pytest.fixture
async def following(connection: Connection) -> AsyncIterator[AuditFeed]:
    """A feed whose followers end with the test."""
    history = AuditHistory(connection, await stores_of(connection))
    await history.start()
    async with asyncio.TaskGroup() as tasks:
        yield AuditFeed(connection, history, tasks)


async def store(connection: Connection, count: int) -> None:
    """Store records, the last of them acknowledged."""
    for number in range(count):
        record = AuditRecord("2026-01-01T00:00:00.000Z", "default", "success", 1, "gateway", agent="other")
        subject, body = subjects.audit("default", "_none", "success"), codec.encode(record)
        if number == count - 1:
            await jetstream.publish(connection, subject, body, {})
        else:
            connection.publish_now(subject, body)


async def test_followers_are_bounded_for_each_tenant_and_in_all_even_where_they_come_at_once(
    following: AuditFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_feed, "MAX_FOLLOWERS_PER_TENANT", 2)
    monkeypatch.setattr(audit_feed, "MAX_FOLLOWERS", 3)
    async with contextlib.AsyncExitStack() as stack:

        async def follow(tenant: str) -> bool:
            try:
                await stack.enter_async_context(following.open(tenant, AuditFilter(), None))
            except Overloaded:
                return False
            return True

        assert sorted(await asyncio.gather(*(follow("default") for _ in range(5)))) == [False, False, False, True, True]
        assert [await follow(tenant) for tenant in ("acme", "third")] == [True, False]
    async with following.open("third", AuditFilter(), None):
        pass


async def test_follower_far_behind_catches_up_at_its_own_pace_and_goes_on(
    connection: Connection, following: AuditFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_feed, "PAGE", 50)
    monkeypatch.setattr(audit_feed, "MAX_UNREAD", 60)
    await store(connection, 500)
    info = await jetstream.stream_info(connection, AUDIT_STREAM)
    assert info is not None
    seen = list[int]()
    async with (
        following.open("default", AuditFilter(), Position(epoch_of(info.created), 0)) as follower,
        asyncio.timeout(10),
    ):
        while len(seen) < 500:
            seen += [item.position.sequence for item in await follower.next()]
        await store(connection, 1)
        seen += [item.position.sequence for item in await follower.next()]
    assert seen == list(range(1, 502))


async def test_follower_that_catches_up_is_told_of_what_was_let_go_meanwhile(
    connection: Connection, following: AuditFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_feed, "PAGE", 50)
    await store(connection, 300)
    info = await jetstream.stream_info(connection, AUDIT_STREAM)
    assert info is not None
    async with (
        following.open("default", AuditFilter(), Position(epoch_of(info.created), 0)) as follower,
        asyncio.timeout(10),
    ):
        await until(lambda: follower.position.sequence == 50)
        await jetstream.request(connection, f"STREAM.PURGE.{AUDIT_STREAM}", msgspec.json.Decoder(), keep=100)
        items = list[AuditItem]()
        while len(items) < 50 + 1 + 100:
            items += await follower.next()
    assert [item.position.sequence for item in items] == [*range(1, 51), 200, *range(201, 301)]
    assert [item for item in items if isinstance(item, Missed)] == [items[50]]


async def let_go(connection: Connection, count: int, keep: int) -> None:
    """Store records, and let go all but the newest."""
    await store(connection, count)
    await jetstream.request(connection, f"STREAM.PURGE.{AUDIT_STREAM}", msgspec.json.Decoder(), keep=keep)


async def test_follower_that_leaves_the_last_page_unread_is_told_of_what_was_let_go_meanwhile(
    connection: Connection, following: AuditFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_feed, "PAGE", 50)
    await store(connection, 80)
    info = await jetstream.stream_info(connection, AUDIT_STREAM)
    assert info is not None
    async with (
        following.open("default", AuditFilter(), Position(epoch_of(info.created), 0)) as follower,
        asyncio.timeout(10),
    ):
        items = await follower.next()
        await until(lambda: follower.position.sequence == 80)
        await let_go(connection, 100, keep=40)
        while len(items) < 80 + 1 + 40:
            items += await follower.next()
    assert [item.position.sequence for item in items] == [*range(1, 81), 140, *range(141, 181)]
    assert [item for item in items if isinstance(item, Missed)] == [items[80]]


async def test_follower_is_told_of_what_was_let_go_before_its_consumer_was_made(
    connection: Connection, following: AuditFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(OrderedConsumer):
        async def _create(self, inbox: str, subject: str, config: dict[str, Any]) -> int:
            await let_go(connection, 100, keep=40)
            return await super()._create(inbox, subject, config)

    monkeypatch.setattr(audit_feed, "OrderedConsumer", Late)
    items = list[AuditItem]()
    async with following.open("default", AuditFilter(), None) as follower, asyncio.timeout(10):
        while len(items) < 1 + 40:
            items += await follower.next()
        await store(connection, 1)
        items += await follower.next()
    assert [item.position.sequence for item in items] == [60, *range(61, 102)]
    assert [item for item in items if isinstance(item, Missed)] == [items[0]]


async def test_follower_that_takes_nothing_is_told_so_and_keeps_its_place(
    connection: Connection, following: AuditFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_feed, "MAX_UNREAD_BYTES", 200)
    async with following.open("default", AuditFilter(), None) as follower:
        begun = follower.passed
        await store(connection, 1)
        assert len(await follower.next()) == 1
        assert follower.passed != begun
        await store(connection, 10)
        await until(lambda: follower.passed is None and follower.position.sequence >= 4)
        with pytest.raises(Overloaded):
            await follower.next()
        assert follower.passed is None


async def test_follower_of_what_cannot_be_read_is_sent_away_and_one_warning_tells_why(
    connection: Connection, following: AuditFeed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_feed, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(audit_feed, "RETRY_SECONDS", 0.02)
    async with (
        following.open("default", AuditFilter(), None) as one,
        following.open("default", AuditFilter(), None) as other,
        asyncio.timeout(10),
    ):
        await jetstream.request(connection, f"STREAM.DELETE.{AUDIT_STREAM}", msgspec.json.Decoder())
        for follower in (one, other):
            with pytest.raises(Unavailable, match="cannot be read now"):
                await follower.next()
    [warning] = [entry for entry in caplog.records if entry.levelname == "WARNING"]
    assert "may not exist yet" in warning.message


async def test_consumer_that_breaks_at_once_is_not_remade_without_a_pause(
    connection: Connection, following: AuditFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_feed, "RETRY_SECONDS", 1000)
    monkeypatch.setattr(audit_feed, "OrderedConsumer", Brittle)
    async with following.open("default", AuditFilter(), None):
        await until(lambda: Brittle.made)
        assert await made_meanwhile(connection) == 0


async def test_nobody_follows_after_the_end(following: AuditFeed) -> None:
    async with following.open("default", AuditFilter(), None) as follower:
        following.close(Unavailable("going"))
        with pytest.raises(Unavailable, match="going"):
            await follower.next()
    with pytest.raises(Unavailable, match="going"):
        async with following.open("default", AuditFilter(), None):
            pass


async def test_follower_that_hears_nothing_for_long_knows_where_to_resume(
    connection: Connection, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.02)
    headers = {"Accept": "text/event-stream"}
    async with (
        running_agent_api(private_nats.url) as api,
        http_client(api, admin_token()) as http,
        http.stream("GET", "/api/audit", params={"agent": "rare"}, headers=headers, timeout=None) as response,
        asyncio.TaskGroup() as tasks,
    ):
        stream = Stream(response)
        task = tasks.create_task(stream.read())
        await until(lambda: stream.last_id)
        began = stream.last_id
        await store(connection, 1)
        await stream.reaches(1)
        assert stream.last_id == f"{began.partition('-')[0]}-1"
        assert not stream.waiting
        task.cancel()
