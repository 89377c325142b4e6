"""The mirror of the clients bucket, against the real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import nats
import pytest
from nats.aio.client import Client as NatsClient
from nats.js.api import StorageType
from support.nats.clients_bucket import make_bucket, put, record
from support.nats.events import Brittle, made_meanwhile
from support.nats.nats_server import NatsServer
from support.settings import settings_for
from support.wait import until

from protocol import subjects
from protocol.records import ClientRecord
from protocol.runtime.clients.mirror import STREAM, UNHURRIED_BITS_PER_SECOND, Mirror
from protocol.runtime.nats.connection import connect
from protocol.runtime.settings import Settings


@contextlib.asynccontextmanager
async def mirror_of(url: str, **seconds: float) -> AsyncIterator[Mirror]:
    """Run a mirror with these durations: `relist_seconds=1`."""
    async with connect(settings_for(Settings, url), "mirror", "api") as connection, asyncio.TaskGroup() as tasks:
        mirror = Mirror(connection, **seconds)
        running = tasks.create_task(mirror.run())
        yield mirror
        running.cancel()


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[NatsClient]:
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0)
    try:
        yield client
    finally:
        await client.close()


def ids(mirror: Mirror, tenant: str = "default") -> set[str]:
    return set(mirror.clients(tenant))


async def paces(client: NatsClient) -> list[int]:
    """Return how fast the bucket's consumers may be, in bits a second; 0 where that is not limited."""
    return [info.config.rate_limit_bps or 0 for info in await client.jetstream().consumers_info(STREAM)]


async def test_a_listing_that_nothing_calls_for_takes_its_time(nats_url: str) -> None:
    async with client_of(nats_url) as client:
        bucket = await make_bucket(client.jetstream())
        await put(bucket, record("a"))
        async with mirror_of(nats_url, relist_seconds=1) as mirror:
            await asyncio.wait_for(mirror.filled.wait(), 5)
            assert 0 in await paces(client)

            async def is_paced() -> bool:
                return UNHURRIED_BITS_PER_SECOND in await paces(client)

            await until(is_paced)
            await put(bucket, record("b"))
            await until(lambda: ids(mirror) == {"a", "b"})


async def test_snapshot_then_changes(nats_url: str) -> None:
    async with client_of(nats_url) as client:
        bucket = await make_bucket(client.jetstream())
        await put(bucket, record("a"), record("b", tenant="acme"))
        async with mirror_of(nats_url) as mirror:
            await asyncio.wait_for(mirror.filled.wait(), 5)
            assert (ids(mirror), ids(mirror, "acme"), ids(mirror, "none")) == ({"a"}, {"b"}, set())

            await put(bucket, record("c"), record("a", revision=2))
            await bucket.delete("acme.b")
            await until(lambda: ids(mirror) == {"a", "c"} and not ids(mirror, "acme"))
            known = mirror.get("default", "a")
            assert known is not None
            assert known.record == record("a", revision=2)
            assert mirror.revision == 5


async def test_waits_for_a_bucket_that_does_not_exist_yet(nats_url: str) -> None:
    async with client_of(nats_url) as client, mirror_of(nats_url) as mirror:
        bucket = await make_bucket(client.jetstream())
        await asyncio.wait_for(mirror.filled.wait(), 5)
        await put(bucket, record("a"))
        await until(lambda: ids(mirror) == {"a"})


async def test_thousands_arrive_whole_and_share_their_capabilities(nats_url: str) -> None:
    capabilities = msgspec.json.encode([{"type": "function", "name": f"f{n}"} for n in range(50)])
    async with client_of(nats_url) as client:
        bucket = await make_bucket(client.jetstream())
        records = [record(f"c{number}", capabilities=capabilities) for number in range(5000)]
        await asyncio.gather(*(put(bucket, each) for each in records))
        async with mirror_of(nats_url) as mirror:
            await asyncio.wait_for(mirror.filled.wait(), 5)
            clients = mirror.clients("default")
            assert len(clients) == 5000
            assert len({id(each.capabilities) for each in clients.values()}) == 1


async def test_malformed_record_is_left_out(nats_url: str) -> None:
    async with client_of(nats_url) as client:
        bucket = await make_bucket(client.jetstream())
        await bucket.put("default.bad", b"no json")
        await bucket.put("default.other", msgspec.json.encode(record("another")))
        await put(bucket, record("good"))
        async with mirror_of(nats_url) as mirror:
            await asyncio.wait_for(mirror.filled.wait(), 5)
            assert ids(mirror) == {"good"}


async def test_restart_of_the_server_leaves_the_mirror_full_and_following(private_nats: NatsServer) -> None:
    await fill(private_nats.url, record("a"))
    async with mirror_of(private_nats.url) as mirror:
        await asyncio.wait_for(mirror.filled.wait(), 5)
        private_nats.kill()
        await private_nats.start()
        assert ids(mirror) == {"a"}
        async with client_of(private_nats.url) as client:
            await put(await client.jetstream().key_value(subjects.CLIENTS_BUCKET), record("b"))
            await until(lambda: ids(mirror) == {"a", "b"})


async def test_server_that_returns_with_an_empty_store_is_believed(private_nats: NatsServer) -> None:
    await fill(private_nats.url, record("a", revision=7), record("b"), record("c"))
    async with mirror_of(private_nats.url) as mirror:
        await asyncio.wait_for(mirror.filled.wait(), 5)
        private_nats.kill()
        private_nats.wipe()
        await private_nats.start()
        assert ids(mirror) == {"a", "b", "c"}
        await fill(private_nats.url, record("a", revision=1))
        await until(lambda: ids(mirror) == {"a"})
        known = mirror.get("default", "a")
        assert known is not None
        assert known.record.revision == 1


async def fill(url: str, *records: ClientRecord) -> None:
    async with client_of(url) as client:
        await put(await make_bucket(client.jetstream(), StorageType.FILE), *records)


async def test_consumer_that_is_deleted_is_replaced(nats_url: str) -> None:
    async with client_of(nats_url) as client:
        bucket = await make_bucket(client.jetstream())
        async with mirror_of(nats_url) as mirror:
            await asyncio.wait_for(mirror.filled.wait(), 5)
            jetstream = client.jetstream()
            for info in await jetstream.consumers_info(STREAM):
                await jetstream.delete_consumer(STREAM, str(info.name))
            await put(bucket, record("a"))
            await until(lambda: ids(mirror) == {"a"})


async def test_consumer_that_breaks_at_once_is_not_remade_without_a_pause(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.runtime.clients.mirror.OrderedConsumer", Brittle)
    async with client_of(nats_url) as client:
        await make_bucket(client.jetstream())
        async with mirror_of(nats_url, retry_seconds=1000):
            await until(lambda: Brittle.made)
            async with connect(settings_for(Settings, nats_url), "tests", "tests") as connection:
                assert await made_meanwhile(connection) == 0


async def test_deleted_bucket_is_waited_for_again(nats_url: str) -> None:
    async with client_of(nats_url) as client:
        await put(await make_bucket(client.jetstream()), record("a"))
        async with mirror_of(nats_url) as mirror:
            await asyncio.wait_for(mirror.filled.wait(), 5)
            await client.jetstream().delete_key_value(subjects.CLIENTS_BUCKET)
            await put(await make_bucket(client.jetstream()), record("b"))
            await until(lambda: ids(mirror) == {"b"})
