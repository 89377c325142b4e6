"""One command to whichever client is least busy, and to several at once, through real processes."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.nats.nats_server import NatsServer
from support.played.app import App, Handler, never
from support.processes.bridge import Bridge, running_bridge
from support.settings import agent_token, app_token
from support.wait import until

COMMAND = "/api/command"
CALLERS = 16


@pytest.fixture
async def two_gateways(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Bridge]:
    """A bridge with two gateways, whose clients take one command at a time."""
    running = running_bridge(tmp_path / "bridge", private_nats.url, gateways=2, max_in_flight_per_client=1)
    async with running as bridge:
        yield bridge


@contextlib.asynccontextmanager
async def applications(
    bridge: Bridge, *counts: int, handlers: dict[str, Handler] | None = None, **options: Any
) -> AsyncIterator[list[App]]:
    """Connect so many applications to each gateway, and wait until all are known."""
    async with contextlib.AsyncExitStack() as stack:
        offered: dict[str, Handler] = handlers or {"echo": echo, "never": never}
        apps = [
            await stack.enter_async_context(bridge.app(offered, gateway=number, **options))
            for number, count in enumerate(counts)
            for _ in range(count)
        ]
        await known(bridge, next(iter(offered)), apps)
        yield apps


def echo(parameters: dict[str, Any]) -> dict[str, Any]:
    """Answer with what was asked."""
    return parameters


async def known(bridge: Bridge, target: str, apps: list[App]) -> None:
    """Wait until it is known that just these offer the target; clients are listed before their capabilities are."""

    async def offer() -> bool:
        return set(await bridge.capabilities(name=target)) == set(ids(apps))

    await until(offer)


def ids(apps: list[App]) -> list[str]:
    return [app.client_id for app in apps]


async def post(
    bridge: Bridge, target: str, http: httpx.AsyncClient | None = None, key: str | None = None, **body: Any
) -> httpx.Response:
    whole = {"command": {"target": target}, "timeoutMs": 20_000, **body}
    headers = {"Idempotency-Key": key} if key else {}
    return await (http or bridge.http).post(COMMAND, json=whole, headers=headers)


# --- any ---


async def test_thousand_commands_are_spread_over_clients_of_unequal_gateways(
    tmp_path: Path, private_nats: NatsServer
) -> None:
    async with (
        running_bridge(tmp_path / "bridge", private_nats.url, gateways=2) as bridge,
        applications(bridge, 1, 9) as apps,
    ):
        numbers = iter(range(1000))
        answers: list[httpx.Response] = []

        async def call() -> None:
            for _ in numbers:
                answers.append(await post(bridge, "echo", any=True))  # noqa: PERF401  shared by many callers

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(call())

    assert Counter(answer.status_code for answer in answers) == {200: 1000}
    executed = {app.client_id: len(app.all_received(type="command")) for app in apps}
    assert executed == Counter(answer.json()["clientId"] for answer in answers)
    assert all(50 <= count <= 200 for count in executed.values()), executed


async def test_command_reaches_the_session_that_the_user_means_sees_and_saw_last(two_gateways: Bridge) -> None:
    bridge = two_gateways
    async with (
        applications(bridge, 1, 1, token=app_token("ann")) as (first, second),
        bridge.app({"echo": echo}, token=app_token("bob")) as bobs,
    ):
        await known(bridge, "echo", [first, second, bobs])
        ambiguous = (await post(bridge, "echo", any=True)).json()
        assert (ambiguous["code"], ambiguous["details"]["users"]) == ("ambiguous_client", ["ann", "bob"])
        across = [(await post(bridge, "echo", any=True, acrossUsers=True)).json()["clientId"] for _ in range(3)]
        assert set(across) == {first.client_id, second.client_id, bobs.client_id}
        for seen in (first, second, first):
            await seen.acknowledged({"type": "metadata", "id": "m", "metadata": {"visible": True}})
            await until(partial(saw_last, bridge, seen))
            answers = [await post(bridge, "echo", any=True, match={"user": "ann"}) for _ in range(3)]
            assert {answer.json()["clientId"] for answer in answers} == {seen.client_id}
        assert bobs.client_id in across
        assert len(bobs.all_received(type="command")) == 1


async def saw_last(bridge: Bridge, app: App) -> bool:
    """Tell whether the agent API knows that this is the session that its user saw last."""
    records = (await bridge.http.get("/api/clients", params={"metadata.visible": "true"})).json()
    latest = max(records, key=lambda record: record["focusedAt"], default={"clientId": None})
    return bool(latest["clientId"] == app.client_id)


async def test_clients_of_a_killed_gateway_are_skipped(two_gateways: Bridge) -> None:
    async with applications(two_gateways, 4, 2) as apps:
        await two_gateways.gateways[0].kill()
        answers = [await post(two_gateways, "echo", any=True) for _ in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["clientId"] for answer in answers} == set(ids(apps[4:]))


async def test_overloaded_client_is_skipped(tmp_path: Path, private_nats: NatsServer) -> None:
    """An agent API knows nothing of the load that comes through another one."""
    settings = {"gateways": 2, "agent_apis": 2, "max_in_flight_per_client": 1}
    async with (
        running_bridge(tmp_path / "bridge", private_nats.url, **settings) as two_gateways,
        applications(two_gateways, 1, 1) as apps,
        asyncio.TaskGroup() as tasks,
    ):
        elsewhere = two_gateways.client(agent_token(), agent_api=1)
        busy, idle = apps
        waiting = tasks.create_task(post(two_gateways, "never", elsewhere, clientId=busy.client_id))
        await busy.received(type="command", target="never")
        answers = [await post(two_gateways, "echo", any=True) for _ in range(4)]
        waiting.cancel()
    assert {answer.json().get("clientId") for answer in answers} == {idle.client_id}


async def test_command_that_may_have_run_is_sent_to_nobody_else(two_gateways: Bridge) -> None:
    async with applications(two_gateways, 1, 1) as apps, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(post(two_gateways, "never", any=True))
        number = await until(lambda: [each for each, app in enumerate(apps) if app.all_received(type="command")])
        await two_gateways.gateways[number[0]].kill()
        async with asyncio.timeout(4):
            answer = await waiting
    assert (answer.status_code, answer.json()["code"]) == (httpx.codes.BAD_GATEWAY, "client_lost")
    assert sum(len(app.all_received(type="command")) for app in apps) == 1


# --- several ---


async def test_scatter_with_a_killed_gateway_has_the_answers_of_the_others(two_gateways: Bridge) -> None:
    go = asyncio.Event()

    async def wait(parameters: dict[str, Any]) -> str:
        await go.wait()
        return "done"

    async with applications(two_gateways, 2, 2, handlers={"wait": wait}) as apps, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(post(two_gateways, "wait", match={}))
        for app in apps:
            await app.received(type="command")
        await two_gateways.gateways[0].kill()
        go.set()
        async with asyncio.timeout(4):
            answer = await asking
    results = answer.json()["results"]
    assert (answer.status_code, answer.json()["complete"], sorted(results)) == (200, True, sorted(ids(apps)))
    assert [results[app.client_id].get("result") for app in apps] == [None, None, "done", "done"]
    assert [results[client_id]["error"]["code"] for client_id in ids(apps[:2])] == ["client_lost", "client_lost"]


async def test_applications_are_told_when_enough_have_answered(two_gateways: Bridge) -> None:
    async with (
        applications(two_gateways, 2, handlers={"try": never}) as slow,
        two_gateways.app({"try": echo}, gateway=1) as quick,
    ):
        answer = (await post(two_gateways, "try", clientIds=ids([*slow, quick]), gather="first")).json()
        for app in slow:
            await app.received(type="cancel")
    results = [answer["results"][client_id] for client_id in ids([*slow, quick])]
    codes = [result.get("error", {}).get("code") for result in results]
    assert (codes, answer["complete"]) == (["cancelled", "cancelled", None], False)


async def test_timeout_ends_a_scatter_with_what_there_is(two_gateways: Bridge) -> None:
    async with applications(two_gateways, 1, handlers={"try": never}) as slow, two_gateways.app({"try": echo}) as quick:
        answer = (await post(two_gateways, "try", clientIds=ids([*slow, quick]), timeoutMs=300)).json()
        await slow[0].received(type="cancel")
    assert answer["results"][slow[0].client_id]["error"]["code"] == "timeout"
    assert (answer["results"][quick.client_id]["status"], answer["complete"]) == ("success", False)


async def test_caller_who_goes_away_cancels_all(two_gateways: Bridge) -> None:
    async with applications(two_gateways, 2, 2) as apps, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(post(two_gateways, "never", match={}))
        for app in apps:
            await app.received(type="command")
        asking.cancel()
        for app in apps:
            await app.received(type="cancel")


# --- once ---


async def test_any_under_a_key_is_the_client_that_was_chosen_first(two_gateways: Bridge) -> None:
    async with applications(two_gateways, 2, 2) as apps:
        answers = [await post(two_gateways, "echo", any=True, key="once") for _ in range(5)]
    assert len({answer.json()["clientId"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, *["true"] * 4]
    assert sum(len(app.all_received(type="command")) for app in apps) == 1


async def test_scatter_under_a_key_is_executed_once_by_each_client(two_gateways: Bridge) -> None:
    async with applications(two_gateways, 1, 1) as apps:
        first = await post(two_gateways, "echo", match={}, key="once")
        async with two_gateways.app({"echo": echo}) as late:
            await known(two_gateways, "echo", [*apps, late])
            again = await post(two_gateways, "echo", match={}, key="once")
            await apps[0].socket.close()
            await known(two_gateways, "echo", [apps[1], late])
            named = await post(two_gateways, "echo", clientIds=ids([*apps, late]), key="once")
            everybody = [*apps, late]
    assert [replayed(first, app) for app in apps] == [False, False]
    assert [replayed(again, app) for app in everybody] == [True, True, False]
    assert [replayed(named, app) for app in everybody] == [True, True, True]
    assert [len(app.all_received(type="command")) for app in everybody] == [1, 1, 1]
    assert len({result["requestId"] for result in again.json()["results"].values()}) == 1


def replayed(answer: httpx.Response, app: App) -> bool:
    result = answer.json()["results"][app.client_id]
    assert result["status"] == "success", result
    return bool(result.get("replayed"))


# --- who may be reached ---


async def test_nothing_crosses_between_tenants_and_limited_agents(two_gateways: Bridge) -> None:
    async with (
        two_gateways.app({"echo": echo}, token=app_token("ann")) as anns,
        two_gateways.app({"echo": echo}, token=app_token("bob"), gateway=1) as bobs,
        two_gateways.app({"echo": echo}, token=app_token("ann", tenant="acme")) as acmes,
    ):
        await known(two_gateways, "echo", [anns, bobs])
        ann = two_gateways.client(agent_token(limits={"users": ["ann"]}))
        bob = two_gateways.client(agent_token(limits={"clients": [bobs.client_id]}))
        acme = two_gateways.client(agent_token(tenant="acme"))
        everybody = [anns, bobs, acmes]
        for http, own in ((ann, anns), (bob, bobs), (acme, acmes)):
            await until(partial(lists, http, own))
            assert {(await post(two_gateways, "echo", http, any=True)).json()["clientId"] for _ in range(4)} == {
                own.client_id
            }
            assert list((await post(two_gateways, "echo", http, match={})).json()["results"]) == [own.client_id]
            named = await post(two_gateways, "echo", http, clientIds=[*ids(everybody), "nobody"])
            results = named.json()["results"]
            assert results.pop(own.client_id)["status"] == "success"
            assert len({wording(client_id, result) for client_id, result in results.items()}) == 1, results
        for user in ("bob", "nobody"):
            assert (await post(two_gateways, "echo", ann, match={"user": user})).json()["results"] == {}
    for app, count in ((anns, 4 + 2), (bobs, 4 + 2), (acmes, 4 + 2)):
        assert len(app.all_received(type="command")) == count


async def lists(http: httpx.AsyncClient, app: App) -> bool:
    return list((await http.get("/api/capabilities", params={"name": "echo"})).json()) == [app.client_id]


def wording(client_id: str, result: dict[str, Any]) -> str:
    """Return what is told of a client, without its id and the id of the request."""
    assert result.pop("clientId") == client_id
    return json.dumps(result)
