"""Agents of the original project's SDK: what they ask for in our words, and our answers in theirs."""

import json
from typing import Any

import msgspec
import pytest

from agent_api.clients.overview import OverviewQuery
from agent_api.socket.frames import (
    AgentAuthFrame,
    AgentCancelFrame,
    AgentCommandFrame,
    AgentErrorFrame,
    AgentProgressFrame,
    AgentResponseFrame,
    AgentSaid,
    AskOverviewFrame,
    LeaveFrame,
    OverviewFrame,
    SignOfLifeFrame,
)
from agent_api.socket.published_sdk import SdkAgent
from protocol.discovery import Query
from protocol.errors import ErrorBody, InvalidFrame
from protocol.frames import AckFrame

BASE = {"timestamp": "2026-01-01T00:00:00.000Z", "sessionId": "s"}


def agent() -> SdkAgent:
    return SdkAgent(lambda: 0.0)


def said(dialect: SdkAgent, **frame: Any) -> AgentSaid:
    return dialect.decode(json.dumps({**BASE, **frame}).encode(), text=True)


def commanded(dialect: SdkAgent, **frame: Any) -> AgentCommandFrame:
    found = said(dialect, **frame)
    assert isinstance(found, AgentCommandFrame)
    return found


def answered(dialect: SdkAgent, ident: str, **fields: Any) -> dict[str, Any]:
    frame = AgentResponseFrame(id=ident, request_id="r", status="success", duration_ms=5, client_id="c1", **fields)
    return dict(json.loads(dialect.encode(frame) or b""))


def test_function_is_called_and_answered_by_the_agents_id() -> None:
    dialect = agent()
    frame = commanded(dialect, type="call_function", id="m1", name="add", parameters={"a": 1}, clientId="c1")
    assert (frame.command.target, frame.command.action, frame.client_id) == ("add", None, "c1")
    assert (json.loads(bytes(memoryview(frame.command.parameters))), frame.progress) == ({"a": 1}, False)
    result = answered(dialect, frame.id, result=msgspec.Raw(b"3"))
    assert result.pop("id")
    assert result == {
        "type": "function_result",
        "correlationId": "m1",
        "success": True,
        "data": 3,
        "clientId": "c1",
        "requestId": "r",
        "durationMs": 5,
        "timestamp": "1970-01-01T00:00:00.000Z",
    }


def test_component_id_is_the_correlation_unless_the_component_is_named_besides() -> None:
    dialect = agent()
    first = commanded(dialect, type="call_component_action", id="menu", action="open")
    second = commanded(dialect, type="call_component_action", id="menu", action="close", parameters={"x": 1})
    third = commanded(dialect, type="update_component", id="m3", componentId="menu", properties={"count": 1})
    assert [(each.command.target, each.command.action) for each in (first, second, third)] == [
        ("menu", "open"),
        ("menu", "close"),
        ("menu", "update_component"),
    ]
    assert json.loads(bytes(memoryview(third.command.parameters))) == {"count": 1}
    kinds = [(answered(dialect, each.id)["type"], each.id) for each in (third, second, first)]
    assert [kind for kind, _ in kinds] == [
        "component_update_result",
        "component_action_result",
        "component_action_result",
    ]
    assert len({ident for _, ident in kinds}) == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ErrorBody("command_failed", "no", retryable=False, details={"code": "ACTION_NOT_SUPPORTED"}),
            {"code": "ACTION_NOT_SUPPORTED", "message": "no", "details": {"code": "ACTION_NOT_SUPPORTED"}},
        ),
        (ErrorBody("command_failed", "no", retryable=False), {"code": "command_failed", "message": "no"}),
        (
            ErrorBody("timeout", "late", retryable=False, details={"code": "x"}),
            {"code": "timeout", "message": "late", "details": {"code": "x"}},
        ),
    ],
)
def test_failure_is_a_result_in_the_applications_own_words(error: ErrorBody, expected: dict[str, Any]) -> None:
    dialect = agent()
    ident = commanded(dialect, type="call_function", id="m1", name="add").id
    result = answered(dialect, ident, error=error)
    assert (result["success"], result["error"], result["correlationId"]) == (False, expected, "m1")


@pytest.mark.parametrize(
    ("code", "told"), [("client_not_found", "client_not_found"), ("ambiguous_client", "missing_client_id")]
)
def test_command_with_nobody_to_go_to_is_an_error(code: str, told: str) -> None:
    dialect = agent()
    ident = commanded(dialect, type="call_function", id="m1", name="add").id
    result = answered(dialect, ident, error=ErrorBody(code, "nobody", retryable=False))
    assert (result["type"], result["code"], result["message"], result["correlationId"]) == (
        "error",
        told,
        "nobody",
        "m1",
    )


def test_query_says_what_is_wanted_and_is_answered_by_its_id() -> None:
    dialect = agent()
    filters = {
        "functionTags": ["a"],
        "functionAuthLevel": "user",
        "componentType": "form",
        "componentTags": ["b"],
        "componentAuthLevel": "admin",
        "componentPath": "/cart",
    }
    asked = said(dialect, type="query_capabilities", id="q1", filters=filters, after="c9")
    assert isinstance(asked, AskOverviewFrame)
    components = Query(component_type="form", tags=("b",), auth_level="admin", path="/cart")
    assert asked.wanted == OverviewQuery(Query(tags=("a",), auth_level="user"), components, "c9")
    assert not asked.follow
    told = json.loads(dialect.encode(OverviewFrame(asked.id, [msgspec.Raw(b'{"name":"f"}')], [], "c3")) or b"")
    assert told == {
        "type": "capabilities_result",
        "id": "q1",
        "correlationId": "q1",
        "timestamp": "1970-01-01T00:00:00.000Z",
        "functions": [{"name": "f"}],
        "components": [],
        "after": "c3",
    }


def test_all_capabilities_are_told_from_the_beginning() -> None:
    dialect = agent()
    (asked,) = dialect.opening()
    assert isinstance(asked, AskOverviewFrame)
    assert (asked.wanted, asked.follow) == (OverviewQuery(), True)
    told = json.loads(dialect.encode(OverviewFrame(asked.id, [], [msgspec.Raw(b'{"id":"m"}')], None)) or b"")
    now = "1970-01-01T00:00:00.000Z"
    lists = {"functions": [], "components": [{"id": "m"}], "lastUpdated": now}
    assert told == {"type": "capabilities_updated", "capabilities": lists, "timestamp": now}


def test_session_auth_and_cancel() -> None:
    dialect = agent()
    assert said(dialect, type="session", action="heartbeat", id="h") == SignOfLifeFrame()
    assert said(dialect, type="session", action="disconnect", id="h") == LeaveFrame()
    fresh = said(dialect, type="auth", token="t", id="a1")
    assert isinstance(fresh, AgentAuthFrame)
    assert dialect.encode(AckFrame(fresh.id or "")) == b'{"type":"ack","id":"a1"}'
    unheard = said(dialect, type="auth", token="t")
    assert isinstance(unheard, AgentAuthFrame)
    assert dialect.encode(AckFrame(unheard.id or "")) is None
    commanded(dialect, type="call_component_action", id="menu", action="open")
    second = commanded(dialect, type="call_component_action", id="menu", action="open")
    assert said(dialect, type="cancel", id="menu") == AgentCancelFrame(second.id)
    assert said(dialect, type="cancel", id="other") == SignOfLifeFrame()


def test_progress_has_no_word() -> None:
    assert agent().encode(AgentProgressFrame(id="1", client_id="c", seq=1, progress=0.5)) is None


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"type": "call_function", "name": "f", "clientID": "c1"}, "clientId"),
        ({"type": "call_function", "name": "f", "client_id": "c1"}, "clientId"),
        ({"type": "call_function", "name": "f", "args": {}}, "parameters"),
        ({"type": "call_function", "name": ""}, "name"),
        ({"type": "call_function", "name": "f", "id": 3}, "id"),
        ({"type": "call_function", "name": "f", "id": "x" * 257}, "id"),
        ({"type": "call_component_action", "action": "f"}, "`id`: the id of a component"),
        ({"type": "query_capabilities", "filters": {"tags": []}}, "tags"),
        ({"type": "query_capabilities", "filters": {"functionTags": ["x"] * 65}}, "functionTags"),
        ({"type": "register_capabilities", "functions": []}, "an application connects to the gateway"),
        ({"type": "command"}, "type"),
    ],
)
def test_bad_frame_is_refused_with_the_field_named(frame: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidFrame, match=sentence):
        said(agent(), **frame)


@pytest.mark.parametrize("data", [b"[" * 3000, b'{"type":"call_function"', b"\xff", b'"x"', b""])
def test_what_is_no_frame_is_refused_and_leaves_nothing_behind(data: bytes) -> None:
    dialect = agent()
    with pytest.raises(InvalidFrame):
        dialect.decode(data, text=True)
    with pytest.raises(InvalidFrame, match="binary"):
        dialect.decode(data, text=False)
    assert dialect.identify(data) is None


def test_refusal_names_the_agents_id_once_and_is_forgotten() -> None:
    dialect = agent()
    refused = dialect.identify(b'{"type":"call_function","id":"m7"}')
    error = AgentErrorFrame("invalid_frame", "no", retryable=False, id=refused)
    assert json.loads(dialect.encode(error) or b"")["correlationId"] == "m7"
    assert "correlationId" not in json.loads(dialect.encode(error) or b"")
    for ident in (3, "x" * 257):
        assert dialect.identify(json.dumps({"id": ident}).encode()) is None
