"""The protocol document's form: who speaks it, and what its commands look like."""

import json
from typing import Any

import msgspec
import pytest

from gateway.dialects.json_frames import component_ids
from gateway.dialects.native import NATIVE, Documented
from protocol.frames import AckFrame, AgentIdentity, CancelFrame, CapabilityFrame, CommandFrame

NOW = 1618825205.0


def offer(*capabilities: Any) -> CapabilityFrame:
    return CapabilityFrame([msgspec.Raw(json.dumps(one).encode()) for one in capabilities])


def client(*capabilities: Any) -> Documented:
    return Documented(offer(*capabilities), lambda: NOW)


def sent(dialect: Documented, target: str, action: str | None = None) -> Any:
    frame = CommandFrame("r1", target, action, msgspec.Raw(b'{"x":1}'), 5000, AgentIdentity("agent-1"))
    return json.loads(dialect.encode(frame) or b"")


def test_function_is_called_and_a_component_acts() -> None:
    dialect = client("getWeather", {"type": "component", "id": "submit-button", "actions": ["click"]})
    common = {"id": "r1", "requestId": "r1", "timestamp": 1618825205000, "type": "command"}
    besides = {"parameters": {"x": 1}, "timeoutMs": 5000, "agent": {"id": "agent-1"}}
    assert sent(dialect, "getWeather") == {**common, **besides, "command": "call", "target": "getWeather"}
    assert sent(dialect, "submit-button", "click") == {
        **common,
        **besides,
        "command": "action",
        "target": "submit-button",
        "action": "click",
    }


def test_components_are_those_of_the_last_list() -> None:
    dialect = client()
    assert sent(dialect, "panel", "open")["command"] == "call"
    dialect.decode(
        b'{"type":"capability","capabilities":[{"type":"button","id":"panel","actions":["open"]}]}', text=True
    )
    assert sent(dialect, "panel", "open")["command"] == "action"
    dialect.decode(b'{"type":"capability","capabilities":[]}', text=True)
    assert sent(dialect, "panel", "open")["command"] == "call"


def test_other_frames_are_the_native_ones() -> None:
    for frame in (AckFrame("1"), CancelFrame("r1", "timeout")):
        assert client().encode(frame) == NATIVE.make().encode(frame)


@pytest.mark.parametrize(
    ("capability", "ids"),
    [
        ({"type": "component", "id": "a"}, {"a"}),
        ({"id": "a", "actions": {}}, {"a"}),
        ({"type": "button", "id": "a", "actions": None}, {"a"}),
        ({"type": "function", "name": "a"}, set()),
        ({"id": "a"}, set()),
        ({"type": "component", "id": 7}, set()),
        ("a", set()),
        (None, set()),
    ],
)
def test_components_are_known_by_their_ids(capability: Any, ids: set[str]) -> None:
    assert component_ids(offer(capability)) == ids
