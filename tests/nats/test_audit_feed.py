"""Followers of the audit stream: how many there may be, and where they know to resume."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.agent_api import http_client, running_agent_api
from support.events import Stream
from support.nats_server import NatsServer
from support.settings import admin_token, settings_for
from support.wait import until

from agent_api import sse
from agent_api.audit import feed
from agent_api.audit.feed import Feed
from protocol import codec, subjects
from protocol.audit import AuditFilter, AuditRecord
from protocol.errors import Overloaded, Unavailable
from protocol.runtime import jetstream
from protocol.runtime.audit_history import AuditHistory
from protocol.runtime.nats import Connection, connect
from protocol.runtime.settings import Settings
from registry.streams import configurations


@pytest.fixture
async def connection(private_nats: NatsServer) -> AsyncIterator[Connection]:
    """A connection to where the stream is."""
    async with connect(settings_for(Settings, private_nats.url), "test", "test") as connected:
        config = configurations(1)[-1]
        await jetstream.request(connected, f"STREAM.CREATE.{config['name']}", msgspec.json.Decoder(), **config)
        yield connected


@pytest.fixture
async def following(connection: Connection) -> AsyncIterator[Feed]:
    """A feed whose followers end with the test."""
    async with asyncio.TaskGroup() as tasks:
        yield Feed(connection, AuditHistory(connection), tasks)


async def test_followers_are_bounded_for_each_tenant_and_in_all_even_where_they_come_at_once(
    following: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_FOLLOWERS_PER_TENANT", 2)
    monkeypatch.setattr(feed, "MAX_FOLLOWERS", 3)
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


async def test_nobody_follows_after_the_end(following: Feed) -> None:
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
    record = AuditRecord("2026-01-01T00:00:00.000Z", "default", "success", 1, "gateway", agent="other")
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
        body = codec.encode(record)
        sequence = await jetstream.publish(connection, subjects.audit("default", "_none", "success"), body, {})
        await stream.reaches(sequence)
        assert stream.last_id == f"{began.partition('-')[0]}-{sequence}"
        assert not stream.waiting
        task.cancel()
