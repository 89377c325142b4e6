"""The original SDK's form: what it offers, one command at a time for each component, and whose error is whose."""

import json
from typing import Any

import msgspec
import pytest
from support.dialects.published_sdk_peer import make_published_sdk

from gateway.dialects.dialect import CapabilityChange, MessageIds, Reply, Said, Switch
from gateway.dialects.native import NATIVE
from gateway.dialects.published_sdk import MAX_WAITING_BYTES, PublishedSdk
from protocol.errors import InvalidFrame, Overloaded
from protocol.frames import (
    AgentIdentity,
    CancelFrame,
    CapabilityFrame,
    ClientFault,
    CommandFrame,
    EventFrame,
    ResponseFrame,
)

ZOD = {"_def": {"typeName": "ZodObject", "unknownKeys": "strip"}, "~standard": {"version": 1, "vendor": "zod"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
COMPONENTS = [
    {"id": "left", "componentType": "panel", "actions": {"open": {}}},
    {"id": "right", "actions": {"open": {}}},
]


def message(type_: str, **fields: Any) -> bytes:
    return json.dumps({"type": type_, "id": "m1", "timestamp": "2025-01-01T00:00:00.000Z", **fields}).encode()


def client(**offers: Any) -> PublishedSdk:
    """Return the dialect of a client that has registered, components by default."""
    dialect = make_published_sdk()
    dialect.decode(message("register_capabilities", **(offers or {"components": COMPONENTS})), text=True)
    return dialect


def offered(said: Said) -> list[Any]:
    assert isinstance(said, CapabilityFrame | CapabilityChange)
    return [json.loads(bytes(item)) for item in said.capabilities]


def registered(**offers: Any) -> list[Any]:
    *_, said = make_published_sdk().decode(message("register_capabilities", **offers), text=True)
    return offered(said)


def command(ident: str, target: str = "left", action: str = "open", parameters: bytes = b'{"x":1}') -> CommandFrame:
    return CommandFrame(ident, target, action, msgspec.Raw(parameters), 5000, AgentIdentity("agent-1"))


def sent(data: bytes | None) -> Any:
    return None if data is None else json.loads(data)


def done(component: str, type_: str = "component_action_result", **fields: Any) -> bytes:
    return message(type_, **{"correlationId": component, "success": True, **fields})


def answered(said: Said) -> tuple[str, str]:
    assert isinstance(said, ResponseFrame)
    return said.request_id, said.status


# --- how it begins ---


@pytest.mark.parametrize("type_", ["register_capabilities", "update_capabilities"])
def test_first_message_of_the_sdk_switches_a_native_connection(type_: str) -> None:
    (switch,) = NATIVE.make().decode(message(type_, functions=[{"name": "add"}]), text=True)
    assert isinstance(switch, Switch)
    acknowledged, _ = switch.make(lambda: 0.0).decode(switch.data, text=True)
    assert isinstance(acknowledged, Reply)
    assert json.loads(acknowledged.data) == {"type": "connection_ack", "timestamp": "1970-01-01T00:00:00.000Z"}


@pytest.mark.parametrize(
    "data",
    [message("session"), b'{"type":"event","event":"register_capabilities","data":NaN}', b"register_capabilities"],
)
def test_anything_else_is_refused_as_before(data: bytes) -> None:
    with pytest.raises(InvalidFrame):
        NATIVE.make().decode(data, text=True)


def test_connection_is_acknowledged_once() -> None:
    dialect = client()
    assert len(dialect.decode(message("register_capabilities"), text=True)) == 1


# --- what is offered ---


def test_schema_that_lost_its_shape_is_any_object() -> None:
    functions = [{"name": "a", "parameters": ZOD, "tags": ["t"]}, {"name": "b", "parameters": SCHEMA}, {"name": "c"}]
    assert registered(functions=functions) == [
        {"name": "a", "parameters": {"type": "object"}, "tags": ["t"], "type": "function"},
        {"name": "b", "parameters": SCHEMA, "type": "function"},
        {"name": "c", "type": "function"},
    ]


def test_component_with_properties_has_an_action_that_sets_them() -> None:
    [component] = registered(components=[{"id": "p", "properties": ZOD, "actions": {"open": {"parameters": ZOD}}}])
    update = component["actions"].pop("update_component")
    assert update["parameters"] == {"type": "object"}
    assert component == {"id": "p", "type": "component", "actions": {"open": {"parameters": {"type": "object"}}}}


def test_properties_that_are_values_are_kept() -> None:
    [component] = registered(components=[{"id": "p", "properties": {"open": False}}])
    assert component["properties"] == {"open": False}


def test_odd_items_are_left_to_whoever_reads_the_list() -> None:
    assert registered(functions=[7, "x"], components=[None]) == [7, "x", None]


def test_update_joins_what_was_registered() -> None:
    (change,) = client().decode(message("update_capabilities", functions=[{"name": "b"}]), text=True)
    assert isinstance(change, CapabilityChange)
    assert offered(change) == [{"name": "b", "type": "function"}]


def test_more_capabilities_than_are_accepted_are_refused() -> None:
    with pytest.raises(InvalidFrame, match="at most 500"):
        client().decode(message("update_capabilities", functions=[{"name": "a"}] * 501), text=True)


# --- commands ---


def test_function_is_called_by_the_commands_id() -> None:
    told = sent(client().encode(command("r1", "add", "call")))
    assert {name: told[name] for name in ("type", "id", "name", "parameters")} == {
        "type": "call_function",
        "id": "r1",
        "name": "add",
        "parameters": {"x": 1},
    }


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"success": True, "data": {"n": 1}}, "success", None),
        ({"success": True}, "success", None),
        (
            {"success": False, "error": {"code": "INVALID_PARAMETERS", "message": "no", "details": [1]}},
            "error",
            ClientFault("no", "INVALID_PARAMETERS", [1]),
        ),
        ({"success": False}, "error", None),
    ],
)
def test_result_of_a_function_answers_its_command(fields: Any, status: str, error: object) -> None:
    (frame,) = client().decode(message("function_result", correlationId="r1", **fields), text=True)
    assert isinstance(frame, ResponseFrame)
    assert (frame.request_id, frame.status, frame.error) == ("r1", status, error)
    assert json.loads(bytes(frame.result)) == fields.get("data")


def test_second_command_of_a_component_waits_for_the_first() -> None:
    dialect = client()
    assert sent(dialect.encode(command("r1")))["requestId"] == "r1"
    assert dialect.encode(command("r2")) is None
    assert sent(dialect.encode(command("r3", "right")))["requestId"] == "r3"

    answer, following = dialect.decode(done("left"), text=True)
    assert answered(answer) == ("r1", "success")
    assert isinstance(following, Reply)
    assert sent(following.data)["requestId"] == "r2"
    assert [answered(each) for each in dialect.decode(done("left"), text=True)] == [("r2", "success")]
    assert dialect.decode(done("left"), text=True) == ()


def test_late_result_of_a_cancelled_command_is_not_that_of_the_next() -> None:
    dialect = client()
    dialect.encode(command("r1"))
    dialect.encode(command("r2"))
    assert sent(dialect.encode(CancelFrame("r1", "timeout")))["type"] == "cancel"
    (following,) = dialect.decode(done("left"), text=True)
    assert isinstance(following, Reply)
    assert sent(following.data)["requestId"] == "r2"


def test_command_that_is_cancelled_while_it_waits_is_never_sent() -> None:
    dialect = client()
    dialect.encode(command("r1"))
    dialect.encode(command("r2"))
    assert dialect.encode(CancelFrame("r2", "timeout")) is None
    assert [answered(each) for each in dialect.decode(done("left"), text=True)] == [("r1", "success")]


def test_error_belongs_to_the_oldest_command_of_a_component() -> None:
    dialect = client()
    dialect.encode(command("r0", "add", "call"))
    for ident, component in (("r1", "left"), ("r2", "right")):
        dialect.encode(command(ident, component))
    fault = message("error", code="ACTION_NOT_SUPPORTED", message="no")
    (first,) = dialect.decode(fault, text=True)
    assert isinstance(first, ResponseFrame)
    assert (first.request_id, first.error) == ("r1", ClientFault("no", "ACTION_NOT_SUPPORTED"))
    (second,) = dialect.decode(message("error", code=[], message=7), text=True)
    assert answered(second) == ("r2", "error")
    assert dialect.decode(fault, text=True) == ()


def test_properties_are_set_by_a_frame_of_their_own() -> None:
    dialect = client(components=[{"id": "left", "properties": ZOD}])
    told = sent(dialect.encode(command("r1", action="update_component")))
    assert (told["type"], told["id"], told["properties"]) == ("update_component", "left", {"x": 1})
    (answer,) = dialect.decode(done("left", "component_update_result"), text=True)
    assert answered(answer) == ("r1", "success")


def test_action_of_that_name_of_the_components_own_is_called() -> None:
    dialect = client(components=[{"id": "left", "properties": {}, "actions": {"update_component": {}}}])
    assert sent(dialect.encode(command("r1", action="update_component")))["type"] == "call_component_action"


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"component_action_result","correlationId":"left","success":true,"data":NaN}',
        b'{"type":"component_action_result","correlationId":"left"}',
        b'{"type":"component_action_result","correlationId":"left","success":true,"data":' + b"[" * 3000,
        b'{"type":"component_action_result","correlationId":"left","success":true,"data":1e400}',
    ],
)
def test_unreadable_result_of_a_component_fails_its_command_and_the_next_is_sent(data: bytes) -> None:
    dialect = client()
    dialect.encode(command("r1"))
    dialect.encode(command("r2"))
    answer, following = dialect.decode(data, text=True)
    assert isinstance(answer, ResponseFrame)
    assert isinstance(answer.error, ClientFault)
    assert (answer.request_id, answer.error.code) == ("r1", "invalid_response")
    assert isinstance(following, Reply)


def test_commands_that_wait_are_bounded_in_bytes() -> None:
    dialect, large = client(), b'"%b"' % (b"x" * MAX_WAITING_BYTES)
    dialect.queue.require_room(len(large))
    dialect.encode(command("r1", parameters=large))
    dialect.queue.require_room(len(large))
    dialect.encode(command("r2", parameters=large))
    with pytest.raises(Overloaded):
        dialect.queue.require_room(1)
    dialect.decode(done("left"), text=True)
    dialect.queue.require_room(len(large))


def test_native_frames_are_understood_besides() -> None:
    (event,) = client().decode(b'{"type":"event","event":"saved"}', text=True)
    assert event == EventFrame("saved")


def test_heartbeats_of_sessions_and_results_of_queries_say_nothing() -> None:
    for type_ in ("session", "capabilities_result"):
        assert client().decode(message(type_, action="heartbeat"), text=True) == ()


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (b'{"type":"function_result","correlationId":"r1","success":"yes"}', ("r1",)),
        (b'{"type":"function_result","correlationId":"r1","success":true,"data":NaN}', ("r1",)),
        (b'{"type":"function_result","success":true,"data":[%b],"correlationId":"r1"}' % (b"NaN," * 2000), ("r1",)),
        (b'{"type":"function_result","correlationId":7}', ()),
        (b'{"type":"response","requestId":"r1"}', ("r1",)),
        (b'{"type":"component_action_result","correlationId":"r1"}', ()),
        (b"nonsense", ()),
    ],
)
def test_unreadable_result_names_its_command(data: bytes, answers: tuple[str, ...]) -> None:
    assert client().identify(data) == MessageIds(None, answers)
