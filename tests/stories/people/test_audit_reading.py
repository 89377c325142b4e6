"""The audit stream over HTTP and on the command line: pages, what comes, and who may not read it."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from support.nats.audit import Record, recorded, stored
from support.nats.nats_server import NatsServer
from support.nats.stores import AUDIT_STREAM
from support.played.app import App, Handler
from support.processes.bridge import Bridge
from support.processes.child import Process
from support.settings import admin_token, agent_token, app_token, environment
from support.wait import until

from protocol.runtime.streams.stores import audit_of


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters


HANDLERS: dict[str, Handler] = {"echo": echo}
EVENT_STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def app(bridge: Bridge) -> AsyncIterator[App]:
    async with bridge.app(HANDLERS, token=app_token("ann")) as connected:
        yield connected


async def call(bridge: Bridge, app: App, *request_ids: str, target: str = "echo", token: str | None = None) -> None:
    http = bridge.client(token or agent_token())
    for request_id in request_ids:
        body = {"clientId": app.client_id, "command": {"target": target, "requestId": request_id}}
        await http.post("/api/command", json=body)


async def page(bridge: Bridge, token: str | None = None, **query: Any) -> list[str]:
    """Return the request ids on a page."""
    answer = await bridge.client(token or admin_token()).get("/api/audit", params=query)
    assert answer.status_code == httpx.codes.OK, answer.text
    return [record["requestId"] for record in answer.json()]


async def test_pages_are_newest_first_and_lead_to_each_other(bridge: Bridge, app: App) -> None:
    await call(bridge, app, "r0")
    await recorded(bridge.nats_url, 1)  # the stream is there: what comes before it may be stored in another order
    await call(bridge, app, *(f"r{number}" for number in range(1, 7)))
    await recorded(bridge.nats_url, 7)

    http, url, seen = bridge.admin(), "/api/audit?limit=3", list[Record]()
    while url:
        answer = await http.get(url)
        seen += answer.json()
        url = answer.links.get("next", {}).get("url", "")
    assert [record["requestId"] for record in seen] == [f"r{number}" for number in range(6, -1, -1)]
    assert await page(bridge, after=seen[4]["id"]) == ["r1", "r0"]
    assert len({record["id"] for record in seen}) == 7


async def test_filters_narrow(bridge: Bridge, app: App) -> None:
    await call(bridge, app, "good")
    await call(bridge, app, "bad", target="unknown", token=agent_token("other"))
    await recorded(bridge.nats_url, 2)
    for query, expected in (
        ({"outcome": "success"}, ["good"]),
        ({"target": "unknown"}, ["bad"]),
        ({"agent": "other"}, ["bad"]),
        ({"clientId": app.client_id}, ["bad", "good"]),
        ({"clientId": "_none"}, []),
        ({"clientId": app.client_id, "outcome": "timeout"}, []),
        ({"since": "2026-01-01T00:00:00Z"}, ["bad", "good"]),
        ({"until": "2026-01-01T00:00:00Z"}, []),
    ):
        assert await page(bridge, **query) == expected, query


async def test_tenants_are_apart_and_agents_are_refused(bridge: Bridge, app: App) -> None:
    await call(bridge, app, "ours")
    await call(bridge, app, "theirs", token=agent_token(tenant="acme"))
    await recorded(bridge.nats_url, 1)
    await recorded(bridge.nats_url, 1, stream=audit_of("acme").stream)
    assert await page(bridge) == ["ours"]
    assert await page(bridge, admin_token(tenant="acme")) == ["theirs"]
    assert await page(bridge, admin_token(tenant="third")) == []
    for token, status in ((agent_token(), 403), (app_token(), 403), (None, 401)):
        for headers in ({}, EVENT_STREAM):
            answer = await bridge.client(token).get("/api/audit", headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")


async def test_wrong_questions_are_refused_by_their_name(bridge: Bridge) -> None:
    http = bridge.admin()
    for query in ("limit=0", "outcome=*", "clientId=a.%3E", "after=1", "since=soon", "x=1"):
        answer = await http.get(f"/api/audit?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert f"`{query.split('=')[0]}`" in answer.json()["message"]


async def test_an_id_of_a_former_stream_is_a_conflict(bridge: Bridge) -> None:
    answer = await bridge.admin().get("/api/audit?after=20200101-5")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


class Stream:
    """The audit stream as a reader gets it."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()
        self.ident = ""

    async def next(self) -> tuple[str, Any]:
        """Return the next event's name and data, past ids alone and heartbeats."""
        name = ""
        async with asyncio.timeout(10):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "id":
                    self.ident = value
                elif field == "event":
                    name = value
                elif field == "data":
                    return name, json.loads(value)
        raise AssertionError("the stream ended")

    async def begun(self) -> None:
        """Wait for the first id."""
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line.startswith("id: "):
                    self.ident = line.removeprefix("id: ")
                    return


@contextlib.asynccontextmanager
async def following(bridge: Bridge, token: str | None = None, last: str = "", **query: Any) -> AsyncIterator[Stream]:
    http = bridge.client(token or admin_token())
    headers = EVENT_STREAM | ({"Last-Event-ID": last} if last else {})
    async with http.stream("GET", "/api/audit", headers=headers, params=query) as answer:
        assert answer.status_code == httpx.codes.OK, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer)


async def test_a_stream_tells_what_comes_and_is_resumed_without_a_hole(bridge: Bridge, app: App) -> None:
    await call(bridge, app, "before")
    await recorded(bridge.nats_url, 1)
    async with following(bridge, outcome="success") as stream:
        await stream.begun()
        await call(bridge, app, "r1")
        await call(bridge, app, "bad", target="unknown")
        name, record = await stream.next()
        assert (name, record["requestId"], record["id"]) == ("record", "r1", stream.ident)
    await call(bridge, app, "r2", "r3")
    async with following(bridge, last=stream.ident) as stream:
        assert [(await stream.next())[1]["requestId"] for _ in range(3)] == ["bad", "r2", "r3"]
        await call(bridge, app, "r4")
        assert (await stream.next())[1]["requestId"] == "r4"


@pytest.mark.parametrize("last", ["20200101000000-5", "none of ours"])
async def test_a_stream_is_told_of_a_gap_where_the_id_is_of_another(bridge: Bridge, app: App, last: str) -> None:
    await call(bridge, app, "r1")
    await recorded(bridge.nats_url, 1)
    async with following(bridge, last=last) as stream:
        name, gap = await stream.next()
        assert (name, gap["from"]) == ("gap", stream.ident)
        assert (await stream.next())[1]["requestId"] == "r1"


async def test_a_stream_ends_with_its_token_and_at_the_processes_end(bridge: Bridge) -> None:
    async with following(bridge, admin_token(ttl_seconds=2)) as short, following(bridge) as long:
        assert (await short.next())[1]["code"] == "unauthenticated"
        await long.begun()
        bridge.agent_apis[0].signal(signal.SIGTERM)
        assert await long.next() == (
            "end",
            {
                "code": "unavailable",
                "message": "this process is shutting down; come back and resume from the last id",
                "retryable": True,
            },
        )


async def test_without_its_stream_a_page_is_empty_and_nobody_can_follow(bridge: Bridge) -> None:
    """Nothing was recorded of a tenant without a stream, and without a registry nobody makes one."""
    await bridge.registries[0].kill()
    client = bridge.admin()
    assert (await client.get("/api/audit")).json() == []
    followed = await client.get("/api/audit", headers=EVENT_STREAM)
    assert followed.status_code == httpx.codes.SERVICE_UNAVAILABLE


Watch = Callable[..., Process]


@pytest.fixture
def watch(tmp_path: Path, private_nats: NatsServer) -> Iterator[Watch]:
    """Start commands that go on until Ctrl-C: `watch("audit", "--follow")`."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str) -> Process:
            folder = tmp_path / f"watch-{len(list(tmp_path.glob('watch-*')))}"
            process = Process("agentbridge", folder, environment(private_nats.url), *arguments).launch()
            stack.callback(process.end)
            return process

        yield begin


@contextlib.asynccontextmanager
async def cut_off(
    watching: Process, bridge: Bridge, server: NatsServer, app: App, *, wipe: bool
) -> AsyncIterator[None]:
    """Restart NATS and do what is done meanwhile, when all others are back, before the watching process knows of it."""
    watching.freeze()
    server.kill()
    if wipe:
        server.wipe()
    await server.start()
    await until(lambda: _commands_flow(bridge, app), 20)
    yield
    watching.thaw()


async def _commands_flow(bridge: Bridge, app: App) -> bool:
    """Tell whether commands flow and are recorded; by another agent, whose records nobody here looks for."""
    body = {"clientId": app.client_id, "command": {"target": "echo"}}
    answer = await bridge.client(agent_token("another")).post("/api/command", json=body)
    return answer.status_code == httpx.codes.OK and bool(await stored(bridge.nats_url))


async def all_stored(bridge: Bridge, *request_ids: str, seconds: float = 10) -> None:
    """Wait until the stream holds these records."""

    async def are_stored() -> bool:
        return set(request_ids) <= {record["requestId"] for _, record in await stored(bridge.nats_url)}

    await until(are_stored, seconds)


async def shown(watching: Process, *expected: Any) -> None:
    """Wait until as many lines have been printed; these must be the request ids, or lines that are no record."""

    def lines() -> list[Any]:
        printed = [json.loads(line) for line in watching.out.splitlines()]
        return [line.get("requestId", line) for line in printed]

    with contextlib.suppress(TimeoutError):
        await until(lambda: len(lines()) >= len(expected), 10)
    assert lines() == list(expected), watching.log


FOLLOW = ("audit", "--follow", "--json", "--agent", "agent-1")
GAP = {"gap": {"message": "some records may have been missed"}}


async def test_the_command_line_follows_through_a_reconnect_without_a_hole_and_nothing_twice(
    bridge: Bridge, app: App, private_nats: NatsServer, watch: Watch
) -> None:
    await call(bridge, app, "r0")
    await all_stored(bridge, "r0")
    following = watch(*FOLLOW)
    await until(lambda: "listening on" in following.log, 20)
    await call(bridge, app, "r1")
    await shown(following, "r0", "r1")
    async with cut_off(following, bridge, private_nats, app, wipe=False):
        await call(bridge, app, "r2", "r3", "r4")
        await all_stored(bridge, "r2", "r3", "r4")
    await until(lambda: "lost NATS" in following.log, 10)
    await shown(following, "r0", "r1", "r2", "r3", "r4")
    await call(bridge, app, "r5")
    await shown(following, "r0", "r1", "r2", "r3", "r4", "r5")
    assert "missed" not in following.log


@pytest.mark.parametrize("wipe", [False, True], ids=["let go", "made anew"])
async def test_the_command_line_says_where_the_stream_has_lost_what_it_missed(
    bridge: Bridge, app: App, private_nats: NatsServer, watch: Watch, wipe: bool
) -> None:
    following = watch(*FOLLOW)
    await until(lambda: "listening on" in following.log, 20)
    await call(bridge, app, "r1")
    await shown(following, "r1")
    async with cut_off(following, bridge, private_nats, app, wipe=wipe):
        await call(bridge, app, "r2", "r3")
        await all_stored(bridge, "r2", "r3")
        if not wipe:
            async with await nats.connect(bridge.nats_url) as connection:
                await connection.jetstream().purge_stream(AUDIT_STREAM, keep=1)
    await shown(following, "r1", GAP, *(["r2"] if wipe else []), "r3")
    assert "some records may have been missed" in following.log
    await call(bridge, app, "r4")
    await shown(following, "r1", GAP, *(["r2"] if wipe else []), "r3", "r4")


async def test_the_command_line_says_that_the_stream_cannot_be_read_and_goes_on_once_it_can(
    bridge: Bridge, app: App, watch: Watch
) -> None:
    await call(bridge, app, "r0")
    await recorded(bridge.nats_url, 1)
    following = watch(*FOLLOW)
    await shown(following, "r0")
    await bridge.registries[0].kill()
    async with await nats.connect(bridge.nats_url) as connection:
        await connection.jetstream().delete_stream(AUDIT_STREAM)
    await until(lambda: "cannot be read now" in following.log, 40)
    await bridge.registries[0].start()
    await call(bridge, app, "kept")
    await all_stored(bridge, "kept", seconds=20)  # with a follower NATS does not say that there is no stream
    await call(bridge, app, "r1")
    await shown(following, "r0", GAP, "kept", "r1")
    assert following.log.count("cannot be read now") == 1


async def test_the_command_line_says_where_events_may_be_missing(
    bridge: Bridge, app: App, private_nats: NatsServer, watch: Watch
) -> None:
    watching = watch("events", "--json")
    await until(lambda: "listening on" in watching.log, 20)
    async with cut_off(watching, bridge, private_nats, app, wipe=False):
        await app.acknowledged({"type": "event", "event": "lost"})
    await until(lambda: "may be missing" in watching.log, 10)
    await app.acknowledged({"type": "event", "event": "seen"})
    await until(lambda: '"seen"' in watching.out, 10)
    assert '"lost"' not in watching.out
