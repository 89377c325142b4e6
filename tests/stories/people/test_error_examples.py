"""The examples of errors in the API's document are what a bridge really answers, but for ids, names and numbers."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
from support.nats.nats_server import NatsServer
from support.played.app import App, AppFault, never
from support.processes.bridge import Bridge, running_bridge
from support.settings import app_token
from support.wait import until

SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}}
SLOW = {"name": "seldom", "rateLimit": {"limit": 1, "perSeconds": 3600}}


def full(parameters: dict[str, Any]) -> None:
    raise AppFault("the list is full", "list_full")


async def test_examples_of_errors_are_what_is_answered(tmp_path: Path, private_nats: NatsServer) -> None:
    offered = ["addTodo", "full", "never", "held", SLOW, {"name": "checked", "parameters": SCHEMA}]
    handlers = {"full": full, "never": never, "held": never, "seldom": lambda parameters: 1}
    async with (
        running_bridge(tmp_path / "bridge", private_nats.url, max_in_flight_per_client=1) as bridge,
        bridge.app(handlers, capabilities=offered) as ann,
        bridge.app(capabilities=["addTodo"], token=app_token("bob")) as bob,
    ):
        await until(lambda: both_listed(bridge, ann.client_id, bob.client_id))
        examples = (await bridge.http.get("/openapi.json")).json()["components"]["examples"]
        for answered in await refusals(bridge, ann):
            shown = examples[answered["code"]]["value"]
            assert shapes(answered) == shapes(shown)


async def both_listed(bridge: Bridge, *client_ids: str) -> bool:
    return set(await bridge.capabilities(name="addTodo")) == set(client_ids)


async def refusals(bridge: Bridge, app: App) -> list[dict[str, Any]]:
    """Have a command refused in each way that takes no failing process."""
    client_id = app.client_id
    await bridge.call(client_id, "seldom")
    answers = [
        await bridge.call(client_id, "addTodo", timeout_ms=-1),
        await bridge.call("nobody", "addTodo"),
        await bridge.call(client_id, "nothing"),
        await bridge.http.post("/api/command", json={"command": {"target": "addTodo"}}),
        await bridge.call(client_id, "checked", {"title": 5}),
        await bridge.call(client_id, "seldom"),
        await bridge.call(client_id, "full"),
        await bridge.call(client_id, "never", timeout_ms=50),
        await overloaded(bridge, app),
    ]
    assert [answer.status_code for answer in answers] == [400, 404, 404, 409, 422, 429, 500, 504, 429]
    return [answer.json() for answer in answers]


async def overloaded(bridge: Bridge, app: App) -> httpx.Response:
    """Return what a command is told while the application has as many as it may have."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.call(app.client_id, "held", timeout_ms=1000))
        await app.received(type="command", target="held")
        return await bridge.call(app.client_id, "full")


def shapes(problem: dict[str, Any]) -> dict[str, Any]:
    """Return an error's body without what differs from one to the next: names in quotes, numbers, ids.

    An example that several routes share has an id only if all of them answer for a command.
    """
    sentence = re.sub(r"'\w+'|`addTodo`|\d+(\.\d+)?(e-\d+)?", "…", problem["message"])
    details = {name: type(value) for name, value in (problem.get("details") or {}).items()}
    return {**problem, "message": sentence, "details": details, "requestId": None}
