"""The running agent API against its own OpenAPI document: every answer to schemathesis is one that the document has.

schemathesis reads the document and derives requests from it: the examples, the bounds of every value, values that are
wrong in one way, methods that a path does not take, requests without a token, chains of requests. It runs as a process
of its own, always with the same choices, and leaves a record of all traffic (HAR), in which the test looks for what
schemathesis does not ask: headers that nobody described, and faults that are not the application's.
"""

import asyncio
import json
import re
import sysconfig
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import jsonschema_rs
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import AppFault, Handler, never
from support.processes.bridge import Bridge, running_bridge
from support.processes.child import Process
from support.settings import admin_token, agent_token, app_token
from websockets.exceptions import ConnectionClosedError

RUN_SECONDS = 120
COMMAND, KEY_HEADER = "/api/command", "the header Idempotency-Key"
EVERY_PHASE = "examples,coverage,fuzzing,stateful"
BUT_FOR_STREAMS = ("--exclude-path", "/api/events")  # it has no end; tests/nats/agent_api/events/ reads it
UNPROMISED = "use_after_free"  # a client is out of the lists within a second of its end, as the document says
GENERAL_HEADERS = {"cache-control", "connection", "content-length", "content-type", "date", "vary"}
GENERAL_HEADERS |= {"x-content-type-options"}
CAUSED_BY_THE_APPLICATION = {"command_failed", "timeout"}
CONFIG = """
color = false
continue-on-failure = true
request-retries = 0
request-timeout = 10.0
warnings = false

[cache]
enabled = false

[generation]
deterministic = true
max-examples = 30
database = "none"

[output.sanitization]
enabled = false

[headers]
{headers}

[dictionaries.targets]
values = ["addTodo", "fail", "never", "locked", "shared"]

[dictionaries.timeouts]
values = [100, 200, 150.0]

[dictionaries.waits]
values = [100, 200]

[dictionaries.gathers]
values = ["first", "all", 1, 2]

[[operations]]
include-path = "/api/command"

[operations.parameters]
"body.timeoutMs" = {{ dictionary = "timeouts", probability = 1.0 }}
"body.command.target" = {{ dictionary = "targets", probability = 0.8 }}
"body.gather" = {{ dictionary = "gathers", probability = 1.0 }}
"body.command.timeoutMs" = {{ dictionary = "timeouts", probability = 1.0 }}

[operations.checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "500", "504"] # what the application causes; the test looks at the codes

# No schema can say that a header and a field may not name different keys; the test looks at the sentences.
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "429", "500", "504"]

[[operations]]
include-path = "/api/tools/{{name}}"

[operations.parameters]
"query.timeoutMs" = {{ dictionary = "waits", probability = 1.0 }}

[operations.checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "500", "504"] # as above

[[operations]]
include-path-regex = "^(/api/ws|(/api)?/agent-bridge)$"

[operations.checks.positive_data_acceptance]
expected-statuses = ["401", "403", "426"] # OpenAPI has no word for the headers of an upgrade
"""
TODO_SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}}
OFFERED_BY_BOTH = [{"type": "component", "id": "shared", "componentType": "text", "actions": ["read"]}]
OFFERED_BY_ONE = [
    {"type": "function", "name": "addTodo", "parameters": TODO_SCHEMA},
    {"type": "function", "name": "locked", "permissions": ["keys"]},
    "fail",
    "never",
]


class Exchange(NamedTuple):
    """A request that schemathesis has sent, and its answer."""

    method: str
    path: str
    status: int
    headers: dict[str, str]
    body: str
    sent: str = ""


def fail(parameters: dict[str, Any]) -> None:
    raise AppFault("the document is locked", "locked")


HANDLERS: dict[str, Handler] = {
    "addTodo": lambda parameters: parameters,
    "shared": lambda parameters: parameters,
    "fail": fail,
    "never": never,
}


@pytest.fixture
async def served(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge with two applications, which come back when an administrator disconnects them."""
    running = running_bridge(tmp_path / "bridge", private_nats.url, command_timeout_ms=100)
    async with running as bridge, asyncio.TaskGroup() as tasks:
        ids = asyncio.Queue[str]()
        stays = [
            tasks.create_task(stay_connected(bridge, ids, capabilities=capabilities))
            for capabilities in (OFFERED_BY_BOTH, OFFERED_BY_BOTH + OFFERED_BY_ONE)
        ]
        async with asyncio.timeout(10):
            await bridge.listed(await ids.get(), await ids.get())
        yield bridge
        for stay in stays:
            stay.cancel()


async def stay_connected(bridge: Bridge, ids: asyncio.Queue[str], **options: Any) -> None:
    while True:
        try:
            async with bridge.app(HANDLERS, app={"name": "todo"}, metadata={"room": "1"}, **options) as app:
                ids.put_nowait(app.client_id)
                await app.closed(RUN_SECONDS)
        except* ConnectionClosedError as gone:  # disconnected before it could register
            assert "disconnected by an administrator" in str(gone.exceptions)  # noqa: PT017


async def explored(bridge: Bridge, folder: Path, token: str | None, phases: str, *options: str) -> list[Exchange]:
    """Let schemathesis explore the agent API with this token, and return what passed; it must have no complaint."""
    config, record, described = (folder / name for name in ("schemathesis.toml", "traffic.har", "openapi.json"))
    described.write_text(json.dumps(await description(bridge)))
    headers = f'Authorization = "Bearer {token}"' if token else ""
    config.write_text(CONFIG.format(headers=headers))
    process = Process("schemathesis", folder, {})
    process.command = [
        str(Path(sysconfig.get_path("scripts")) / "schemathesis"),
        *("--config-file", str(config), "run", str(described), "--url", bridge.agent_apis[0].url),
        *options,
        *("--exclude-checks", UNPROMISED, "--phases", phases, "--report", "har", "--report-har-path", str(record)),
    ]
    try:
        assert await process.launch().ended(RUN_SECONDS) == 0, process.out + process.log
    finally:
        process.end()
    return [exchange(entry) for entry in json.loads(record.read_text())["log"]["entries"]]


async def description(bridge: Bridge) -> dict[str, Any]:
    """Return the agent API's own description, without two things that OpenAPI cannot express.

    One header must agree with a field of the body: the tests of idempotency keys look after that. And `/mcp` speaks
    JSON-RPC: tests/nats/agent_api/test_mcp.py and the official clients look after that.
    """
    told: dict[str, Any] = (await bridge.http.get("/openapi.json")).json()
    del told["paths"]["/api/command"]["post"]["parameters"]
    del told["paths"]["/mcp"]
    return told


def exchange(entry: dict[str, Any]) -> Exchange:
    request, response = entry["request"], entry["response"]
    headers = {header["name"].lower(): header["value"] for header in response["headers"]}
    path = urlsplit(request["url"]).path
    answered, sent = response["content"].get("text", ""), request.get("postData", {}).get("text", "")
    return Exchange(request["method"], path, response["status"], headers, answered, sent)


class Document:
    """The OpenAPI document as a judge of answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.paths: dict[str, dict[str, Any]] = document["paths"]
        self._components = document["components"]

    @property
    def operations(self) -> set[tuple[str, str]]:
        """All that the document describes, as method and path."""
        return {(method.upper(), path) for path, item in self.paths.items() for method in item}

    def accepts_body(self, sent: str) -> bool:
        """Tell whether this is a body as the document wants one of commands."""
        try:
            return self._complaint_about_schema({"$ref": "#/components/schemas/CommandBody"}, sent) is None
        except ValueError:
            return False

    def template(self, path: str) -> str:
        """Return the path of the document that a request's path belongs to."""
        patterns = {re.sub(r"\\{.*?\\}", "[^/]*", re.escape(known)): known for known in self.paths}
        return next(known for pattern, known in patterns.items() if re.fullmatch(pattern, path))

    def complaint(self, seen: Exchange) -> str | None:
        """Return what the document does not explain about an answer."""
        item = self.paths[self.template(seen.path)]
        if seen.method.lower() not in item:
            return self._complaint_about_refused_method(item, seen)
        described = item[seen.method.lower()]["responses"].get(str(seen.status))
        if described is None:
            return "the status is not described"
        return self._complaint_about_headers(described, seen) or self._complaint_about_body(described, seen)

    def _complaint_about_refused_method(self, item: dict[str, Any], seen: Exchange) -> str | None:
        allowed = ", ".join(sorted({method.upper() for method in item} | ({"HEAD"} if "get" in item else set())))
        if (seen.status, seen.headers.get("allow")) != (httpx.codes.METHOD_NOT_ALLOWED, allowed):
            return f"the path takes {allowed}"
        return self._complaint_about_schema({"$ref": "#/components/schemas/Problem"}, seen.body)

    def _complaint_about_headers(self, described: dict[str, Any], seen: Exchange) -> str | None:
        headers = {name.lower(): header["required"] for name, header in described.get("headers", {}).items()}
        missing = {name for name, required in headers.items() if required} - seen.headers.keys()
        unknown = seen.headers.keys() - GENERAL_HEADERS - headers.keys()
        return f"headers missing: {missing}, not described: {unknown}" if missing | unknown else None

    def _complaint_about_body(self, described: dict[str, Any], seen: Exchange) -> str | None:
        if "content" not in described:
            return "a body where none is described" if seen.body else None
        content_type = seen.headers["content-type"]
        if content_type not in described["content"]:
            return "the content type is not described"
        if content_type != "application/json":
            return None
        return self._complaint_about_schema(described["content"][content_type]["schema"], seen.body)

    def _complaint_about_schema(self, schema: dict[str, Any], body: str) -> str | None:
        validator = jsonschema_rs.validator_for({**schema, "components": self._components})
        return next((error.message for error in validator.iter_errors(json.loads(body))), None)


async def document_of(bridge: Bridge) -> Document:
    return Document((await bridge.http.get("/openapi.json")).json())


async def statuses(
    bridge: Bridge, folder: Path, token: str | None, phases: str, *options: str
) -> dict[tuple[str, str], set[int]]:
    """Explore with a token; return the statuses of each described operation, all of which the document explains."""
    document = await document_of(bridge)
    exchanges = await explored(bridge, folder, token, phases, *options)
    assert not [(seen, complaint) for seen in exchanges if (complaint := document.complaint(seen))]
    faults = [seen for seen in exchanges if seen.status >= httpx.codes.INTERNAL_SERVER_ERROR]
    assert {json.loads(seen.body)["code"] for seen in faults} <= CAUSED_BY_THE_APPLICATION, faults
    refused = [seen for seen in exchanges if (seen.path, seen.status) == (COMMAND, httpx.codes.BAD_REQUEST)]
    assert not [seen for seen in refused if KEY_HEADER not in seen.body and document.accepts_body(seen.sent)]
    found = defaultdict[tuple[str, str], set[int]](set)
    for seen in exchanges:
        found[seen.method, document.template(seen.path)].add(seen.status)
    return {operation: found[operation] for operation in document.operations}


async def test_all_that_an_agent_is_answered_is_described(served: Bridge, tmp_path: Path) -> None:
    found = await statuses(served, tmp_path, agent_token(), EVERY_PHASE, *BUT_FOR_STREAMS)

    assert found["POST", COMMAND] >= {200, 400, 401, 404, 415}
    assert found["GET", "/api/capabilities"] >= {200, 400, 401}
    assert found["GET", "/api/clients"] >= {200, 400, 401}
    assert found["GET", "/api/clients/{client_id}"] >= {200, 401, 404}
    assert found["DELETE", "/api/clients/{client_id}"] == {401, 403}


async def test_all_that_an_administrator_is_answered_is_described(served: Bridge, tmp_path: Path) -> None:
    found = await statuses(served, tmp_path, admin_token(), EVERY_PHASE, *BUT_FOR_STREAMS)

    assert found["DELETE", "/api/clients/{client_id}"] == {204, 401, 404}


@pytest.mark.parametrize(("token", "allowed"), [(None, {401}), (app_token(), {401, 403})], ids=["none", "app"])
async def test_whoever_is_no_agent_learns_only_that(
    served: Bridge, tmp_path: Path, token: str | None, allowed: set[int]
) -> None:
    found = await statuses(served, tmp_path, token, "examples,coverage")

    assert all(found[operation] <= allowed for operation in found if operation[1].startswith("/api/"))
    assert found["GET", "/healthz"] == found["GET", "/readyz"] == found["GET", "/metrics"] == {200}


async def test_answers_that_have_to_be_provoked_are_described(served: Bridge) -> None:
    document = await document_of(served)
    answers = [answer async for answer in provoked(served)]

    assert not [(seen, complaint) for seen in map(heard, answers) if (complaint := document.complaint(seen))]
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 304, 400, 403, 409, 200, 200, 413, 422, 500, 409, 502, 504, 204]


async def provoked(bridge: Bridge) -> AsyncIterator[httpx.Response]:
    """Have the agent API give the answers that random requests seldom or never get."""
    page = await bridge.http.get("/api/clients", params={"limit": 1})
    assert "link" in page.headers
    yield page
    yield await bridge.http.get("/api/clients", params={"limit": 1}, headers={"If-None-Match": page.headers["etag"]})
    client_id = next(iter(await bridge.capabilities(name="addTodo")))
    yield await bridge.http.get("/api/events", params={"event": ""})
    yield await bridge.call(client_id, "locked")
    yield await bridge.call(None, "shared", action="read")
    for whom in ({"any": True}, {"clientIds": [*await bridge.capabilities(), "nobody", "a.b"]}):
        command = {"target": "addTodo", "parameters": {"title": "milk"}}
        yield await bridge.http.post("/api/command", json={"command": command, **whom})
    yield await bridge.call(None, "addTodo", {"title": "x" * 1024 * 1024})
    yield await bridge.call(None, "addTodo", {"title": 1})
    yield await bridge.call(None, "fail")
    async with bridge.app({"leave": never}) as leaving, asyncio.TaskGroup() as tasks:
        lost = tasks.create_task(bridge.call(leaving.client_id, "leave", timeout_ms=10_000, requestId="r-1"))
        await leaving.received(type="command")
        yield await bridge.call(leaving.client_id, "leave", requestId="r-1")
        await leaving.socket.close()
    yield lost.result()
    yield await bridge.call(None, "never")
    yield await bridge.admin().delete(f"/api/clients/{client_id}")


def heard(answer: httpx.Response) -> Exchange:
    request = answer.request
    return Exchange(request.method, request.url.path, answer.status_code, dict(answer.headers.items()), answer.text)
