"""Agents, capabilities and registering applications that go too fast, from the outside."""

import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import App, Frame, Handler
from support.processes.bridge import Bridge, running_bridge
from support.processes.gateways import agent
from support.settings import agent_token, app_token
from support.wait import until

HOUR = 3600
RARE = {"name": "rare", "rateLimit": {"limit": 2, "perSeconds": HOUR}}


@pytest.fixture
async def limited(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge whose agents may send five commands, and then one every 20 seconds."""
    folder = tmp_path / "bridge"
    async with running_bridge(folder, private_nats.url, rate_limit_per_agent=0.05, rate_limit_burst=5) as running:
        yield running


def answer(parameters: dict[str, Any]) -> str:
    return "done"


async def statuses(bridge: Bridge, app: App, target: str, token: str, number: int) -> list[int]:
    http = bridge.client(token)
    body = {"clientId": app.client_id, "command": {"target": target}}
    return [(await http.post("/api/command", json=body)).status_code for _ in range(number)]


async def test_an_agent_that_is_too_fast_is_told_when_to_come_back(limited: Bridge) -> None:
    async with limited.app({"add": answer}) as app:
        assert await statuses(limited, app, "add", agent_token("hasty"), 5) == [200] * 5

        body = {"clientId": app.client_id, "command": {"target": "add", "requestId": "r6"}}
        refusal = await limited.client(agent_token("hasty")).post("/api/command", json=body)

        assert refusal.status_code == httpx.codes.TOO_MANY_REQUESTS
        told = refusal.json()
        assert (told["code"], told["retryable"], told["requestId"]) == ("rate_limited", True, "r6")
        wait_ms = told["details"]["retryAfterMs"]
        assert 0 < wait_ms <= 20_000
        assert refusal.headers["Retry-After"] == str(-(-wait_ms // 1000))
        assert len(await app.commands()) == 5
        assert await statuses(limited, app, "add", agent_token("patient"), 1) == [200]


async def test_the_same_over_nats_and_by_all_ways_together(limited: Bridge) -> None:
    async with limited.app({"add": answer}) as app, agent(limited.nats_url) as caller:
        assert await statuses(limited, app, "add", agent_token(), 3) == [200] * 3
        assert [(await caller.call(app.client_id, "add"))["status"] for _ in range(2)] == ["success"] * 2
        error = (await caller.call(app.client_id, "add"))["error"]
        assert (error["code"], error["retryable"]) == ("rate_limited", True)
        assert 0 < error["details"]["retryAfterMs"] <= 20_000
        assert await caller.refused(app.client_id, {"target": "add"}) == "rate_limited"
        assert await caller.refused(app.client_id, {"target": "sub"}) == "unknown_capability"


async def test_a_capabilitys_limit_is_shared_by_agents_and_counted_for_each_client(bridge: Bridge) -> None:
    handlers: dict[str, Handler] = {"rare": answer, "often": answer}
    async with (
        bridge.app(handlers, capabilities=[RARE, "often"]) as one,
        bridge.app(handlers, capabilities=[RARE]) as other,
    ):
        assert await statuses(bridge, one, "rare", agent_token("a"), 1) == [200]
        assert await statuses(bridge, one, "rare", agent_token("b"), 2) == [200, 429]
        assert await statuses(bridge, one, "rare", agent_token("a"), 1) == [429]
        assert await statuses(bridge, one, "often", agent_token("a"), 5) == [200] * 5
        assert await statuses(bridge, other, "rare", agent_token("a"), 3) == [200, 200, 429]


async def test_a_rate_limit_of_another_shape_leaves_its_capability_out(bridge: Bridge) -> None:
    async with bridge.app({"add": answer}) as app:
        offered = ["add", {"name": "f", "rateLimit": "5/s"}]
        refused = await app.acknowledged({"type": "capability", "capabilities": offered})
        assert (refused["type"], refused["code"]) == ("error", "invalid_frame")
        ((name, message),) = [(each["name"], each["message"]) for each in refused["details"]["refused"]]
        assert (name, "`rateLimit`" in message) == ("f", True)
        assert (await bridge.call(app.client_id, "f")).status_code == httpx.codes.NOT_FOUND
        assert (await bridge.call(app.client_id, "add")).status_code == httpx.codes.OK


# --- lists that are costly to read ---

_numbers = itertools.count()


def costly(number_of_functions: int = 20) -> Frame:
    """Return a frame with a list that nobody has sent, and that takes up to some tenth of a second to compile."""
    number = next(_numbers)
    functions = [
        {"name": f"f{n}", "parameters": {"anyOf": [{"const": f"{number}-{n}-{i}"} for i in range(1900)]}}
        for n in range(number_of_functions)
    ]
    return {"type": "capability", "capabilities": functions}


async def test_an_application_that_makes_the_gateway_compile_without_end_is_refused_and_others_are_not(
    bridge: Bridge,
) -> None:
    attacker = app_token("mallory")
    async with bridge.app({"add": answer}, token=app_token("ann")) as ann, bridge.app(token=attacker) as app:
        answers = [await app.acknowledged(costly()) for _ in range(6)]
        codes = [frame.get("code", frame["type"]) for frame in answers]
        assert codes[:2] == ["ack", "ack"]
        assert codes[-1] == "rate_limited"
        assert answers[-1]["details"]["retryAfterMs"] > 0
        async with bridge.app(token=attacker) as another:  # a new connection of the same user is no way out
            refused = await another.acknowledged({"type": "capability", "capabilities": ["something new"]})
            assert refused["code"] == "rate_limited"
            known = await another.acknowledged({"type": "capability", "capabilities": ["add"]})
            assert known["type"] == "ack", "what another client has sent costs nothing"
        assert (await bridge.call(ann.client_id, "add")).status_code == httpx.codes.OK
        assert app.close_code is None


async def test_what_was_refused_is_taken_when_the_wait_is_over(bridge: Bridge) -> None:
    async with bridge.app(token=app_token("mallory")) as app:
        refused: Frame = {}
        while refused.get("code") != "rate_limited":
            refused = await app.acknowledged(costly(2) if app.all_received(type="ack")[1:] else costly())
        over = time.monotonic() + refused["details"]["retryAfterMs"] / 1000
        await until(lambda: time.monotonic() > over, 30)
        await app.register(["something new"])
