"""Readers of events through restarts, lost history, foreign positions, and neighbours that do not read."""

import asyncio
import contextlib
import gc
import math
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import nats
import pytest
from conftest import MakeNats
from nats.aio.client import Client as NatsClient
from support.nats.events import Brittle, Said, data_of, event_body, made_meanwhile, make_stream, reading, tell
from support.nats.nats_server import NatsServer
from support.nats.stores import EVENTS_STREAM, stores_of
from support.nats.template import Template
from support.played.agent_api import RunningApi, http_client, never, running_agent_api, world_at
from support.processes.child import Process
from support.settings import agent_token, bearer, environment, settings_for
from support.wait import until

from agent_api.events import cursor, history, hub, reader, tenant_feed
from agent_api.events.filters import Filters
from agent_api.events.gaps import Gap
from agent_api.events.hub import Hub
from agent_api.events.messages import Message
from agent_api.events.ring import Ring
from agent_api.settings import ApiSettings
from protocol import subjects
from protocol.access import AGENT, Principal
from protocol.errors import Overloaded, Unavailable
from protocol.runtime.nats.connection import connect


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[NatsClient]:
    client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def client(private_nats: NatsServer) -> AsyncIterator[NatsClient]:
    async with client_of(private_nats.url) as connection:
        for tenant in ("default", "acme"):
            await make_stream(connection, tenant, max_bytes=512 * 1024 * 1024)  # as it has grown
        yield connection


@pytest.fixture
async def http(client: NatsClient, private_nats: NatsServer) -> AsyncIterator[httpx.AsyncClient]:
    async with running_agent_api(private_nats.url) as api, http_client(api) as agent:
        yield agent


def gap(said: Said) -> tuple[str, str]:
    """Return the reason of a gap, and from where the reader goes on."""
    assert (said.event, said.data["from"]) == ("gap", said.id)
    assert said.data["message"]
    return said.data["reason"], said.id.partition("-")[2]


async def read_some(http: httpx.AsyncClient, client: NatsClient, number: int) -> Said:
    """Have a reader read so many new messages and leave; return the last."""
    async with reading(http) as stream:
        for data in range(number):
            await tell(client, data=data)
        return (await stream.take(number))[-1]


async def test_restart_of_nats_loses_and_repeats_nothing(
    client: NatsClient, http: httpx.AsyncClient, private_nats: NatsServer
) -> None:
    async with reading(http) as stream:
        await tell(client, data=1)
        assert data_of(await stream.take(1)) == [1]
        private_nats.kill()
        await private_nats.start()
        async with client_of(private_nats.url) as publisher:  # before the agent API is back, or after
            for data in range(2, 50):
                await tell(publisher, data=data)
        assert data_of(await stream.take(48, 10)) == list(range(2, 50))
        assert not stream.waiting


async def test_readers_end_and_others_are_refused_while_nats_is_away_for_long_and_then_resume(
    client: NatsClient, http: httpx.AsyncClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_feed, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(tenant_feed, "READY_SECONDS", 0.1)
    async with reading(http) as stream:
        await tell(client, data=1)
        assert data_of(await stream.take(1)) == [1]
        private_nats.kill()
        end = await stream.ended()
    assert (end.event, end.data["code"], end.data["retryable"]) == ("end", "unavailable", True)
    for last_id in ("", stream.last_id):
        refused = await http.get("/api/events", headers={"Last-Event-ID": last_id})
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    await private_nats.start()
    async with client_of(private_nats.url) as publisher:
        await tell(publisher, data=2)
    monkeypatch.setattr(tenant_feed, "READY_SECONDS", 5)
    async with reading(http, stream.last_id) as stream:
        assert data_of(await stream.take(1)) == [2]


async def test_purged_history_is_a_gap_from_which_a_reader_goes_on(
    client: NatsClient, http: httpx.AsyncClient, private_nats: NatsServer
) -> None:
    last = await read_some(http, client, 3)
    for data in (3, 4, 5):
        await tell(client, data=data)
    await client.jetstream().purge_stream(EVENTS_STREAM, keep=1)
    async with running_agent_api(private_nats.url) as other, http_client(other) as agent:
        async with reading(agent, last.id) as stream:
            assert gap(await stream.next()) == ("expired", "5")
            assert data_of(await stream.take(1)) == [5]
            await tell(client, data=6)
            assert data_of(await stream.take(1)) == [6]
            resumed = stream.last_id
        async with reading(agent, resumed) as stream:
            await tell(client, data=7)
            assert data_of(await stream.take(1)) == [7]


async def test_stream_made_anew_is_a_gap_for_those_who_read_and_those_who_come_back(
    client: NatsClient, http: httpx.AsyncClient
) -> None:
    last = await read_some(http, client, 3)
    async with reading(http) as stream:
        await client.jetstream().delete_stream(EVENTS_STREAM)
        await make_stream(client)
        await tell(client, data="new")
        assert gap(await stream.next(10)) == ("recreated", "0")
        assert data_of(await stream.take(1)) == ["new"]
        async with reading(http, last.id) as later:
            assert gap(await later.next()) == ("recreated", "0")
            assert data_of(await later.take(1)) == ["new"]
        await tell(client, data="newer")
        assert data_of(await stream.take(1)) == ["newer"]


async def test_foreign_position_is_a_gap_and_never_an_error(client: NatsClient, http: httpx.AsyncClient) -> None:
    last = await read_some(http, client, 3)
    epoch = last.id.partition("-")[0]
    for foreign in ("nonsense", f"{epoch}-{10**18}", f"{epoch}-x", "\u00e9-1", f"{epoch}-{10**25}", "x" * 5000):
        async with reading(http, since=foreign) as stream:
            assert gap(await stream.next()) == ("unknown", "3"), foreign
    async with reading(http, "1-2") as stream:  # well formed, so there is a stream to go on with
        assert gap(await stream.next()) == ("recreated", "0")
        assert data_of(await stream.take(3)) == [0, 1, 2]


async def test_nats_that_returns_without_its_last_messages_is_a_gap(
    client: NatsClient, http: httpx.AsyncClient, private_nats: NatsServer, tmp_path: Path
) -> None:
    async with reading(http) as stream:
        await tell(client, data=1)
        private_nats.stop()
        shutil.copytree(private_nats.folder / "jetstream", tmp_path / "saved")
        await private_nats.start()
        async with client_of(private_nats.url) as publisher:
            await tell(publisher, data=2)
            await tell(publisher, data=3)
        assert data_of(await stream.take(3, 10)) == [1, 2, 3]
        private_nats.kill()
        private_nats.wipe()
        shutil.copytree(tmp_path / "saved", private_nats.folder / "jetstream")
        await private_nats.start()
        assert gap(await stream.next(10)) == ("unknown", "1")
        async with client_of(private_nats.url) as publisher:
            await tell(publisher, data="other")
        assert data_of(await stream.take(1)) == ["other"]


async def test_reader_whose_past_cannot_be_read_is_sent_away_and_one_warning_tells_why(
    private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reader, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(reader, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(history, "READ_SECONDS", 0.05)
    async with client_of(private_nats.url) as client:
        await make_stream(client, allow_direct=False)
        async with running_agent_api(private_nats.url) as api, http_client(api) as http:
            last = await read_some(http, client, 3)
        await tell(client, data=3)
        async with running_agent_api(private_nats.url) as other, http_client(other) as http:
            for _ in range(2):
                async with reading(http, last.id) as stream:
                    end = await stream.ended()
                    assert (end.event, end.data["code"], end.data["retryable"]) == ("end", "unavailable", True)
                    assert stream.last_id == last.id
    assert [record.levelname for record in caplog.records if "ending readers" in record.message] == ["WARNING"]


async def test_user_of_the_template_may_do_what_readers_need(make_nats: MakeNats) -> None:
    template = Template()
    server = make_nats(template.config)
    await server.start()
    settings = template.login("api")
    registry = await nats.connect(server.url, **template.options("registry"))
    gateway = await nats.connect(server.url, **template.options("gateway"))
    await make_stream(registry)
    async with running_agent_api(server.url, **settings) as one, running_agent_api(server.url, **settings) as other:
        async with http_client(one) as http:
            last = await read_some(http, gateway, 3)
        await tell(gateway, data=3)
        async with http_client(other) as http, reading(http, last.id) as stream:
            assert data_of(await stream.take(1)) == [3]
    await registry.close()
    await gateway.close()


# --- slow readers ---


async def test_burst_that_memory_does_not_hold_reaches_whoever_takes_what_it_is_sent(
    client: NatsClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "Ring", lambda: Ring(max_messages=20))
    async with running_agent_api(private_nats.url) as api, http_client(api) as http, reading(http) as stream:
        for data in range(2000):
            await client.publish(subjects.event("default", "c1", "e"), event_body("e", data))
        await client.flush()
        assert data_of(await stream.take(2000, 10)) == list(range(2000))


async def test_stalled_reader_is_told_and_dropped_while_its_neighbours_get_everything(
    client: NatsClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "Ring", lambda: Ring(max_messages=20))
    monkeypatch.setattr(cursor, "MAX_BEHIND_SECONDS", 0.0)
    async with (
        running_agent_api(private_nats.url) as api,
        http_client(api) as http,
        contextlib.AsyncExitStack() as stack,
    ):
        neighbours = [await stack.enter_async_context(reading(http)) for _ in range(3)]
        stalled = await stack.enter_async_context(stalled_reader(api))
        for number in range(80):
            await tell(client, "e", [number, "x" * 100_000])
            for stream in neighbours:
                assert (await stream.next()).data["data"][0] == number
        said = await read_to_the_end(stalled)
    assert b"event: end" in said
    assert b'"code":"overloaded"' in said
    assert said.endswith(b"0\r\n\r\n")


async def test_stalled_readers_do_not_keep_a_process_from_its_end(
    client: NatsClient, private_nats: NatsServer, tmp_path: Path
) -> None:
    """Nor does a command that outlasts the drain, with which every wait ends; none of that is a fault for the log."""
    process = Process("agent_api", tmp_path / "api", environment(private_nats.url, drain_seconds=0.2))
    headers, command = bearer(agent_token()), {"clientId": "c1", "command": {"target": "f"}}
    try:
        await process.start()
        async with (
            world_at(private_nats.url) as world,
            httpx.AsyncClient(base_url=process.url, headers=headers, trust_env=False) as http,
            stalled_reader(process),
            stalled_reader(process),
            asyncio.TaskGroup() as tasks,
        ):
            await world.hold("c1", never)
            for _ in range(80):
                await tell(client, "e", "x" * 100_000)
            waiting = tasks.create_task(http.post("/api/command", json=command))
            await until(lambda: world.received())
            assert await process.terminate() == 0
            assert (await waiting).json()["code"] == "cancelled"
        assert "Traceback" not in process.log
        assert "ASGI" not in process.log
    finally:
        process.end()


async def test_one_tenant_leaves_room_for_readers_of_others_whatever_its_subs(
    client: NatsClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_READERS_PER_TENANT", 2)
    async with running_agent_api(private_nats.url) as api, contextlib.AsyncExitStack() as stack:
        ours = [await stack.enter_async_context(http_client(api, agent_token(sub))) for sub in ("a", "b", "c")]
        theirs = await stack.enter_async_context(http_client(api, agent_token("a", tenant="acme")))
        for http in (*ours[:2], theirs):
            stream = await stack.enter_async_context(reading(http))
        refused = await ours[2].get("/api/events")
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert "tenant" in refused.json()["message"]
        await tell(client, tenant="acme")
        assert len(await stream.take(1)) == 1


MESSAGE_BYTES = 1000  # of an event without data: less than this, and more than half


async def test_past_that_is_held_is_bounded_for_each_tenant_and_others_wait_until_it_is_taken(
    client: NatsClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_HELD_BYTES", 2 * MESSAGE_BYTES)
    monkeypatch.setattr(reader, "RESERVED_BYTES", MESSAGE_BYTES)
    monkeypatch.setattr(reader, "RETRY_SECONDS", 0.01)
    ours, theirs = (Principal("a", AGENT, tenant, math.inf) for tenant in ("default", "acme"))
    since = "1-0"
    for tenant in ("default", "acme"):
        await tell(client, tenant=tenant)
    async with (
        connect(settings_for(ApiSettings, private_nats.url), "agent_api", "test") as connection,
        asyncio.TaskGroup() as tasks,
        asyncio.timeout(10),
    ):
        hub = Hub(connection, await stores_of(connection), tasks)
        await hub.start()
        async with hub.open(ours, Filters(), since) as waiting, hub.open(theirs, Filters(), since) as other:
            async with hub.open(ours, Filters(), since) as stalled:
                for each in (stalled, waiting, other):
                    assert isinstance((await each.next())[0], Gap)
                assert len(await stalled.next()) == 1
                assert len(await other.next()) == 1
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await waiting.next()
            assert len(await waiting.next()) == 1
        hub.close(Unavailable("over"))


async def test_reader_that_gives_back_its_page_to_a_smaller_tenant_goes_on_from_its_position_later(
    client: NatsClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_HELD_BYTES", 3 * MESSAGE_BYTES)
    monkeypatch.setattr(reader, "RESERVED_BYTES", MESSAGE_BYTES)
    monkeypatch.setattr(reader, "RETRY_SECONDS", 0.01)
    hoarder, newcomer = (Principal("a", AGENT, tenant, math.inf) for tenant in ("default", "acme"))
    for tenant in ("default", "acme"):
        await tell(client, tenant=tenant)
    async with (
        connect(settings_for(ApiSettings, private_nats.url), "agent_api", "test") as connection,
        asyncio.TaskGroup() as tasks,
        asyncio.timeout(10),
        contextlib.AsyncExitStack() as stack,
    ):
        hub = Hub(connection, await stores_of(connection), tasks)
        await hub.start()
        stalled = [await stack.enter_async_context(hub.open(hoarder, Filters(), "1-0")) for _ in range(3)]
        for each in stalled:
            assert isinstance((await each.next())[0], Gap)
        position = str(stalled[0].position)
        (first, *_) = [await each.next() for each in stalled]
        async with hub.open(newcomer, Filters(), position) as other:
            assert len(await other.next()) == 1
            with pytest.raises(Overloaded) as told:
                await stalled[2].next()
            assert told.value.details == {"limit": "tenant"}
        async with hub.open(hoarder, Filters(), position) as again:
            assert [each.position for each in await again.next()] == [each.position for each in first]
        hub.close(Unavailable("over"))


async def test_consumer_that_breaks_at_once_is_not_remade_without_a_pause(
    client: NatsClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_feed, "RETRY_SECONDS", 1000)
    monkeypatch.setattr(tenant_feed, "OrderedConsumer", Brittle)
    async with (
        connect(settings_for(ApiSettings, private_nats.url), "agent_api", "test") as connection,
        asyncio.TaskGroup() as tasks,
    ):
        made = Hub(connection, await stores_of(connection), tasks)
        async with made.open(Principal("a", AGENT, "default", math.inf), Filters()):
            await until(lambda: Brittle.made)
            assert await made_meanwhile(connection) == 0
        made.close(Unavailable("over"))


async def test_stalled_readers_hold_no_more_than_the_budget_of_what_memory_has_let_go(
    client: NatsClient, private_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stalls at another large event; one may keep it, the others end, and complete what they answer."""
    monkeypatch.setattr(hub, "Ring", lambda: Ring(max_messages=5))
    monkeypatch.setattr(history, "MAX_HELD_BYTES", 2_000_000)  # one of them, which counts twice
    monkeypatch.setattr(cursor, "MAX_BEHIND_SECONDS", 0.0)
    async with running_agent_api(private_nats.url) as api, contextlib.AsyncExitStack() as stack:
        stalled = []
        for _ in range(4):
            stalled.append(await stack.enter_async_context(stalled_reader(api)))
            for _ in range(6):  # more than the system takes
                await tell(client, "e", "x" * 900_000)
        for _ in range(6):
            await tell(client, "e", "small")
        await until(lambda: _count_large() == 1)
        for reader in stalled:
            await read_to_the_end(reader)


def _count_large() -> int:
    """Count the large messages in memory. (`isinstance` would ask weak proxies for their class, and some are dead.)"""
    return sum(type(each) is Message and len(each.data) > 900_000 for each in gc.get_objects())


@contextlib.asynccontextmanager
async def stalled_reader(api: RunningApi | Process) -> AsyncIterator[asyncio.StreamReader]:
    """Give a reader whose socket takes little, from which nobody reads yet."""
    host, port = api.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    writer.write(
        f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {agent_token('stalled')}\r\n\r\n".encode()
    )
    await reader.readuntil(b"id: ")
    try:
        yield reader
    finally:
        writer.close()


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Read what has been held back, until the response is complete; return its end."""
    said = b""
    async with asyncio.timeout(10):
        while not said.endswith(b"\r\n0\r\n\r\n"):
            data = await reader.read(65536)
            assert data, "the connection was cut"
            said = (said + data)[-2000:]
    return said
