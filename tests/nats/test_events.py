"""Reading events over HTTP, against the real server: live, resumed, with gaps, for whom they are."""

from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client as NatsClient
from support.agent_api import http_client, running_agent_api
from support.events import change, data_of, make_stream, reading, tell


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[NatsClient]:
    connection = await nats.connect(nats_url)
    await make_stream(connection)
    yield connection
    await connection.close()


async def test_events_and_changes_come_live_and_in_order(client: NatsClient, nats_url: str) -> None:
    async with running_agent_api(nats_url) as api, http_client(api) as http, reading(http) as stream:
        await change(client, "connected")
        await tell(client, "todo.added", {"title": "milk"})
        first, second = await stream.take(2)
    assert (first.event, first.data["change"], first.data["clientId"]) == ("client", "connected", "c1")
    assert (second.event, second.data["event"], second.data["data"]) == ("event", "todo.added", {"title": "milk"})
    assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.response.headers["cache-control"] == "no-store"
    assert stream.response.headers["x-accel-buffering"] == "no"


async def test_reader_that_comes_back_to_another_process_misses_nothing(client: NatsClient, nats_url: str) -> None:
    async with running_agent_api(nats_url) as one, running_agent_api(nats_url) as other:
        async with http_client(one) as http, reading(http) as stream:
            await tell(client, data=1)
            assert data_of(await stream.take(1)) == [1]
        for number in range(2, 1000):
            await tell(client, data=number)
        async with http_client(other) as http, reading(http, stream.last_id) as stream:
            assert data_of(await stream.take(998)) == list(range(2, 1000))
            await tell(client, data=1000)
            assert data_of(await stream.take(1)) == [1000]
            assert not stream.waiting
