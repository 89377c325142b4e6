"""The OpenAPI document against the application and the types that it describes."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from starlette.routing import Route
from support.settings import settings_for

from agent_api.app import ToolParts, ordinary_routes
from agent_api.commands.orders import MAX_ASKED, CommandResult, read_order
from agent_api.http.connections import SDK_SOCKET_PATHS
from agent_api.http.problems import Problem, http_answer_of
from agent_api.mcp.endpoint import PATH as MCP_PATH
from agent_api.openapi.audit import PATH as AUDIT_PATH
from agent_api.openapi.document import Application
from agent_api.openapi.events import PATH as EVENTS_PATH
from agent_api.openapi.schemas import SCHEMAS
from agent_api.routes.agents import AgentRoutes
from agent_api.routes.command import CommandEndpoint
from agent_api.routes.discovery import DiscoveryRoutes
from agent_api.routes.health import HealthRoutes
from agent_api.routes.tools import ToolCallEndpoint, ToolRoutes
from agent_api.settings import ApiSettings
from protocol.errors import BY_CODE, MEANINGS, BridgeError, Code
from protocol.records import ClientRecord
from protocol.runtime.tokens import Verifier

OTHERS_FOR_AGENTS = (MCP_PATH, *SDK_SOCKET_PATHS)
UNDESCRIBED = {"/openapi.json", "/docs", "/docs/start.js"}


@pytest.fixture
async def application() -> Application:
    """The routes, put together from parts that nobody calls."""
    settings = settings_for(ApiSettings)
    unused: Any = None
    command = CommandEndpoint(settings, Verifier(settings), unused, unused, unused)
    readers = {EVENTS_PATH: unused, AUDIT_PATH: unused}
    health = HealthRoutes(unused, asyncio.Event(), unused)
    tools = ToolParts(ToolRoutes(unused, unused), ToolCallEndpoint(settings, command, unused), unused, unused)
    return ordinary_routes(
        command, readers, DiscoveryRoutes(unused, unused, unused), AgentRoutes(unused, unused), health, tools
    )


@pytest.fixture
def document(application: Application) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(json.dumps(application.openapi()))
    return described


def test_every_route_is_described_and_no_other(application: Application, document: dict[str, Any]) -> None:
    served = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in application.routes
        if isinstance(route, Route) and route.path not in UNDESCRIBED
        for method in (route.methods or set()) - {"HEAD"}  # described once, for all of GET
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described == served


def test_everything_below_api_asks_for_a_token(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            assert ("security" in operation) == (path.startswith("/api/") or path in OTHERS_FOR_AGENTS), path
            if "security" in operation:
                assert {"401", "403"} <= set(operation["responses"])


def test_schemas_are_sound_and_references_lead_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in schemas:
        jsonschema_rs.meta.validate(schemas[name])
    components = {kind: document["components"][kind] for kind in ("schemas", "examples")}
    named = {f"#/components/{kind}/{name}" for kind, those in components.items() for name in those}
    assert references(document) == named


def test_every_refusal_shows_an_example_of_each_of_its_codes(document: dict[str, Any]) -> None:
    examples, shown = document["components"]["examples"], set()
    for path, method, status, response in responses_of(document):
        content = response.get("content", {}).get("application/json", {})
        if content.get("schema") != {"$ref": "#/components/schemas/Problem"}:
            assert int(status) < 400, (path, method, status)
            continue
        names = [reference["$ref"].rpartition("/")[2] for reference in content["examples"].values()]
        shown.update(names)
        for value in (examples[name]["value"] for name in names):
            validator(document, "Problem").validate(value)
            assert f"`{value['code']}`" in response["description"] or path == "/readyz"
            if value["code"] != Code.INVALID_REQUEST:
                assert MEANINGS[Code(value["code"])].http_status == int(status)
        assert len(names) == max(1, response["description"].count("`, `") + 1)
    assert shown == set(examples)
    assert {examples[name]["value"]["code"] for name in shown} == {*Code} - {Code.INVALID_FRAME}


def test_every_route_is_in_a_group_that_is_explained(document: dict[str, Any]) -> None:
    groups = [operation["tags"] for item in document["paths"].values() for operation in item.values()]
    assert all(len(group) == 1 for group in groups)
    assert {group for [group] in groups} == {group["name"] for group in document["tags"] if group["description"]}


def test_command_describes_every_code(document: dict[str, Any]) -> None:
    responses = document["paths"]["/api/command"]["post"]["responses"]
    described = " ".join(response["description"] for response in responses.values())
    assert all(f"`{code.value}`" in described for code in Code if code is not Code.INVALID_FRAME)


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_refusals_are_as_described(document: dict[str, Any], kind: type[BridgeError]) -> None:
    answer = http_answer_of(kind("why", details={"a": 1}), "r-1")
    validator(document, "Problem").validate(json.loads(answer.body))


def test_answers_are_as_described(document: dict[str, Any]) -> None:
    result = CommandResult(request_id="r", client_id="c1", result=msgspec.Raw(b"[1]"), duration_ms=3)
    validator(document, "CommandResult").validate(json.loads(msgspec.json.encode(result)))
    record = ClientRecord(
        client_id="c1",
        tenant="default",
        gateway_id="g",
        principal="ann",
        capabilities=msgspec.Raw(b'[{"type": "function", "name": "f"}]'),
        revision=1,
        connected_at="2026-01-01T00:00:00.000Z",
    )
    validator(document, "ClientRecord").validate(json.loads(msgspec.json.encode(record)))


def test_described_example_is_accepted(document: dict[str, Any]) -> None:
    example = SCHEMAS["CommandBody"]["example"]
    validator(document, "CommandBody").validate(example)
    assert read_order(json.dumps(example).encode(), 1, 10_000).command.target == "addTodo"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": {}},
        {"command": {"target": ""}},
        {"command": {"target": "f", "parameters": []}},
        {"command": {"target": "f", "timeoutMs": 0}},
        {"command": {"target": "f"}, "timeoutMs": -1},
        {"command": {"target": "f"}, "any": 1},
        {"command": {"target": "f"}, "any": True, "clientId": "c1"},
        {"command": {"target": "f"}, "any": True, "clientIds": ["c1"]},
        {"command": {"target": "f"}, "acrossUsers": True},
        {"command": {"target": "f"}, "match": {}, "acrossUsers": True},
        {"command": {"target": "f"}, "any": False, "acrossUsers": True},
        {"command": {"target": "f"}, "client_id": "c1"},
        {"command": {"target": "f", "arguments": {}}},
        {"command": {"target": "f"}, "clientId": "c1", "clientIds": ["c2"]},
        {"command": {"target": "f"}, "clientIds": []},
        {"command": {"target": "f"}, "clientIds": ["c1", "c1"]},
        {"command": {"target": "f"}, "clientIds": [str(number) for number in range(MAX_ASKED + 1)]},
        {"command": {"target": "f"}, "clientIds": ["c1"], "match": {}},
        {"command": {"target": "f"}, "clientIds": ["c1"], "gather": 0},
        {"command": {"target": "f"}, "clientIds": ["c1"], "gather": "some"},
        {"command": {"target": "f"}, "match": {"usr": "ann"}},
        {"command": {"target": "f"}, "match": {"metadata": {"room": None}}},
        {"command": {"target": "f"}, "gather": "first"},
        {"command": {"target": "f"}, "any": True, "gather": "first"},
        {"command": {"target": "f", "requestId": ""}},
    ],
)
def test_what_is_refused_is_described_as_wrong(document: dict[str, Any], body: dict[str, Any]) -> None:
    assert not validator(document, "CommandBody").is_valid(body)
    with pytest.raises(BridgeError):
        read_order(json.dumps(body).encode(), 1, 1)


@pytest.mark.parametrize(
    "whom",
    [
        {"clientId": "c1", "any": False, "clientIds": None, "match": None, "gather": None},
        {"any": True, "clientId": None},
        {"any": True, "match": {"user": "ann"}},
        {"any": True, "match": None, "acrossUsers": True},
        {"clientIds": ["c1", "c2"], "gather": 5},
        {"clientIds": ["c1"], "gather": "all", "any": False},
        {"match": {}, "gather": None},
        {"match": {"user": "ann", "metadata": {"room": 1, "big": True}}, "gather": "first"},
    ],
)
def test_each_way_to_say_whom_is_described_and_accepted(document: dict[str, Any], whom: dict[str, Any]) -> None:
    body = {"command": {"target": "f"}, **whom}
    validator(document, "CommandBody").validate(body)
    read_order(json.dumps(body).encode(), 1, 1)


def test_problem_has_the_documented_fields_alone() -> None:
    names = [field.encode_name for field in msgspec.structs.fields(Problem)]
    assert names == ["error", "code", "message", "retryable", "requestId", "details"]


def validator(document: dict[str, Any], name: str) -> Any:
    components = {"components": document["components"]}
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", **components})


def responses_of(document: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                yield path, method, status, response


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(references(inner) for inner in value.values()))
    return set().union(*(references(inner) for inner in value)) if isinstance(value, list) else set()
