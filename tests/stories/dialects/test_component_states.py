"""What components say of their state stands in their records."""

from typing import Any

import pytest
from support.played.app import App
from support.processes.bridge import Bridge
from support.wait import until

PANEL = {
    "type": "component",
    "id": "panel",
    "componentType": "panel",
    "properties": {"open": False, "n": 0},
    "actions": ["x"],
}
FUNCTION = {"type": "function", "name": "panelOpen", "parameters": {"type": "object", "required": ["a"]}}


async def properties(bridge: Bridge, app: App) -> Any:
    found = await bridge.capabilities()
    return next((one.get("properties") for one in found.get(app.client_id, []) if one.get("id") == "panel"), None)


async def state(app: App, source: str = "panel", **values: Any) -> None:
    await app.send({"type": "event", "event": "state_changed", "source": source, "data": {"properties": values}})


async def test_properties_in_the_record_follow_the_component(bridge: Bridge) -> None:
    async with bridge.app({}, capabilities=[PANEL, FUNCTION]) as app:
        await state(app, open=True)
        await state(app, extra={"a": [1]})

        async def followed() -> bool:
            return bool(await properties(bridge, app) == {"open": True, "n": 0, "extra": {"a": [1]}})

        await until(followed)
        assert (await bridge.call(app.client_id, "panelOpen")).json()["code"] == "invalid_parameters"


async def test_fast_changes_are_put_together_and_each_event_flows(bridge: Bridge) -> None:
    """The record of a list of 500 functions is not written two thousand times."""
    many = [{"name": f"f{number}", "description": "x" * 200} for number in range(400)]
    async with bridge.app({}, capabilities=[PANEL, *many]) as app:
        async with bridge.http.stream("GET", "/api/events", params={"event": "state_changed"}) as stream:
            for number in range(1, 2001):
                await state(app, n=number)
            count = 0
            async for line in stream.aiter_lines():
                count += line.startswith("data: ") and '"state_changed"' in line
                if count == 2000:
                    break

        async def followed() -> bool:
            return bool(await properties(bridge, app) == {"open": False, "n": 2000})

        await until(followed, 15)
        assert app.all_received(type="error") == []


@pytest.mark.parametrize(
    "event",
    [
        {"source": "nowhere", "data": {"properties": {"open": True}}},
        {"source": "panelOpen", "data": {"properties": {"open": True}}},
        {"data": {"properties": {"open": True}}},
        {"source": "panel"},
        {"source": "panel", "data": {"properties": 7}},
        {"source": "panel", "data": [1]},
    ],
)
async def test_other_events_of_that_name_are_only_events(bridge: Bridge, event: dict[str, Any]) -> None:
    async with bridge.app({}, capabilities=[PANEL, FUNCTION]) as app:
        answer = await app.acknowledged({"type": "event", "event": "state_changed", **event})
        assert answer["type"] == "ack"
        await bridge.listed(app.client_id)
        assert await properties(bridge, app) == {"open": False, "n": 0}


async def test_state_that_is_nested_too_deeply_is_refused(bridge: Bridge) -> None:
    async with bridge.app({}, capabilities=[PANEL]) as app:
        deep: Any = 1
        for _ in range(70):
            deep = [deep]
        data = {"properties": {"x": deep}}
        answer = await app.acknowledged({"type": "event", "event": "state_changed", "source": "panel", "data": data})
        assert (answer["code"], answer["message"]) == (
            "invalid_frame",
            "`data.properties`: nested more than 64 levels deep",
        )
