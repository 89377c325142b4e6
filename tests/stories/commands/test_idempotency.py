"""Commands under idempotency keys over HTTP, across agent APIs and gateways, and after a gateway's death."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from nats.aio.msg import Msg
from support.nats.audit import recorded
from support.nats.nats_server import NatsServer
from support.played.agent_socket import agent_socket
from support.played.app import App, AppFault, Handler, never
from support.processes.bridge import Bridge, running_bridge
from support.processes.gateways import Agent, agent
from support.settings import agent_token
from support.wait import subscribed, until

from protocol import subjects

REPLAYED = "idempotency-replayed"


class Story:
    """Two gateways, two agent APIs, one application at the first gateway."""

    def __init__(self, bridge: Bridge, app: App, release: asyncio.Event) -> None:
        self.bridge = bridge
        self.app = app
        self.release = release
        self._apis = [bridge.client(agent_token(), number) for number in range(2)]

    async def post(
        self,
        target: str = "echo",
        *,
        key: str = "k1",
        api: int = 0,
        client: httpx.AsyncClient | None = None,
        **body: Any,
    ) -> httpx.Response:
        """Send a command under a key; `body` joins the body, with `command` its command."""
        command = {"target": target, **body.pop("command", {})}
        whole = {"clientId": self.app.client_id, **body, "command": command}
        headers = {"Idempotency-Key": key}
        return await (client or self._apis[api]).post("/api/command", json=whole, headers=headers)

    @property
    def executed(self) -> int:
        """How many commands the application has got."""
        return len(self.app.all_received(type="command"))

    async def ran(self) -> int:
        """How many it has got, with all that its gateway has sent by now."""
        return len(await self.app.commands())


@pytest.fixture
async def story(tmp_path: Path, private_nats: NatsServer) -> AsyncIterator[Story]:
    release = asyncio.Event()

    async def slow(parameters: dict[str, Any]) -> dict[str, Any]:
        await release.wait()
        return parameters

    handlers: dict[str, Handler] = {"echo": lambda parameters: parameters, "fail": fail, "slow": slow, "never": never}
    async with running_bridge(tmp_path / "bridge", private_nats.url, gateways=2, agent_apis=2) as bridge:
        async with bridge.app(handlers) as app:
            await bridge.listed(app.client_id)
            yield Story(bridge, app, release)
        assert "Traceback" not in bridge.log, bridge.log


def fail(parameters: dict[str, Any]) -> None:
    raise AppFault("no such task", "E_TASK")


async def test_retry_through_the_other_agent_api_gets_the_first_answer(story: Story) -> None:
    first = await story.post(command={"parameters": {"a": 1}, "requestId": "r1"})
    assert (first.status_code, first.json()["result"]) == (200, {"a": 1})
    assert REPLAYED not in first.headers
    again = await story.post(command={"parameters": {"a": 1}, "requestId": "r2"}, api=1, timeoutMs=999)
    assert again.json() == {**first.json(), "requestId": "r2"}
    assert again.headers[REPLAYED] == "true"
    assert await story.ran() == 1


async def test_error_is_replayed_with_its_status(story: Story) -> None:
    first, again = [await story.post("fail", api=api, command={"requestId": "r"}) for api in range(2)]
    assert (again.status_code, again.json()) == (first.status_code, first.json()) == (500, first.json())
    assert again.headers[REPLAYED] == "true"
    assert await story.ran() == 1


async def test_fifty_twins_through_two_agent_apis_are_executed_once(story: Story) -> None:
    async with asyncio.TaskGroup() as tasks:
        same = {"requestId": "same"}
        twins = [
            tasks.create_task(story.post("slow", api=number % 2, command=same if number < 10 else {}))
            for number in range(50)
        ]
        await until(lambda: story.executed)
        story.release.set()
    assert [twin.result().status_code for twin in twins] == [200] * 50, twins[0].result().text
    assert sum(REPLAYED in twin.result().headers for twin in twins) == 49
    assert {twin.result().json()["requestId"] for twin in twins[:10]} == {"same"}
    assert await story.ran() == 1


async def test_twin_over_nats_joins_one_over_http(story: Story) -> None:
    async with agent(story.bridge.nats_url) as direct, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(story.post("slow"))
        await until(lambda: story.executed)
        twin = tasks.create_task(direct.call(story.app.client_id, "slow", idempotencyKey="k1", requestId="r2"))
        probe = {"op": "probe", "requestIds": ["r2"]}

        async def waits() -> bool:
            return bool((await direct.ask(story.app.client_id, probe))["inFlight"])

        await until(waits)
        story.release.set()
    assert (first.result().status_code, twin.result()["replayed"]) == (200, True)
    assert await story.ran() == 1


async def test_socket_of_an_agent_is_told_what_is_a_replay(story: Story) -> None:
    first = await story.post(command={"parameters": {"a": 1}})
    async with agent_socket(story.bridge.agent_apis[1].url) as socket:
        command = {"idempotencyKey": "k1", "requestId": "r2"}
        again = await socket.call(story.app.client_id, "echo", {"a": 1}, id="mine", command=command)
        other = await socket.call(story.app.client_id, "echo", {"a": 2}, command=command)
    assert (again["result"], again["requestId"], again["replayed"]) == (first.json()["result"], "r2", True)
    assert other["error"]["code"] == "conflict"
    assert await story.ran() == 1


async def test_gateway_killed_between_dispatch_and_answer_is_client_lost_for_ever(story: Story) -> None:
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(story.post("never", api=api)) for api in range(2)]
        await until(lambda: story.executed)
        await story.bridge.gateways[0].kill()
        async with asyncio.timeout(4):
            answers = [await call for call in calls]
    assert [answer.json()["code"] for answer in answers] == ["client_lost"] * 2
    for api in (1, 0, 1):
        async with asyncio.timeout(3):
            again = await story.post("never", api=api)
        assert (again.status_code, again.json()["code"], again.headers[REPLAYED]) == (502, "client_lost", "true")
    async with story.bridge.app({"never": never}, gateway=1) as heir:
        await story.bridge.listed(heir.client_id)
        body = {"command": {"target": "never"}}
        unnamed = await story.bridge.http.post("/api/command", json=body, headers={"Idempotency-Key": "k1"})
        assert unnamed.json()["code"] == "client_lost"
        other = await story.post("never", clientId=heir.client_id)
        assert (other.status_code, other.json()["code"]) == (409, "conflict")
        assert not await heir.commands()
    assert await story.ran() == 1


async def test_frozen_gateway_s_command_is_lost_and_executed_once(story: Story) -> None:
    gateway = story.bridge.gateways[0]
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(story.post("never"))
        await until(lambda: story.executed)
        gateway.freeze()
        try:
            async with asyncio.timeout(7):
                assert (await call).json()["code"] == "client_lost"
            async with asyncio.timeout(4):
                twin = await story.post("never", api=1)
        finally:
            gateway.thaw()
    assert twin.json()["code"] == "client_lost"
    assert await story.ran() == 1


async def test_answer_that_a_frozen_gateway_has_after_the_thaw_is_told_to_nobody(story: Story) -> None:
    gateway = story.bridge.gateways[0]
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(story.post("slow"))
        await until(lambda: story.executed)
        gateway.freeze()
        try:
            story.release.set()
            async with asyncio.timeout(7):
                first = await call
        finally:
            gateway.thaw()
    assert (first.status_code, first.json()["code"], first.headers.get(REPLAYED)) == (502, "client_lost", None)
    await until(lambda: "has recorded it as lost" in gateway.log)
    for api in range(2):
        again = await story.post("slow", api=api)
        assert {**again.json(), "requestId": ""} == {**first.json(), "requestId": ""}
        assert again.headers[REPLAYED] == "true"
    assert await story.ran() == 1


async def test_gateway_that_was_frozen_for_a_moment_goes_on_with_the_command(story: Story) -> None:
    asked_whether_it_lives = asyncio.Event()

    async def ping(message: Msg) -> None:
        asked_whether_it_lives.set()

    gateway = story.bridge.gateways[0]
    await story.post(key="k0")  # has the registry make the tenant's stores
    await story.bridge.registries[0].terminate()  # which asks, too
    async with agent(story.bridge.nats_url) as observer, asyncio.TaskGroup() as tasks:
        await observer.nats.subscribe(subjects.gateway("*", "ping"), cb=ping)
        await subscribed(observer.nats)
        call = tasks.create_task(story.post("slow"))
        await until(lambda: story.executed == 2)
        gateway.freeze()
        try:
            async with asyncio.timeout(5):
                await asked_whether_it_lives.wait()
        finally:
            gateway.thaw()
        story.release.set()
    again = await story.post("slow", api=1)
    assert (call.result().status_code, again.status_code) == (200, 200), call.result().text
    assert await story.ran() == 2
    assert not story.app.all_received(type="cancel")


async def test_outcome_is_told_when_client_and_gateway_are_gone(story: Story) -> None:
    first = await story.post(command={"parameters": {"a": 1}})
    await story.app.socket.close()
    await until(lambda: story.app.close_code)
    await story.bridge.gateways[0].terminate()
    again = await story.post(command={"parameters": {"a": 1}}, api=1)
    assert (again.status_code, again.json()["result"]) == (200, first.json()["result"])


async def test_request_that_names_no_client_means_the_one_of_its_key(story: Story) -> None:
    unnamed: dict[str, Any] = {"clientId": None}
    assert (await story.post(**unnamed)).headers.get(REPLAYED) is None
    async with story.bridge.app({"echo": lambda parameters: parameters}, gateway=1) as other:
        await story.bridge.listed(story.app.client_id, other.client_id)
        for more in (unnamed, unnamed | {"any": True}):
            again = await story.post(**more, api=1)
            assert (again.status_code, again.json()["clientId"]) == (200, story.app.client_id)
        assert not await other.commands()
    assert await story.ran() == 1


@pytest.mark.parametrize("match", [{"user": "bob"}, {"app": "other"}])
async def test_key_of_a_client_that_match_does_not_mean_is_a_conflict(story: Story, match: dict[str, str]) -> None:
    meant: dict[str, Any] = {"any": True, "match": {"user": "user-1"}, "clientId": None}
    first = await story.post(**meant)
    assert (await story.post(**meant)).headers[REPLAYED] == "true"
    other = await story.post(**{**meant, "match": match})
    assert (first.status_code, other.status_code, other.json()["code"]) == (200, 409, "conflict")
    assert await story.ran() == 1


@pytest.mark.parametrize("gateway", [0, 1])
async def test_twins_to_any_of_two_clients_are_executed_once(story: Story, gateway: int) -> None:
    async with story.bridge.app(story.app.handlers, gateway=gateway) as other:
        await story.bridge.listed(story.app.client_id, other.client_id)
        async with asyncio.TaskGroup() as tasks:
            twins = [
                tasks.create_task(story.post("slow", api=number % 2, clientId=None, any=True)) for number in range(20)
            ]
            await until(lambda: story.executed + len(other.all_received(type="command")))
            story.release.set()
        assert [twin.result().status_code for twin in twins] == [200] * 20
        assert len({twin.result().json()["clientId"] for twin in twins}) == 1
        assert await story.ran() + len(await other.commands()) == 1


async def test_key_of_another_principal_or_tenant_is_another_key(story: Story) -> None:
    await story.post()
    for token in (agent_token("agent-2"), agent_token("agent-1", tenant="acme")):
        answer = await story.post(client=story.bridge.client(token))
        assert REPLAYED not in answer.headers
    assert await story.ran() == 2


async def test_outcome_does_not_exist_for_a_token_that_may_not_see_the_client(story: Story) -> None:
    await story.post()
    limited = story.bridge.client(agent_token(limits={"users": ["somebody"]}))
    hidden = await story.post(client=limited)
    absent = await story.post(client=limited, clientId="nobody", key="k2")
    assert (hidden.status_code, hidden.json()["code"]) == (404, "client_not_found")
    assert {**hidden.json(), "requestId": ""} == {**absent.json(), "requestId": ""}


async def test_refused_order_leaves_its_key_free(story: Story) -> None:
    assert (await story.post("what")).json()["code"] == "unknown_capability"
    assert (await story.post(clientId="nobody")).json()["code"] == "client_not_found"
    assert (await story.post()).status_code == 200


async def test_key_that_cannot_be_is_an_invalid_request(story: Story) -> None:
    for header, command in (("k1", {"idempotencyKey": "k2"}), ("a b", {}), ('"', {}), ("k1, k2", {})):
        answer = await story.post(key=header, command=command)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert await story.ran() == 0


async def test_nats_away_is_unavailable_and_its_return_brings_the_outcome_back(
    story: Story, private_nats: NatsServer
) -> None:
    first = await story.post()
    private_nats.stop()
    away = await story.post(key="k2")
    assert (away.status_code, away.json()["code"], away.json()["retryable"]) == (503, "unavailable", True)
    await private_nats.start()

    async def back() -> httpx.Response | None:
        answer = await story.post(api=1)
        return answer if answer.status_code == 200 else None

    answer = await until(back, 10)
    assert answer is not None
    assert {**answer.json(), "requestId": ""} == {**first.json(), "requestId": ""}
    assert await story.ran() == 1


async def test_closed_connection_cancels_the_command_unless_a_twin_waits(story: Story) -> None:
    """Both have one request id, and come through different agent APIs: each is cancelled by itself all the same."""
    async with asyncio.TaskGroup() as tasks, sent(story) as wire:
        first = tasks.create_task(story.post("slow", command={"requestId": "same"}))
        await until(lambda: story.executed)
        twin = tasks.create_task(story.post("slow", api=1, command={"requestId": "same"}))
        await until(lambda: wire.in_flight(2))
        twin.cancel()
        await until(lambda: wire.in_flight(1))
        third = tasks.create_task(story.post("slow", api=1, command={"requestId": "same"}))
        await until(lambda: wire.in_flight(2))
        assert not first.done()
        third.cancel()
        await until(lambda: wire.in_flight(1))
        assert not story.app.all_received(type="cancel")
        first.cancel()
        assert await story.app.received(type="cancel")
    again = await story.post("slow")
    assert (again.status_code, again.json()["code"]) == (499, "cancelled")


class Wire:
    """The commands that were sent to the application's subject."""

    def __init__(self, story: Story, observer: Agent) -> None:
        self._story = story
        self._observer = observer
        self.commands: list[dict[str, Any]] = []

    async def in_flight(self, number: int) -> bool:
        """Tell whether so many of them wait for their answer."""
        ids = [command["requestId"] for command in self.commands]
        probe = {"op": "probe", "requestIds": ids}
        return len(set((await self._observer.ask(self._story.app.client_id, probe))["inFlight"])) == number

    async def take(self, message: Msg) -> None:
        operation = json.loads(message.data)
        if operation.get("op", "call") == "call":
            self.commands.append(operation)


@contextlib.asynccontextmanager
async def sent(story: Story) -> AsyncIterator[Wire]:
    """Observe what is sent to the application from now on."""
    async with agent(story.bridge.nats_url) as observer:
        wire = Wire(story, observer)
        await observer.nats.subscribe(subjects.command("default", story.app.client_id), cb=wire.take)
        await subscribed(observer.nats)
        yield wire


@pytest.mark.parametrize("several", [False, True])
async def test_caller_s_own_id_is_in_all_that_it_is_told_and_in_the_record(story: Story, several: bool) -> None:
    body: dict[str, Any] = {"command": {"target": "never", "requestId": "mine"}}
    body |= {"clientIds": [story.app.client_id]} if several else {"clientId": story.app.client_id}
    headers = {"Idempotency-Key": "k1", "Accept": "text/event-stream"}
    async with sent(story) as wire, asyncio.TaskGroup() as tasks:
        stream = tasks.create_task(story.bridge.http.post("/api/command", json=body, headers=headers))
        command = await story.app.received(type="command")
        await story.app.send({"type": "progress", "requestId": command["requestId"], "progress": 1})
        answer = {"type": "response", "requestId": command["requestId"], "status": "success", "result": 1}
        await story.app.send(answer)
    assert "mine" not in [command["requestId"] for command in wire.commands]
    progress, response = [
        json.loads(line[6:]) for line in stream.result().text.split("\n") if line.startswith("data: ")
    ]
    whole = response["results"][story.app.client_id] if several else response
    assert (progress["requestId"], whole["requestId"], whole["result"]) == ("mine", "mine", 1)
    assert [record["requestId"] for record in await recorded(story.bridge.nats_url, 1)] == ["mine"]
