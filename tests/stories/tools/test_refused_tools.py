"""What is recorded of a refused call of a tool: the target that was meant, whichever way the call came."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.mcp_client import mcp_client
from support.nats.audit import Record, recorded
from support.nats.nats_server import NatsServer
from support.processes.bridge import Bridge, running_bridge
from support.settings import app_token

Refused = tuple[str, dict[str, Any], str, list[str | None]]

CART = {"type": "component", "id": "cart", "actions": ["clear"]}
# The name of a tool, its arguments, the code of the refusal, and the target and action that are recorded.
REFUSED: list[Refused] = [
    ("nothing", {}, "unknown_capability", ["nothing", None]),
    ("x" * 100, {}, "unknown_capability", ["x" * 64, None]),
    ("cart_clear", {}, "ambiguous_client", ["cart", "clear"]),
    ("cart_clear", {"_client": "nobody"}, "client_not_found", ["cart", "clear"]),
    ("cart_clear", {"_client": 7}, "invalid_parameters", ["cart", "clear"]),
    ("find_tools", {"words": 1}, "invalid_parameters", ["find_tools", None]),
]


@pytest.fixture
async def two_carts(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge of its own, with the same component at two users."""
    async with (
        running_bridge(tmp_path, private_nats.url) as bridge,
        bridge.app(capabilities=[CART], token=app_token("ann")) as ann,
        bridge.app(capabilities=[CART], token=app_token("bob")) as bob,
    ):
        await bridge.listed(ann.client_id, bob.client_id)
        yield bridge


def told(records: list[Record]) -> list[Any]:
    return [[record["outcome"], record.get("target"), record.get("action")] for record in records]


@pytest.mark.parametrize(("name", "arguments", "code", "target"), REFUSED)
async def test_over_http(two_carts: Bridge, name: str, arguments: Any, code: str, target: Any) -> None:
    answer = await two_carts.http.post(f"/api/tools/{name}", json=arguments)
    assert answer.json()["code"] == code, answer.text
    assert told(await recorded(two_carts.nats_url, 1)) == [[code, *target]]


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_over_mcp(two_carts: Bridge, mode: str) -> None:
    inner: Refused = ("call_tool", {"name": "cart_clear"}, "ambiguous_client", ["cart", "clear"])
    async with mcp_client(f"{two_carts.agent_apis[0].url}/mcp", mode) as client:
        for number, (name, arguments, code, target) in enumerate([*REFUSED, inner], 1):
            if code == "unknown_capability":
                with pytest.raises(Exception, match="there is no tool"):
                    await client.call_tool(name, arguments)
            else:
                assert (await client.call_tool(name, arguments)).is_error
            records = await recorded(two_carts.nats_url, number)
            assert told(records[number - 1 :]) == [[code, *target]]
