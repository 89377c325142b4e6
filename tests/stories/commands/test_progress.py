"""A slow function with progress, as a stream over HTTP: seen to its end, given up, and lost with its gateway."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import nats
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import App, never
from support.processes.bridge import Bridge, running_bridge
from support.wait import until

Body = dict[str, Any]
EVENTS = {"Accept": "text/event-stream"}


class Event(NamedTuple):
    """One event of a stream."""

    name: str
    data: Body


class Stream:
    """An answer as it comes."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def event(self) -> Event:
        """Return the next event, past heartbeats."""
        async with asyncio.timeout(10):
            while not (name := await anext(self._lines)).startswith("event: "):
                pass
            data = ""
            while line := await anext(self._lines):
                data += line.removeprefix("data: ")
        return Event(name.removeprefix("event: "), json.loads(data))

    async def rest(self) -> list[Event]:
        """Return all events up to the end."""
        events = []
        with contextlib.suppress(StopAsyncIteration):
            while True:
                events.append(await self.event())
        return events


@contextlib.asynccontextmanager
async def posting(bridge: Bridge, client_id: str | None, target: str = "never", **more: Any) -> AsyncIterator[Stream]:
    """Send a command and read its answer as a stream."""
    body = {"clientId": client_id, "command": {"target": target, "requestId": "r1"}, **more}
    async with bridge.http.stream("POST", "/api/command", json=body, headers=EVENTS) as response:
        yield Stream(response)


async def taken(app: App, number: int = 0) -> str:
    """Wait until the application has so many commands, and return the id of the last."""
    await until(lambda: len(app.all_received(type="command")) > number)
    return str(app.all_received(type="command")[number]["requestId"])


async def tell(app: App, wire_id: str, progress: float, **more: Any) -> None:
    await app.send({"type": "progress", "requestId": wire_id, "progress": progress, **more})


async def answer(app: App, wire_id: str, result: Any = "done") -> None:
    await app.send({"type": "response", "requestId": wire_id, "status": "success", "result": result})


async def told_then_answered(app: App) -> None:
    """Be the application: tell two things, spread over lines, and answer."""
    wire_id = await taken(app)
    await app.send(f'{{"type":"progress","requestId":"{wire_id}","progress":1,"data":{{\r\n"rows":\n7}}}}')
    await asyncio.sleep(0.1)  # both are to be told: the gateway keeps the newest of what comes faster
    await tell(app, wire_id, 2, total=2, message="done ✓")
    await answer(app, wire_id)


async def test_progress_is_streamed_and_then_the_plain_answer(bridge: Bridge) -> None:
    async with bridge.app({"never": never}) as app, asyncio.TaskGroup() as tasks:
        tasks.create_task(told_then_answered(app))
        async with posting(bridge, app.client_id) as stream:
            events = await stream.rest()
        plain = (await bridge.call(app.client_id, "never", timeout_ms=100)).headers

    about = {"requestId": "r1", "clientId": app.client_id}
    assert stream.response.status_code == httpx.codes.OK
    assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.response.headers["cache-control"] == "no-store"
    assert plain["content-type"] == "application/json"
    assert events == [
        Event("progress", {**about, "seq": 1, "progress": 1, "data": {"rows": 7}}),
        Event("progress", {**about, "seq": 2, "progress": 2, "total": 2, "message": "done ✓"}),
        Event("response", {"success": True, **about, "result": "done", "durationMs": events[2].data["durationMs"]}),
    ]


@pytest.mark.parametrize("line_end", ["\u2028", "\u2029", "\x85"])
async def test_application_forges_no_event_for_readers_that_split_lines_as_python_does(
    bridge: Bridge, line_end: str
) -> None:
    text = f"a{line_end}event: response{line_end}data: {{}}{line_end}{line_end}"
    async with bridge.app({"never": never}) as app, asyncio.TaskGroup() as tasks:

        async def tell_then_answer() -> None:
            wire_id = await taken(app)
            await tell(app, wire_id, 1, message=text)
            raw = json.dumps(text, ensure_ascii=False)  # as `JSON.stringify` writes it
            await app.send(f'{{"type":"response","requestId":"{wire_id}","status":"success","result":{raw}}}')

        tasks.create_task(tell_then_answer())
        async with posting(bridge, app.client_id) as stream:
            told, answered = await stream.rest()
    assert (told.name, told.data["message"]) == ("progress", text)
    assert (answered.name, answered.data["result"]) == ("response", text)


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"command":{"target":"never"}}', {"Authorization": "Bearer x"}, 401, "unauthenticated"),
        (b"{", {}, 400, "invalid_request"),
        (b'{"command":{"target":"never"}}', {"Content-Type": "text/plain"}, 415, "invalid_request"),
        (b'{"command":{"target":"nothing"}}', {}, 404, "unknown_capability"),
        (b'{"clientId":"nobody","command":{"target":"never"}}', {}, 404, "client_not_found"),
    ],
)
async def test_refusal_before_the_stream_begins_has_its_own_status(
    bridge: Bridge, body: bytes, headers: Body, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json", **EVENTS, **headers}
    refused = await bridge.http.post("/api/command", content=body, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert refused.headers["content-type"] == "application/json"


async def test_error_after_the_stream_has_begun_is_its_last_event(bridge: Bridge) -> None:
    async with bridge.app({"never": never}) as app, posting(bridge, app.client_id, timeoutMs=1500) as stream:
        # The head has come though nothing was told: a caller need not wait for the first word to know of the stream.
        assert stream.response.status_code == httpx.codes.OK
        [(name, problem)] = await stream.rest()
    assert (name, problem["code"], problem["requestId"]) == ("response", "timeout", "r1")


async def test_caller_who_leaves_the_stream_cancels_the_command_and_a_late_answer_is_dropped(bridge: Bridge) -> None:
    async with bridge.app({"never": never}) as app:
        async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as stack:
            posted = tasks.create_task(stack.enter_async_context(posting(bridge, app.client_id)))
            wire_id = await taken(app)
            await tell(app, wire_id, 1)
            assert (await (await posted).event()).data["progress"] == 1
        cancel = await app.received(type="cancel", requestId=wire_id)
        await tell(app, wire_id, 2)
        await answer(app, wire_id)
        await until(lambda: counters(bridge, lateResponses=1, lateProgress=1))
    assert cancel["reason"] == "the caller went away"


async def counters(bridge: Bridge, **wanted: int) -> bool:
    """Tell whether the gateway has counted so much."""
    client = await nats.connect(bridge.nats_url)
    try:
        stats = json.loads((await client.request("$SRV.STATS.agentbridge-gateway", timeout=5)).data)
    finally:
        await client.close()
    return any(wanted.items() <= (endpoint.get("data") or {}).items() for endpoint in stats["endpoints"])


async def test_killed_gateway_is_client_lost_in_the_stream_within_2_seconds(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with (
        running_bridge(tmp_path, private_nats.url) as bridge,
        bridge.app({"never": never}) as app,
        asyncio.TaskGroup() as tasks,
        contextlib.AsyncExitStack() as stack,
    ):
        posted = tasks.create_task(stack.enter_async_context(posting(bridge, app.client_id)))
        await tell(app, await taken(app), 1)
        stream = await posted
        assert (await stream.event()).name == "progress"
        await bridge.gateways[0].kill()
        async with asyncio.timeout(2.5):
            [(name, problem)] = await stream.rest()
    assert (name, problem["code"], problem["retryable"]) == ("response", "client_lost", False)


async def test_progress_of_several_clients_says_whose_it_is(bridge: Bridge) -> None:
    async with bridge.app({"never": never}) as one, bridge.app({"never": never}) as two:
        await bridge.listed(one.client_id, two.client_id)
        ids = [one.client_id, two.client_id]
        async with asyncio.TaskGroup() as tasks:
            for app in (one, two):
                tasks.create_task(told_then_answered(app))
            async with posting(bridge, None, clientIds=ids) as stream:
                *progress, (name, gathered) = await stream.rest()
    assert (name, gathered["complete"], gathered["results"].keys()) == ("response", True, set(ids))
    for client_id in ids:
        assert [event.data["seq"] for event in progress if event.data["clientId"] == client_id] == [1, 2]
