"""Reading events over HTTP, against the real server: live, resumed, with filters, refused, ended."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import nats
import pytest
from nats.aio.client import Client as NatsClient
from support.nats.events import Stream, change, data_of, make_stream, reading, store, tell
from support.nats.stores import EVENTS_STREAM
from support.played.agent_api import RunningApi, http_client, running_agent_api
from support.settings import SECRET, agent_token, app_token, bearer
from support.wait import until

from agent_api.events import hub, tenant_feed
from agent_api.routes import events
from protocol.runtime.streams import consumer
from protocol.runtime.tokens import mint

EVENTS = "/api/events"


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[NatsClient]:
    connection = await nats.connect(nats_url)
    for tenant in ("default", "acme"):
        await make_stream(connection, tenant)
    yield connection
    await connection.close()


@pytest.fixture
async def api(client: NatsClient, nats_url: str) -> AsyncIterator[RunningApi]:
    async with running_agent_api(nats_url) as running:
        yield running


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats that a test can wait for."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.3)


async def nothing_waits(client: NatsClient, stream: Stream) -> None:
    """Let whatever may still come for this reader come, and see that it does not."""
    await tell(client, "last.of.all", "last")
    assert (await stream.next()).data["event"] == "last.of.all"
    assert not stream.waiting


async def test_events_and_changes_come_live_and_in_order(client: NatsClient, http: httpx.AsyncClient) -> None:
    async with reading(http) as stream:
        await change(client, "connected")
        await tell(client, "todo.added", {"title": "milk"})
        first, second = await stream.take(2)
    assert (first.event, first.data["change"], first.data["clientId"]) == ("client", "connected", "c1")
    assert (second.event, second.data["event"], second.data["data"]) == ("event", "todo.added", {"title": "milk"})
    assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.response.headers["cache-control"] == "no-store"
    assert stream.response.headers["x-accel-buffering"] == "no"


async def test_many_readers_share_one_consumer_which_ends_after_the_last(
    client: NatsClient, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LINGER_SECONDS", 0)
    monkeypatch.setattr(consumer, "INACTIVE_SECONDS", 1)

    async def consumers() -> int:
        return len(await client.jetstream().consumers_info(EVENTS_STREAM))

    async with reading(http) as one, reading(http, clientId="c1") as two, reading(http, user="ann") as three:
        await tell(client, data=1)
        assert [data_of(await stream.take(1)) for stream in (one, two, three)] == [[1]] * 3
        assert await consumers() == 1

    async def none_is_left() -> bool:
        return not await consumers()

    await until(none_is_left, 15)
    async with reading(http) as stream:
        await tell(client, data=2)
        assert data_of(await stream.take(1)) == [2]


async def test_json_with_line_breaks_arrives_whole(client: NatsClient, http: httpx.AsyncClient) -> None:
    body = b'{"event":"e",\n"clientId":"c1","user":"ann",\r\n"app":"todo","data":\r{"a":\n\n[1,2]}}'
    async with reading(http) as stream:
        await store(client, "agentbridge.default.event.c1.e", body)
        assert data_of(await stream.take(1)) == [{"a": [1, 2]}]


async def test_what_is_no_message_of_ours_is_passed_over(client: NatsClient, http: httpx.AsyncClient) -> None:
    async with reading(http) as stream:
        await store(client, "agentbridge.default.event.c1.e", b"no json: \xff\nevent: forged\n\n")
        await store(client, "agentbridge.default.event.c2.e", b'{"event":"e","clientId":"c1","user":"a","app":"b"}')
        await nothing_waits(client, stream)


# --- resuming ---


async def test_reader_that_comes_back_to_another_process_misses_nothing(client: NatsClient, nats_url: str) -> None:
    async with running_agent_api(nats_url) as one, running_agent_api(nats_url) as other:
        async with http_client(one) as http, reading(http) as stream:
            await tell(client, data=1)
            assert data_of(await stream.take(1)) == [1]
        await asyncio.gather(*(tell(client, data=number, client_id="c2") for number in range(300)))
        for number in range(2, 700):
            await tell(client, data=number)
        async with http_client(other) as http, reading(http, stream.last_id, clientId="c1") as stream:
            assert data_of(await stream.take(698)) == list(range(2, 700))
            await tell(client, data=700)
            assert data_of(await stream.take(1)) == [700]
            assert not stream.waiting


async def test_reader_that_comes_back_to_the_same_process_finds_what_it_missed_in_memory(
    client: NatsClient, http: httpx.AsyncClient
) -> None:
    async with reading(http) as one, reading(http) as other:
        for number in range(5):
            await tell(client, data=number)
        await other.take(5)
        since = (await one.take(2))[-1].id
    await client.jetstream().purge_stream(EVENTS_STREAM)
    async with reading(http, since=since) as stream:
        assert data_of(await stream.take(3)) == [2, 3, 4]
        await nothing_waits(client, stream)


async def test_of_several_last_ids_the_newest_counts(client: NatsClient, http: httpx.AsyncClient) -> None:
    """A library that cannot send the header adds `lastEventId` to its URL, which may say `since` already."""
    async with reading(http) as stream:
        for number in range(4):
            await tell(client, data=number)
        ids = [said.id for said in await stream.take(4)]
    async with reading(http, lastEventId=ids[1], since=ids[0]) as stream:
        assert data_of(await stream.take(1)) == [2]
    async with reading(http, ids[2], lastEventId=ids[1], since=ids[0]) as stream:
        assert data_of(await stream.take(1)) == [3]


async def test_reader_that_hears_nothing_for_long_knows_where_to_resume(
    client: NatsClient, http: httpx.AsyncClient, hasty: None
) -> None:
    """Heartbeats are comments; where the filters hid something, an id that dispatches nothing."""
    async with reading(http, event="rare") as stream:
        await until(lambda: stream.comments)
        began = stream.last_id
        sequence = await tell(client, "often")
        await until(lambda: stream.last_id != began)
        assert stream.last_id == f"{began.partition('-')[0]}-{sequence}"
        assert not stream.waiting


# --- whom it is for ---


FILTERED: list[tuple[dict[str, Any], list[Any]]] = [
    ({}, ["connected", 1, 2, 3]),
    ({"clientId": "c1"}, ["connected", 1, 2]),
    ({"clientId": "unknown"}, []),
    ({"event": "todo.*"}, [1, 3]),
    ({"event": ["todo.added", "saved"]}, [1, 2, 3]),
    ({"event": "saved"}, [2]),
    ({"event": "todo.*", "clients": "true"}, ["connected", 1, 3]),
    ({"clients": "false"}, [1, 2, 3]),
    ({"clients": "only"}, ["connected"]),
    ({"user": "bob"}, [3]),
    ({"app": "notes"}, [3]),
    ({"app": "notes", "user": "ann"}, []),
]


async def test_filters_hold_live_and_for_the_past_alike(
    client: NatsClient, http: httpx.AsyncClient, nats_url: str, hasty: None
) -> None:
    async with all_reading([(http, query) for query, _ in FILTERED]) as streams:
        began = streams[0].last_id
        await change(client)
        await tell(client, "todo.added", 1)
        await tell(client, "saved", 2)
        last = await tell(client, "todo.added", 3, client_id="c2", user="bob", app="notes")
        assert [await told_until(last, stream) for stream in streams] == [expected for _, expected in FILTERED]
    async with (
        running_agent_api(nats_url) as other,
        http_client(other) as later,
        all_reading([(later, query) for query, _ in FILTERED], began) as streams,
    ):
        assert [await told_until(last, stream) for stream in streams] == [expected for _, expected in FILTERED]


@contextlib.asynccontextmanager
async def all_reading(
    readers: list[tuple[httpx.AsyncClient, dict[str, Any]]], last_id: str = ""
) -> AsyncIterator[list[Stream]]:
    """Read with each of these HTTP clients and queries at once."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(reading(http, last_id, **query)) for http, query in readers]


async def told_until(sequence: int, stream: Stream) -> list[Any]:
    """Return what a reader has been told by the time that it is past a sequence."""
    await stream.reaches(sequence)
    return [told_by(said.data) for said in stream.take_waiting()]


def told_by(data: dict[str, Any]) -> Any:
    return data.get("change", data.get("data"))


CLAIMS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2]),
    ({"tenant": "acme"}, [3]),
    ({"limits": {"users": ["ann"]}}, [1]),
    ({"limits": {"apps": ["notes"]}}, [2]),
    ({"limits": {"clients": ["c1"]}}, [1, 2]),
    ({"limits": {"clients": ["c2"]}}, []),
    ({"limits": {"users": []}}, []),
    ({"limits": {"users": ["ann"], "apps": ["notes"]}}, []),
]


@pytest.mark.parametrize("query", [{}, {"clientId": "c1"}, {"event": "*"}])
async def test_nothing_crosses_the_limits_of_a_token(
    client: NatsClient, api: RunningApi, nats_url: str, query: dict[str, str], hasty: None
) -> None:
    expected = [numbers for _, numbers in CLAIMS]
    async with agents_of(api, CLAIMS) as agents, all_reading([(agent, query) for agent in agents]) as streams:
        began = [stream.last_id for stream in streams]  # each tenant has positions of its own
        await tell(client, data=1)
        last = await tell(client, data=2, user="bob", app="notes")
        last_of_acme = await tell(client, data=3, tenant="acme")
        lasts = [last_of_acme if "tenant" in claims else last for claims, _ in CLAIMS]
        assert [await told_until(*each) for each in zip(lasts, streams, strict=True)] == expected
    async with (
        running_agent_api(nats_url) as other,
        agents_of(other, CLAIMS) as agents,
        all_reading([(agent, query | {"since": since}) for agent, since in zip(agents, began, strict=True)]) as streams,
    ):
        assert [await told_until(*each) for each in zip(lasts, streams, strict=True)] == expected


async def test_position_of_another_tenant_is_a_gap_that_says_nothing_of_that_tenant(
    client: NatsClient, api: RunningApi
) -> None:
    async with http_client(api) as ours, http_client(api, agent_token(tenant="acme")) as theirs:
        for data in range(5):
            await tell(client, data=data)
        async with reading(ours) as stream:
            position = stream.last_id
        async with reading(theirs, position) as stream:
            said = await stream.next()
            assert (said.event, said.data["reason"], said.id.partition("-")[2]) == ("gap", "recreated", "0")
            assert said.id.partition("-")[0] != position.partition("-")[0]


@contextlib.asynccontextmanager
async def agents_of(
    api: RunningApi, claims: list[tuple[dict[str, Any], list[int]]]
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Give an HTTP client for a token with each of these claims."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(http_client(api, agent_token(**each))) for each, _ in claims]


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [("", 401, "unauthenticated"), ("x.y.z", 401, "unauthenticated"), (app_token(), 403, "permission_denied")],
)
async def test_whoever_is_no_agent_reads_nothing(api: RunningApi, token: str, status: int, code: str) -> None:
    async with http_client(api, token) as http:
        answer = await http.get(EVENTS)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


WRONG = [
    ("event=", "`event`"),
    ("event=" + "x" * 257, "`event`"),
    ("&".join(["event=a"] * 33), "`event`"),
    ("clients=maybe", "`clients`"),
    ("clients=only&event=a", "`clients`"),
    ("clientId=a.b", "`clientId`"),
    ("clientId=", "`clientId`"),
    ("user=" + "x" * 257, "`user`"),
    ("app=" + "x" * 257, "`app`"),
    ("user=a&user=b", "`user`"),
    ("lastEventId=1-1&lastEventId=1-2", "`lastEventId`"),
    ("limit=3", "`limit`"),
    ("user=%ff", "query"),
    ("&".join(["a=b"] * 65), "query"),
]


async def test_wrong_query_is_named(http: httpx.AsyncClient) -> None:
    for query, named in WRONG:
        answer = await http.get(f"{EVENTS}?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), query
        assert named in answer.json()["message"], query


async def test_other_methods_are_refused(http: httpx.AsyncClient) -> None:
    for method in ("POST", "DELETE"):
        answer = await http.request(method, EVENTS)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


# --- ends ---


async def test_stream_ends_with_the_token(client: NatsClient, api: RunningApi) -> None:
    token = mint(SECRET, "agent-1", "agent", 2)
    async with http_client(api, token) as http, reading(http) as stream:
        await tell(client, data=1)
        assert data_of(await stream.take(1)) == [1]
        last = await stream.ended()
        assert (last.event, last.data["code"], last.data["retryable"]) == ("end", "unauthenticated", False)
        assert "expired" in last.data["message"]


async def test_draining_process_says_so_and_takes_no_new_reader(client: NatsClient, api: RunningApi) -> None:
    async with http_client(api) as http, reading(http) as stream, asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(api.drain())
        last = await stream.ended()
        assert (last.event, last.data["code"], last.data["retryable"]) == ("end", "unavailable", True)
        await draining


async def test_readers_are_bounded_for_each_principal_and_in_all(
    client: NatsClient, api: RunningApi, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_READERS_PER_PRINCIPAL", 1)
    monkeypatch.setattr(hub, "MAX_READERS", 2)
    another, third = (bearer(agent_token(sub)) for sub in ("agent-2", "agent-3"))
    async with reading(http):
        refused = await http.get(EVENTS)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")
        async with http.stream("GET", EVENTS, headers=another) as answer:
            assert answer.status_code == 200
            assert (await http.get(EVENTS, headers=third)).json()["code"] == "overloaded"

    async def is_taken_again() -> bool:
        async with http.stream("GET", EVENTS) as answer:
            return answer.status_code == 200

    await until(is_taken_again)


async def test_without_a_stream_readers_are_sent_away(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_feed, "READY_SECONDS", 0.1)
    async with running_agent_api(nats_url) as api, http_client(api) as http:
        answer = await http.get(EVENTS)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
