"""Bad input against the whole bridge: the right code, a sentence that helps, nothing leaked, neighbours unharmed."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
import nats
import pytest
from nats.aio.client import Client
from support.played.app import App, never, socket_of
from support.processes.bridge import Bridge
from support.settings import SECRET, agent_token, app_token, bearer
from support.wait import until
from websockets.exceptions import ConnectionClosed

DEEP = b"[" * 10_000 + b"]" * 10_000
CALLED = b'{"clientId":"%s","command":{"target":"add","parameters":%s}}'
SUM_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}


def add(parameters: dict[str, Any]) -> float:
    total: float = parameters["a"] + parameters["b"]
    return total


@contextlib.asynccontextmanager
async def neighbour(bridge: Bridge) -> AsyncIterator[App]:
    """Hold a neighbour's command in flight all the while, and see it answered in the end."""
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> str:
        await release.wait()
        return "unharmed"

    async with bridge.app({"slow": slow, "add": add}) as app, asyncio.TaskGroup() as tasks:
        held = tasks.create_task(bridge.call(app.client_id, "slow"))
        await app.received(type="command", target="slow")
        yield app
        release.set()
        answer = await held
        assert (answer.status_code, answer.json()["result"]) == (200, "unharmed")
    assert "Traceback" not in bridge.log
    assert "eyJ" not in bridge.log


async def test_bad_http_bodies(bridge: Bridge) -> None:
    async with neighbour(bridge), bridge.app(capabilities=[{"name": "add", "parameters": SUM_SCHEMA}]) as app:
        app.handlers["add"] = add
        ident = app.client_id.encode()
        for body, status, code, sentence in [
            (b"", 400, "invalid_request", "not valid JSON"),
            (b"{", 400, "invalid_request", "not valid JSON"),
            (b"[]", 400, "invalid_request", "expected `object`"),
            (b"{}", 400, "invalid_request", "`command`"),
            (b'{"command":7}', 400, "invalid_request", "`command`"),
            (b'{"command":{}}', 400, "invalid_request", "`target`"),
            (b'{"command":{"target":7}}', 400, "invalid_request", "target`"),
            (b'{"clientId":7,"command":{"target":"add"}}', 400, "invalid_request", "`clientId`"),
            (b'{"command":{"target":"add"},"timeoutMs":0}', 400, "invalid_request", "timeoutMs`"),
            (b'{"command":{"target":"add","timeoutMs":"1"}}', 400, "invalid_request", "timeoutMs`"),
            (CALLED % (ident, b"[]"), 400, "invalid_request", "parameters`"),
            (CALLED % (ident, b'{"a":NaN}'), 400, "invalid_request", "not valid JSON"),
            (CALLED % (ident, b'{"a":"\xff"}'), 400, "invalid_request", "not valid UTF-8"),
            (CALLED % (ident, b'{"a":' + DEEP + b"}"), 400, "invalid_request", "nested too deeply"),
            (CALLED % (ident, b"{}"), 422, "invalid_parameters", '"a" is a required property'),
            (CALLED % (ident, b'{"a":1,"b":"x"}'), 422, "invalid_parameters", "number"),
            (CALLED % (b"a.b", b"{}"), 404, "client_not_found", "no connected client with this id"),
            (CALLED % (b"*", b"{}"), 404, "client_not_found", "no connected client with this id"),
            (CALLED % (b">", b"{}"), 404, "client_not_found", "no connected client with this id"),
            (CALLED % (b"a b", b"{}"), 404, "client_not_found", "no connected client with this id"),
            (CALLED % (b"x\\r\\nPUB a 0", b"{}"), 404, "client_not_found", "no connected client with this id"),
            (CALLED % (b"unknown", b"{}"), 404, "client_not_found", "no connected client with this id"),
            (b'{"clientId":"%s","command":{"target":"sing"}}' % ident, 404, "unknown_capability", "sing"),
            (b'{"new":1,"command":{"target":"add"}}', 400, "invalid_request", "`new`: there is no such field"),
            (b'{"\\u202e\\u0000":1,"command":{"target":"add"}}', 400, "invalid_request", "there is no such field"),
            (b'{"' + b"x" * 900_000 + b'":1}', 400, "invalid_request", "there is no such field"),
            (
                b"{" + b",".join(b'"%x":1' % each for each in range(80_000)) + b"}",
                400,
                "invalid_request",
                "no such field",
            ),
            (b'{"a":"' + b"x" * 1_100_000 + b'"}', 413, "payload_too_large", "bytes"),
        ]:
            answer = await _post(bridge, body)
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (status, code), (body[:80], answer.text)
            assert sentence in problem["message"], (body[:80], answer.text)
            _leaks_nothing(answer.text)
        accepted = await _post(bridge, CALLED % (ident, b'{"a":1,"b":2,"new":[]}'))
        assert accepted.json()["result"] == 3
        other = await bridge.http.post("/api/command", content=b"a=1", headers={"content-type": "text/plain"})
        assert (other.status_code, other.json()["code"]) == (415, "invalid_request")


async def test_bad_frames_get_an_error_frame_and_the_connection_goes_on(bridge: Bridge) -> None:
    async with neighbour(bridge), bridge.app({"add": add}) as app:
        bad_frames: list[tuple[str | bytes, str]] = [
            ("{", "not valid JSON"),
            ("[]", "expected `object`"),
            ("{}", "`type`"),
            ('{"type":"sing"}', "`type`"),
            ('{"type":7}', "`type`"),
            ('{"type":"capability","capabilities":{}}', "`capabilities`"),
            ('{"type":"capability","capabilities":["add","add"]}', "`capabilities[1]`"),
            ('{"type":"capability","capabilities":[{"name":"add","x":' + DEEP.decode() + "}]}", "nested"),
            ('{"type":"metadata","metadata":[]}', "`metadata`"),
            ('{"type":"metadata","metadata":{"a":NaN}}', "not valid JSON"),
            ('{"type":"metadata","metadata":{"a":"' + "x" * 20_000 + '"}}', "`metadata`"),
            ('{"type":"event","event":""}', "`event`"),
            ('{"type":"event","event":"' + "é" * 129 + '"}', "`event`"),
            ('{"type":"event","event":"x","id":"a b"}', "`id`"),
            ('{"type":"response","requestId":7,"status":"success"}', "`requestId`"),
            ('{"type":"auth","token":"x.y.z"}', "the token does not verify"),
            ('{"type":"ping","x":' + DEEP.decode() + "}", "nested too deeply"),
            (b'{"type":"ping"}', "text"),
        ]
        for frame, sentence in bad_frames:
            before = len(app.all_received(type="error"))
            await app.send(frame)
            await until(lambda before=before: len(app.all_received(type="error")) > before)  # type: ignore[misc]
            error = app.all_received(type="error")[-1]
            assert sentence in error["message"], (frame[:80], error)
            _leaks_nothing(json.dumps(error))
        await app.socket.send(b'{"type":"\xff"}', text=True)
        await until(lambda: "not valid UTF-8" in app.all_received(type="error")[-1]["message"])
        assert (await bridge.call(app.client_id, "add", {"a": 1, "b": 2})).json()["result"] == 3


async def test_schemas_that_would_hurt_are_refused_or_harmless(bridge: Bridge) -> None:
    doubling: dict[str, Any] = {"d0": {"type": "string"}}
    doubling |= {f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level - 1}"}] * 2} for level in range(1, 28)}
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"items": deep}
    async with neighbour(bridge), bridge.app({"add": add}) as app:
        for schema in (
            {"$ref": "file:///etc/passwd"},
            {"$ref": "http://127.0.0.1:1/schema"},
            {"$ref": "#/$defs/d27", "$defs": doubling},
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
            {"anyOf": [{"not": {"$ref": "#"}}]},
            {"pattern": "(?=((a{100}){100}){100})"},
            {"type": "nonsense"},
            {"pattern": "("},
            deep,
        ):
            capability = {"name": "bad", "parameters": schema}
            async with asyncio.timeout(5):
                answer = await app.acknowledged({"type": "capability", "capabilities": ["add", capability]})
            assert (answer["type"], answer.get("code")) == ("error", "invalid_frame"), (schema, answer)
            assert "bad" in answer["message"] or "capabilities[1]" in answer["message"], answer
            assert "root:" not in json.dumps(answer)
        assert set((await bridge.capabilities())[app.client_id][0]) >= {"type", "name"}
        assert (await bridge.call(app.client_id, "add", {"a": 1, "b": 2})).json()["result"] == 3


async def test_parameters_that_schemas_make_costly_are_answered_in_time(bridge: Bridge) -> None:
    """Trees of alternatives, of which 16 levels take 19 s to be told what is wrong, and a pattern that backtracks."""
    twice = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    tree: dict[str, Any] = {"type": "object", "properties": {"a": {"anyOf": [twice, twice, {"type": "string"}]}}}
    slow = {"properties": {"t": {"pattern": "(?:(?=[a-z]*)[a-z])*(?:(?=[a-z]*)[a-z])*!"}}}
    levels: Any = 7
    for _ in range(40):
        levels = {"a": levels}
    offers = [{"name": "tree", "parameters": tree}, {"name": "slow", "parameters": slow}]
    async with neighbour(bridge), bridge.app({"add": add}, capabilities=["add", *offers]) as app, asyncio.timeout(10):
        for target, parameters in (("tree", levels), ("slow", {"t": "a" * 1000}), ("slow", {"t": "a" * 500_000})):
            answer = await bridge.call(app.client_id, target, parameters)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")


async def test_parameters_that_would_hurt_are_answered_in_time(bridge: Bridge) -> None:
    backtracking = {"properties": {"text": {"pattern": "^(a+)+$"}}}
    branches = [{"properties": {f"p{number}": {"type": "string"}}, "required": [f"p{number}"]} for number in range(50)]
    bomb = {"properties": {"items": {"items": {"anyOf": branches}}}}
    async with (
        neighbour(bridge),
        bridge.app(
            capabilities=[{"name": "match", "parameters": backtracking}, {"name": "any", "parameters": bomb}]
        ) as app,
    ):
        async with asyncio.timeout(10):
            matched = await bridge.call(app.client_id, "match", {"text": "a" * 5000 + "!"})
            bombed = await bridge.call(app.client_id, "any", {"items": [{"p": "x"}] * 50_000})
        for answer in (matched, bombed):
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
            assert len(answer.text) < 5000


def tokens() -> dict[str, str]:
    claims = {"sub": "bot", "role": "agent", "aud": "agentbridge"}
    good = agent_token("bot")
    return {
        "without exp": jwt.encode(claims, SECRET),
        "for another audience": agent_token("bot", audience="another"),
        "expired": agent_token("bot", ttl_seconds=-5),
        "unsigned": jwt.encode({**claims, "exp": 4_000_000_000}, "", algorithm="none"),
        "cut": good[:-4],
        "of another key": jwt.encode({**claims, "exp": 4_000_000_000}, "x" * 40),
        "of another tenant's name": agent_token("bot", tenant="a.*"),
        "no token at all": "nonsense",
    }


async def test_bad_tokens_open_nothing(bridge: Bridge) -> None:
    client = await nats.connect(bridge.nats_url)
    async with neighbour(bridge) as app:
        for name, token in {**tokens(), "of the wrong role": app_token()}.items():
            wrong_role = name == "of the wrong role"
            code, status = ("permission_denied", 403) if wrong_role else ("unauthenticated", 401)
            for method, path in (("GET", "/api/capabilities"), ("GET", "/api/clients"), ("POST", "/api/command")):
                body = {"clientId": app.client_id, "command": {"target": "add"}} if method == "POST" else None
                answer = await bridge.http.request(method, path, json=body, headers=bearer(token))
                assert (answer.status_code, answer.json()["code"]) == (status, code), (name, path, answer.text)
                assert wrong_role or answer.headers["www-authenticate"].startswith("Bearer")
                assert token not in answer.text
            told = await _request(client, app.client_id, b'{"target":"add"}', token)
            assert told["error"]["code"] in (code, "client_not_found" if wrong_role else code), (name, told)
            assert token not in json.dumps(told)
        assert (await _request(client, app.client_id, b'{"target":"add"}', None))["error"]["code"] == "unauthenticated"
        refused = await bridge.client(None).get("/api/capabilities")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    await client.close()


async def test_bad_tokens_open_no_socket(bridge: Bridge) -> None:
    async with neighbour(bridge):
        wrong = {name: (token, 4003) for name, token in tokens().items()}
        for name, (token, close_code) in {**wrong, "none": (None, 4001), "an agent's": (agent_token(), 4003)}.items():
            async with socket_of(bridge.gateway_url, token) as socket:
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(socket.recv(), 5)
                assert (name, socket.close_code) == (name, close_code)
                assert token is None or token not in (socket.close_reason or "")


async def test_bad_nats_requests(bridge: Bridge) -> None:
    client = await nats.connect(bridge.nats_url)
    token = agent_token()
    async with neighbour(bridge) as app:
        for body, code, sentence in [
            (b"", "invalid_request", "not valid JSON"),
            (b"\xff", "invalid_request", "UTF-8"),
            (b"[]", "invalid_request", "expected `object`"),
            (b'{"op":"resume"}', "invalid_request", "`op`"),
            (b'{"op":null,"target":"add"}', "invalid_request", "`op`"),
            (b'{"\\u006fp":"cancel","requestId":"r"}', "invalid_request", "`op`"),
            (b'{"target":"add","parameters":' + DEEP + b"}", "invalid_request", "nested too deeply"),
            (b'{"target":"add","timeoutMs":-1}', "invalid_request", "`timeoutMs`"),
            (b'{"target":"add","timeoutMs":' + b"9" * 4000 + b"}", "invalid_request", "`timeoutMs`"),
            (b'{"target":"add","sentAt":' + b"9" * 4000 + b"}", "invalid_request", "`sentAt`"),
            (b'{"target":"add","requestId":"a b"}', "invalid_request", "`requestId`"),
            (b'{"target":"sing"}', "unknown_capability", "sing"),
        ]:
            told = await _request(client, app.client_id, body, token)
            assert told["error"]["code"] == code, (body[:80], told)
            assert sentence in told["error"]["message"], (body[:80], told)
            _leaks_nothing(json.dumps(told))
        good = await _request(client, app.client_id, b'{"target":"add","parameters":{"a":1,"b":2}}', token)
        assert good["result"] == 3
    await client.close()


@pytest.mark.parametrize("op", ["call", "probe", "cancel"])
async def test_reply_outside_the_inbox_forges_nothing(bridge: Bridge, op: str) -> None:
    client = await nats.connect(bridge.nats_url)
    async with neighbour(bridge) as app:
        forged = f"agentbridge.default.event.{app.client_id}.paid"
        tap = await client.subscribe(forged)
        body = {"op": op, "target": "add", "parameters": {"a": 1, "b": 1}, "requestId": "r", "requestIds": ["r"]}
        commands = len(app.all_received(type="command"))
        await client.publish(
            f"agentbridge.default.command.{app.client_id}", json.dumps(body).encode(), forged, bearer(agent_token())
        )
        good = await _request(client, app.client_id, b'{"target":"add","parameters":{"a":1,"b":2}}', agent_token())
        assert good["result"] == 3
        assert len(app.all_received(type="command")) == commands + 1
        assert tap.pending_msgs == 0
    await client.close()


async def test_oversized_frame_costs_its_own_client_only(bridge: Bridge) -> None:
    async with neighbour(bridge), bridge.app({"wait": never}) as app, asyncio.TaskGroup() as tasks:
        caller = tasks.create_task(bridge.call(app.client_id, "wait"))
        await app.received(type="command")
        with contextlib.suppress(ConnectionClosed):
            await app.send(json.dumps({"type": "event", "event": "big", "data": "x" * 2_000_000}))
        assert await app.closed() == 1009
        async with asyncio.timeout(5):
            answer = await caller
        assert (answer.status_code, answer.json()["code"]) == (502, "client_lost")
        assert answer.json()["retryable"] is False


async def _post(bridge: Bridge, body: bytes) -> httpx.Response:
    return await bridge.http.post("/api/command", content=body, headers={"content-type": "application/json"})


async def _request(client: Client, client_id: str, body: bytes, token: str | None) -> dict[str, Any]:
    subject = f"agentbridge.default.command.{client_id}"
    reply = await client.request(subject, body, 5, headers=bearer(token) if token else None)
    answer: dict[str, Any] = json.loads(reply.data)
    if answer.get("error"):
        assert reply.headers is not None
        assert reply.headers["Nats-Service-Error-Code"] == answer["error"]["code"]
    return answer


def _leaks_nothing(text: str) -> None:
    for secret in ("Traceback", "eyJ", SECRET, "msgspec", "site-packages", "Exception"):
        assert secret not in text
