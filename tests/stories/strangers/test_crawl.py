"""All routes, frames and subjects, crawled by agents of two tenants and by two limited agents of one: nothing crosses.

Each application has a secret in whatever it tells: its user, its name, metadata, capabilities, events, results. An
agent asks for everything in every way, and about everybody; what it is told holds no secret that is not its own, and in
place of what it may not see it gets what it would get for something that does not exist.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, NamedTuple

import httpx
import nats
import nats.errors
import pytest
from nats.aio.client import Client
from support.nats.events import reading
from support.played.agent_socket import AgentSocket, agent_socket
from support.played.app import App
from support.processes.bridge import Bridge
from support.settings import admin_token, agent_token, app_token, bearer
from support.wait import until

from agent_api.http.connections import SDK_SOCKET_PATHS

ABSENT = "absent"


class Actor(NamedTuple):
    """An application, and an agent (or administrator) that may see it and nothing else."""

    secret: str
    tenant: str
    app: App
    agent: str


JSON = {"Content-Type": "application/json"}
Cast = tuple[Actor, ...]
ACTORS = (
    ("secret-ann", "default", agent_token("of-ann", limits={"users": ["secret-ann"]})),
    ("secret-bob", "default", agent_token("of-bob", limits={"apps": ["secret-bob"]})),
    ("secret-eve", "acme", admin_token("of-acme", tenant="acme")),
)


@pytest.fixture
async def actors(bridge: Bridge) -> AsyncIterator[Cast]:
    """Three applications with secrets, in two tenants."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for secret, tenant, agent in ACTORS:
            app = await stack.enter_async_context(
                bridge.app(
                    {"shared": dict, f"{secret}-only": dict},
                    token=app_token(secret, tenant=tenant),
                    app={"name": secret},
                    metadata={"team": "x", "mine": secret},
                )
            )
            found.append(Actor(secret, tenant, app, agent))
        for actor in found:
            await until(partial(_lists, bridge, actor))
        yield tuple(found)


async def _lists(bridge: Bridge, actor: Actor) -> bool:
    return actor.app.client_id in (await bridge.client(actor.agent).get("/api/capabilities")).text


def casts(actors: Cast) -> Iterator[tuple[Actor, list[Actor]]]:
    """Yield each actor with those that its agent must not learn of."""
    for actor in actors:
        yield actor, [other for other in actors if other is not actor]


def assert_nothing_of(others: list[Actor], told: str) -> None:
    """Fail where what an agent was told holds anything of these."""
    leaked = [word for other in others for word in (other.secret, other.app.client_id) if word in told]
    assert leaked == []


async def test_every_route_that_can_be_asked_for_all_tells_what_is_theirs(bridge: Bridge, actors: Cast) -> None:
    paths = (await bridge.http.get("/openapi.json")).json()["paths"]
    for actor, others in casts(actors):
        http = bridge.client(actor.agent)
        for path in (path for path, operations in paths.items() if "get" in operations and "{" not in path):
            if path in ("/api/events", "/api/ws", *SDK_SOCKET_PATHS):  # streams: below
                continue
            answer = await http.get(path)
            assert answer.status_code in (httpx.codes.OK, httpx.codes.FORBIDDEN), (path, answer.text)
            assert_nothing_of(others, answer.text)


async def test_every_route_about_somebody_else_answers_as_for_nobody(bridge: Bridge, actors: Cast) -> None:
    paths = (await bridge.http.get("/openapi.json")).json()["paths"]
    for actor, others in casts(actors):
        http = bridge.client(actor.agent)
        for other in others:
            for method, path, query, body in _about(paths, other):
                hidden = await _request(http, method, [path, query, body])
                absent = await _request(http, method, _with_absent([path, query, body], other))
                assert _comparable(hidden, other) == _comparable(absent, other), (method, path, query, body)
    assert [await actor.app.commands() for actor in actors] == [[], [], []]


Asked = tuple[str, str, dict[str, str], Any]


def _about(paths: dict[str, Any], other: Actor) -> Iterator[Asked]:
    """Yield every request that can name a client: paths, queries, bodies."""
    client_id, secret = other.app.client_id, other.secret
    for path, operations in paths.items():
        for method in operations:
            if "{client_id}" in path:
                yield method, path.replace("{client_id}", client_id), {}, None
    for path in ("/api/capabilities", "/api/clients"):
        for name, value in (("clientId", client_id), ("user", secret), ("app", secret), ("metadata.mine", secret)):
            yield "get", path, {name: value}, None
        yield "get", path, {"name": f"{secret}-only"}, None
    command = {"target": "shared", "parameters": {}}
    only = {"target": f"{secret}-only", "parameters": {}}
    for body in (
        {"clientId": client_id, "command": command},
        {"clientId": client_id, "command": command | {"idempotencyKey": "k"}},
        {"command": only},
        {"command": only, "any": True},
        {"command": command, "clientIds": [client_id]},
        {"command": command, "match": {"user": secret}},
        {"command": command, "match": {"app": secret}},
        {"command": command, "match": {"metadata": {"mine": secret}}},
    ):
        yield "post", "/api/command", {}, body


def _with_absent(told: Any, other: Actor) -> Any:
    """Return what was told or asked, with somebody's name and secret replaced by those of nobody."""
    return json.loads(json.dumps(told).replace(other.app.client_id, ABSENT).replace(other.secret, ABSENT))


async def _request(http: httpx.AsyncClient, method: str, asked: list[Any]) -> httpx.Response:
    path, query, body = asked
    return await http.request(
        method, path, params=query, content=None if body is None else json.dumps(body), headers=JSON
    )


def _comparable(answer: httpx.Response, other: Actor) -> tuple[int, Any]:
    """Return an answer without what is the request's own: the name that it asked for, and a number of its own."""
    text = re.sub(r'("requestId":)"[0-9a-f]{24}"', r'\1"?"', answer.text)
    return answer.status_code, _with_absent(json.loads(text or "null"), other)


async def test_streams_of_events_tell_what_is_theirs(bridge: Bridge, actors: Cast) -> None:
    async with contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(reading(bridge.client(actor.agent), since="0-0")) for actor in actors
        ]
        narrowed = [
            await stack.enter_async_context(reading(bridge.client(actor.agent), clientId=other.app.client_id))
            for actor, others in casts(actors)
            for other in others
        ]
        for actor in actors:
            await actor.app.send({"type": "event", "event": f"{actor.secret}.said", "data": {"mine": actor.secret}})
            await actor.app.acknowledged({"type": "metadata", "metadata": {"team": "y", "mine": actor.secret}})
        for (_, others), stream in zip(casts(actors), streams, strict=True):
            told = [await stream.next()]
            while not (told[-1].event == "event" and told[-1].data.get("data")):
                told.append(await stream.next())
            assert_nothing_of(others, json.dumps([said._asdict() for said in told]))
        assert [stream.waiting for stream in narrowed] == [0] * len(narrowed)


async def test_agents_sockets_tell_what_is_theirs(bridge: Bridge, actors: Cast) -> None:
    async with contextlib.AsyncExitStack() as stack:
        url = bridge.agent_apis[0].url
        agents = [await stack.enter_async_context(agent_socket(url, actor.agent)) for actor in actors]
        for agent in agents:
            await agent.send({"type": "subscribe", "id": "all", "events": ["*"], "clients": True})
            await agent.send({"type": "capabilities", "id": "who"})
            await agent.received(type="ack", id="all")
        for actor in actors:
            await actor.app.send({"type": "event", "event": f"{actor.secret}.said", "data": {"mine": actor.secret}})
        for (actor, others), agent in zip(casts(actors), agents, strict=True):
            await until(partial(_told, agent, f"{actor.secret}.said"))
            await until(partial(_told, agent, f"{actor.secret}-only"))
            assert_nothing_of(others, json.dumps(agent.frames))
            await _assert_refusals_are_alike(agent, others)
    assert [await actor.app.commands() for actor in actors] == [[], [], []]


async def test_agents_of_the_original_sdk_are_told_what_is_theirs(bridge: Bridge, actors: Cast) -> None:
    async with contextlib.AsyncExitStack() as stack:
        url = bridge.agent_apis[0].url
        for actor, others in casts(actors):
            agent = await stack.enter_async_context(agent_socket(url, actor.agent, path="/agent-bridge"))
            await until(partial(_told, agent, f"{actor.secret}-only"))
            await agent.send({"type": "query_capabilities", "id": "q"})
            await agent.received(type="capabilities_result", correlationId="q")
            for other in others:
                hidden, absent = other.app.client_id, ABSENT
                for client_id in (hidden, absent):
                    await agent.send(
                        {"type": "call_function", "id": client_id, "name": "shared", "clientId": client_id}
                    )
                errors = [await agent.received(type="error", correlationId=each) for each in (hidden, absent)]
                told = [{**error, "id": "", "timestamp": "", "correlationId": ""} for error in errors]
                assert told[0] == told[1]
            frames = [frame for frame in agent.frames if frame["type"] != "error"]
            assert_nothing_of(others, json.dumps(frames))
    assert [await actor.app.commands() for actor in actors] == [[], [], []]


def _told(agent: AgentSocket, word: str) -> bool:
    return word in json.dumps(agent.frames)


async def _assert_refusals_are_alike(agent: AgentSocket, others: list[Actor]) -> None:
    for other in others:
        commands: tuple[dict[str, Any], ...] = (
            {"client_id": other.app.client_id, "target": "shared"},
            {"client_id": None, "target": f"{other.secret}-only"},
            {"client_id": None, "target": f"{other.secret}-only", "any": True},
            {"client_id": None, "target": "shared", "clientIds": [other.app.client_id]},
            {"client_id": None, "target": "shared", "match": {"user": other.secret}},
        )
        for command in commands:
            hidden, absent = [
                await agent.call(**asked, command={"requestId": "r"}) | {"id": "?", "durationMs": 0}
                for asked in (command, _with_absent(command, other))
            ]
            assert _with_absent(hidden, other) == absent, command


async def test_subjects_tell_what_is_theirs(bridge: Bridge, actors: Cast) -> None:
    client = await nats.connect(bridge.nats_url)
    try:
        for actor, others in casts(actors):
            told = []
            for tenant in ("default", "acme"):
                for operation, body in _registry_requests(others):
                    told.append(await _ask(client, f"agentbridge.{tenant}.registry.{operation}", body, actor.agent))
                for other in others:
                    for body in _operations():
                        subject = f"agentbridge.{tenant}.command.{other.app.client_id}"
                        answer = await _ask(client, subject, body, actor.agent)
                        # The subject names the client, and so may its answer, which says that there is none.
                        told.append(answer.replace(other.app.client_id, ABSENT))
            assert_nothing_of(others, "\n".join(told))
    finally:
        await client.close()
    assert [await actor.app.commands() for actor in actors] == [[], [], []]


def _registry_requests(others: list[Actor]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "list", {}
    yield "find", {"target": "shared"}
    for other in others:
        yield "get", {"clientId": other.app.client_id}
        yield "find", {"target": f"{other.secret}-only"}


def _operations() -> tuple[dict[str, Any], ...]:
    return (
        {"target": "shared", "requestId": "r"},
        {"target": "shared", "requestId": "r", "idempotencyKey": "k"},
        {"op": "cancel", "requestId": "r"},
        {"op": "probe", "requestIds": ["r"]},
    )


async def _ask(client: Client, subject: str, body: dict[str, Any], token: str) -> str:
    """Return what a request is answered with; nothing where nobody serves the subject."""
    try:
        return (
            await client.request(subject, json.dumps(body).encode(), timeout=5, headers=bearer(token))
        ).data.decode()
    except nats.errors.NoRespondersError:
        return ""
