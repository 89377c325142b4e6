"""Stores of tenants, made and grown by registries as real processes on a real NATS."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeNats
from nats.aio.client import Client as NatsClient
from nats.js.errors import NotFoundError
from support.nats.nats_server import NatsServer
from support.nats.stores import stores_of
from support.processes.child import Process
from support.processes.registry import observer, registries
from support.settings import environment, settings_for
from support.wait import until

from protocol import codec, subjects
from protocol.errors import Unavailable
from protocol.runtime.nats.connection import Connection, connect
from protocol.runtime.settings import Settings
from protocol.runtime.streams.stores import TenantStore, audit_of, events_of, keys_of

MIB = 1024 * 1024
EVENTS = events_of("acme")


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    async with connect(settings_for(Settings, url), "test", "test") as connection:
        yield connection


async def size_of(client: NatsClient, store: TenantStore) -> int:
    """Return how much a store may hold."""
    config = (await client.jetstream().stream_info(store.stream)).config
    return config.max_bytes or 0


async def fill(client: NatsClient, store: TenantStore, megabytes: int) -> None:
    """Publish events of a megabyte, almost."""
    for _ in range(megabytes):
        answer = await client.request(f"agentbridge.{store.tenant}.event.c.e", b"x" * (MIB - 1024), timeout=5)
        assert "error" not in json.loads(answer.data)


async def test_stores_are_made_when_they_are_needed_and_begin_small(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url), observer(url) as watching, connected(url) as connection:
        stores = await stores_of(connection)
        with pytest.raises(NotFoundError):
            await size_of(watching.nats, EVENTS)
        found = []
        for store in (EVENTS, audit_of("acme"), keys_of("acme")):
            await stores.ensure(store)
            found.append((stores.knows(store), await size_of(watching.nats, store)))
        assert found == [(True, 8 * MIB), (True, 4 * MIB), (True, 4 * MIB)]


@pytest.mark.parametrize("tenant", ["", "_private", "a.b", "*", "x" * 65])
async def test_store_of_no_tenant_is_refused(tmp_path: Path, private_nats: NatsServer, tenant: str) -> None:
    async with registries(tmp_path, private_nats.url), observer(private_nats.url) as watching:
        body = codec.encode({"tenant": tenant, "store": "events"})
        answer = await watching.nats.request(subjects.REGISTRY_STORES, body, timeout=5)
        assert json.loads(answer.data)["error"]["code"] == "invalid_request"


async def test_full_store_grows_up_to_the_setting_and_an_operators_size_stays(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    url, limit = private_nats.url, 20 * MIB
    async with (
        registries(tmp_path, url, events_max_bytes=limit),
        observer(url) as watching,
        connected(url) as connection,
    ):
        stores = await stores_of(connection, refused_seconds=0)
        for size in (8 * MIB, 16 * MIB, limit, limit):
            await stores.grow(EVENTS)
            await stores.ensure(EVENTS)
            assert await size_of(watching.nats, EVENTS) == size
            await fill(watching.nats, EVENTS, 7)
        config = (await watching.nats.jetstream().stream_info(EVENTS.stream)).config.as_dict() | {"max_bytes": 10 * MIB}
        await watching.nats.request(f"$JS.API.STREAM.UPDATE.{EVENTS.stream}", codec.encode(config), timeout=5)
        await fill(watching.nats, EVENTS, 10)
        await stores.grow(EVENTS)
        assert await size_of(watching.nats, EVENTS) == 10 * MIB


async def test_who_writes_much_has_the_store_grow_without_asking(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url), observer(url) as watching, connected(url) as connection:
        stores = await stores_of(connection)
        await stores.ensure(EVENTS)
        for _ in range(7):
            await fill(watching.nats, EVENTS, 1)
            stores.wrote(EVENTS, MIB)

        async def has_grown() -> bool:
            stores.wrote(EVENTS, MIB)  # a registry that is looking at the store already takes the next hint
            return await size_of(watching.nats, EVENTS) == 16 * MIB

        await until(has_grown)


async def test_largest_store_leaves_room_for_newcomers_and_one_line_tells_of_it(
    tmp_path: Path, make_nats: MakeNats
) -> None:
    server = make_nats("")
    server.limit_storage(64 * MIB)
    await server.start()
    async with (
        registries(tmp_path, server.url) as (registry,),
        observer(server.url) as watching,
        connected(server.url) as connection,
    ):
        stores = await stores_of(connection, refused_seconds=0)
        for _ in range(6):
            await stores.grow(EVENTS)
            await fill(watching.nats, EVENTS, int(await size_of(watching.nats, EVENTS) * 0.8) // MIB)
        assert await size_of(watching.nats, EVENTS) == 16 * MIB  # of 48; four times more were not free
        for tenant in ("b", "c", "d"):
            await stores.ensure(events_of(tenant))
            await fill(watching.nats, events_of(tenant), 1)
        assert registry.log.count("NATS has no room for the stream agentbridge_events_acme") == 1


async def test_tenant_for_which_there_is_no_room_hears_which_limit_it_is(tmp_path: Path, make_nats: MakeNats) -> None:
    server = make_nats("")
    server.limit_storage(20 * MIB)
    await server.start()
    async with (
        registries(tmp_path, server.url),
        observer(server.url) as watching,
        connected(server.url) as connection,
    ):
        await watching.nats.jetstream().add_stream(name="hoard", subjects=["hoard"], max_bytes=4 * MIB)
        stores = await stores_of(connection)
        with pytest.raises(Unavailable, match="max_file_store"):
            await stores.ensure(EVENTS)
        await watching.nats.jetstream().delete_stream("hoard")
        await asyncio.sleep(0)

        async def is_made() -> bool:
            try:
                await stores.ensure(EVENTS)
            except Unavailable:
                return False
            return True

        await until(is_made)


async def test_several_registries_make_and_grow_one_store_at_once(tmp_path: Path, private_nats: NatsServer) -> None:
    url = private_nats.url
    async with registries(tmp_path, url, 2), observer(url) as watching, contextlib.AsyncExitStack() as stack:
        askers = [await stores_of(await stack.enter_async_context(connected(url))) for _ in range(8)]
        tenants = [f"t{number}" for number in range(20)]
        await asyncio.gather(*(stores.ensure(events_of(tenant)) for stores in askers for tenant in tenants))
        assert {await size_of(watching.nats, events_of(tenant)) for tenant in tenants} == {8 * MIB}
        await fill(watching.nats, events_of("t0"), 7)
        await asyncio.gather(*(stores.grow(events_of("t0")) for stores in askers))
        assert await size_of(watching.nats, events_of("t0")) == 16 * MIB
        info = await watching.nats.jetstream().stream_info(events_of("t0").stream)
        assert info.state.messages == 7


async def test_registry_that_is_killed_while_it_makes_stores_leaves_them_to_the_next(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    url = private_nats.url
    async with registries(tmp_path, url) as (registry,), connected(url) as connection:
        stores = await stores_of(connection, refused_seconds=0)
        async with asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(_made(stores.ensure(events_of(f"t{number}"))))
            await until(lambda: "made the stream agentbridge_events_t" in registry.log)
            await registry.kill()
        other = Process("registry", tmp_path / "other", environment(url))
        try:
            await other.start()
            assert {await _made(stores.ensure(events_of(f"t{number}"))) for number in range(100)} == {True}
        finally:
            other.end()


async def _made(asking: Any) -> bool:
    try:
        await asking
    except Unavailable:
        return False
    return True


@pytest.mark.parametrize("is_tapped", [False, True])
async def test_without_a_registry_a_new_tenant_hears_so_in_bounded_time(
    private_nats: NatsServer, is_tapped: bool
) -> None:
    """A tap at the registries' subject, which says nothing, stands for a frozen registry."""
    async with connected(private_nats.url) as connection, observer(private_nats.url) as watching:
        if is_tapped:
            await watching.nats.subscribe(subjects.REGISTRY_STORES)
            await watching.nats.flush()
        stores = await stores_of(connection)
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable, match="no registry answers"):
                await stores.ensure(EVENTS)


async def test_what_is_known_is_forgotten_with_the_connection(tmp_path: Path, private_nats: NatsServer) -> None:
    """NATS may come back empty."""
    url = private_nats.url
    async with registries(tmp_path, url), connected(url) as connection:
        stores = await stores_of(connection)
        await stores.ensure(EVENTS)
        private_nats.kill()
        private_nats.wipe()
        await private_nats.start()
        await until(lambda: connection.reconnects, 10)
        assert not stores.knows(EVENTS)

        async def is_made() -> bool:
            return await _made(stores.ensure(EVENTS))

        await until(is_made, 20)
