"""A registry process against the real server: reports, announcements, lists."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from support.nats.clients_bucket import record
from support.nats.nats_server import NatsServer
from support.nats.raw_publish import raw_request
from support.nats.stores import EVENTS_STREAM
from support.played.gateway import FakeGateway, fake_gateway
from support.processes.registry import Observer, observer, registries
from support.settings import agent_token, app_token
from support.wait import until

from protocol import subjects
from protocol.reports import Report

TODO = json.dumps(
    [
        {"type": "function", "name": "add", "tags": ["list"]},
        {"type": "function", "name": "wipe", "permissions": ["danger"]},
        {"type": "component", "id": "list", "actions": ["click"]},
    ]
).encode()
World = tuple[FakeGateway, Observer]


@pytest.fixture
async def world(private_nats: NatsServer, tmp_path: Path) -> AsyncIterator[World]:
    """One registry, a gateway, and somebody who watches."""
    async with (
        registries(tmp_path, private_nats.url),
        observer(private_nats.url) as watching,
        fake_gateway(private_nats.url) as gateway,
    ):
        yield gateway, watching


async def test_reports_fill_the_lists_and_are_announced(world: World) -> None:
    gateway, watching = world
    assert json.loads(await gateway.connect(record("a"), record("b", principal="ann", app={"name": "todo"})))
    await gateway.connect(record("a", revision=2))
    assert await gateway.disconnect(("default", "a"), reason="went_home") == b'{"number":3}'

    await until(lambda: len(watching.announced.messages) == 4)
    assert set(watching.announced.changes()[:2]) == {("connected", "a"), ("connected", "b")}
    updated, gone = watching.announced.messages[2:]
    assert gone == {
        "change": "disconnected",
        "clientId": "a",
        "user": "user-1",
        "app": "",
        "at": gone["at"],
        "revision": 2,
        "reason": "went_home",
    }
    assert (updated["change"], updated["revision"]) == ("updated", 2)
    assert await watching.listed() == {"b"}
    assert await watching.ask("get", {"clientId": "b"}) == json.loads(msgspec.json.encode(gateway.records["default.b"]))


async def test_repeated_report_is_acknowledged_and_announced_once(world: World) -> None:
    gateway, watching = world
    mine = gateway.hold(record("a"))
    for _ in range(3):
        assert await gateway.report(1, mine) == b'{"number":1}'
    await gateway.connect(record("b"))
    await until(lambda: "b" in watching.announced.of("connected"))
    assert watching.announced.changes() == [("connected", "a"), ("connected", "b")]


async def test_report_that_leaves_a_gap_is_refused_and_leads_to_a_sync(world: World) -> None:
    gateway, watching = world
    refusal = json.loads(await gateway.report(5, gateway.hold(record("a"))))
    assert refusal["error"]["code"] == "conflict"
    await until(lambda: gateway.syncs)
    await until(lambda: watching.announced.of("connected") == {"a"})
    assert await gateway.connect(record("b")) == b'{"number":6}'


async def test_report_from_before_the_last_is_refused(world: World) -> None:
    gateway, _ = world
    for number in (1, 2, 3):
        await gateway.report(number)
    assert json.loads(await gateway.report(1))["error"]["code"] == "conflict"


async def test_stale_gateway_takes_nothing_from_the_new_owner(world: World, private_nats: NatsServer) -> None:
    old, watching = world
    await old.connect(record("a", revision=3))
    async with fake_gateway(private_nats.url, "gw-2") as new:
        await new.connect(record("a", revision=4))
        await old.report(2, old.hold(record("a", revision=4)))
        await old.disconnect(("default", "a"))
        assert (await watching.ask("get", {"clientId": "a"}))["gatewayId"] == "gw-2"
        await new.connect(record("b"))
        await until(lambda: "b" in watching.announced.of("connected"))
        assert watching.announced.of("disconnected") == set()


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"{}",
        msgspec.json.encode(Report("gw-1", 1, [record("a", gateway_id="gw-2")], [])),
        msgspec.json.encode(Report("gw-1", 1, [record("a.b")], [])),
        msgspec.json.encode(Report("gw.*", 1, [], [])),
        msgspec.json.encode(Report("gw-1", 1, [record("a", tenant="_gateway")], [])),
    ],
)
async def test_report_that_is_none_is_refused(world: World, body: bytes) -> None:
    gateway, watching = world
    assert json.loads(await gateway.send(body))["error"]["code"] == "invalid_request"
    assert await watching.listed() == set()


async def test_lists_show_each_agent_what_it_may_see(world: World) -> None:
    gateway, watching = world
    await gateway.connect(
        record("a", principal="ann", app={"name": "todo"}, capabilities=TODO),
        record("b", principal="bob", app={"name": "todo"}, capabilities=TODO),
        record("c", principal="ann", app={"name": "mail"}),
        record("x", tenant="acme", principal="ann", capabilities=TODO),
    )
    await until(lambda: len(watching.announced.messages) == 4)
    anns = agent_token(limits={"users": ["ann"], "apps": ["todo"]})
    cautious = agent_token(permissions=["other"])
    daring = agent_token(permissions=["danger"])
    stranger = agent_token(tenant="acme")

    assert await ids(watching, "list") == ["a", "b", "c"]
    assert await ids(watching, "list", {"user": "ann"}) == ["a", "c"]
    assert await ids(watching, "list", {"name": "add"}) == ["a", "b"]
    assert await ids(watching, "list", {"tags": ["list", "none"], "authLevel": "public"}) == ["a", "b"]
    assert await ids(watching, "list", {"tags": ["list"], "authLevel": "user"}) == []
    assert await ids(watching, "list", token=anns) == ["a"]
    assert await ids(watching, "list", token=stranger) == []
    assert await ids(watching, "list", token=stranger, tenant="acme") == ["x"]

    assert await ids(watching, "find", {"target": "add"}) == ["a", "b"]
    assert await ids(watching, "find", {"target": "add"}, token=anns) == ["a"]
    assert await ids(watching, "find", {"target": "list", "action": "click"}) == ["a", "b"]
    assert await ids(watching, "find", {"target": "list", "action": "smash"}) == []
    assert await ids(watching, "find", {"target": "wipe"}, token=cautious) == []
    assert await ids(watching, "find", {"target": "wipe"}, token=daring) == ["a", "b"]
    assert await ids(watching, "find", {"target": "add"}, token=stranger) == []

    for token, client_id in ((anns, "b"), (anns, "c"), (stranger, "a"), (anns, "none"), (anns, "a.b")):
        assert await watching.refused("get", {"clientId": client_id}, token=token) == "client_not_found"
    assert await watching.refused("get", {"clientId": "a"}, token=anns, tenant="acme") == "client_not_found"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("connection_lost", "unavailable"),
        ("shutdown", "unavailable"),
        ("closed", "client_not_found"),
        ("token_expired", "client_not_found"),
        ("from the future", "client_not_found"),
    ],
)
async def test_client_that_was_lost_is_unavailable_to_those_who_may_see_it(
    world: World, reason: str, code: str
) -> None:
    gateway, watching = world
    await gateway.connect(record("a", principal="ann"))
    await until(lambda: watching.lists("a"))
    await gateway.disconnect(("default", "a"), reason=reason)
    await until(lambda: watching.lists())
    assert await watching.refused("get", {"clientId": "a"}) == code
    bobs = agent_token(limits={"users": ["bob"]})
    assert await watching.refused("get", {"clientId": "a"}, token=bobs) == "client_not_found"
    await gateway.connect(record("a", principal="ann", revision=9))
    await until(lambda: watching.lists("a"))
    assert (await watching.ask("get", {"clientId": "a"}))["user"] == "ann"


async def ids(
    watching: Observer, op: str, body: object = None, *, token: str = "", tenant: str = "default"
) -> list[str]:
    answer = await watching.ask(op, body, token=token, tenant=tenant)
    return [client["clientId"] for client in answer["clients"]]


@pytest.mark.parametrize("op", ["list", "find", "get"])
async def test_only_valid_tokens_of_agents_are_answered(world: World, op: str) -> None:
    _, watching = world
    body = {"target": "add", "clientId": "a"}
    assert await watching.refused(op, body, token=None) == "unauthenticated"
    assert await watching.refused(op, body, token="forged") == "unauthenticated"
    assert await watching.refused(op, body, token=agent_token(ttl_seconds=-1)) == "unauthenticated"
    assert await watching.refused(op, body, token=app_token()) == "permission_denied"


@pytest.mark.parametrize(
    ("op", "body"),
    [
        ("list", b"[]"),
        ("list", b'{"limit":0}'),
        ("list", b"\xff"),
        ("find", b"{}"),
        ("get", b"{}"),
        ("list", b'{"User":"ann"}'),
        ("list", b'{"client_id":"a"}'),
        ("find", b'{"target":"add","actions":"x"}'),
        ("get", b"[" * 9999),
    ],
)
async def test_request_that_cannot_be_understood_is_refused(world: World, op: str, body: bytes) -> None:
    _, watching = world
    assert await watching.refused(op, body) == "invalid_request"


async def test_lists_come_in_pages_by_count_and_by_size(world: World) -> None:
    gateway, watching = world
    names = [f"c{number:02}" for number in range(30)]
    big = json.dumps([{"type": "function", "name": "f", "description": "x" * 60_000}]).encode()
    for first in range(0, 30, 10):
        await gateway.connect(*(record(name, capabilities=big) for name in names[first : first + 10]))
    await until(lambda: len(watching.announced.messages) == 30)

    assert await pages(watching, "list", {"limit": 7}) == [names[at : at + 7] for at in range(0, 30, 7)]
    for op in ("list", "find"):
        by_size = await pages(watching, op, {"target": "f"})
        assert [name for page in by_size for name in page] == names
        assert {len(page) for page in by_size[:-1]} == {8}


async def pages(watching: Observer, op: str, body: dict[str, object]) -> list[list[str]]:
    found: list[list[str]] = []
    after: object = ""
    while after is not None:
        answer = await watching.ask(op, body | {"after": after})
        found.append([client["clientId"] for client in answer["clients"]])
        after = answer.get("after")
    return found


async def test_announcements_are_stored_in_the_events_stream(world: World) -> None:
    gateway, watching = world
    await gateway.connect(record("a"))
    await until(lambda: watching.announced.messages)
    stored = await watching.nats.jetstream().get_last_msg(
        EVENTS_STREAM, subjects.client_change("default", "a", "connected")
    )
    assert json.loads(stored.data or b"") == watching.announced.messages[0]


async def test_registry_is_a_micro_service(world: World) -> None:
    _, watching = world
    info = json.loads((await watching.nats.request("$SRV.INFO.agentbridge-registry", timeout=5)).data)
    assert {endpoint["name"] for endpoint in info["endpoints"]} == {
        "report",
        "stores",
        "peer-heard",
        "list",
        "find",
        "get",
        "audit",
        "disconnect",
    }


async def test_header_of_the_token_is_found_in_any_case(world: World) -> None:
    gateway, watching = world
    await gateway.connect(record("a"))
    await until(lambda: watching.lists("a"))
    headers = {"authorization": f"Bearer {agent_token()}"}
    reply = await watching.nats.request(subjects.registry("default", "list"), b"{}", timeout=5, headers=headers)
    assert [each["clientId"] for each in json.loads(reply.data)["clients"]] == ["a"]


async def test_two_tokens_of_a_question_are_refused(world: World, private_nats: NatsServer) -> None:
    headers = [f"Authorization: Bearer {agent_token()}", f"Authorization: Bearer {agent_token('another')}"]
    answer = await raw_request(private_nats.url, subjects.registry("default", "list"), headers, b"{}")
    assert answer["error"]["code"] == "unauthenticated"
